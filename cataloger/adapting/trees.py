"""Another tree of categories, as somebody hands it in: paths, or nodes that name their parents."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from cataloger.curation.tables import ids_of, paths_of, read_table
from cataloger.errors import CatalogError
from cataloger.taxonomy import SEPARATOR


@dataclass(frozen=True)
class Tree:
    """The paths of all nodes, sorted, and what is said of each beside its name."""

    paths: tuple[str, ...]
    descriptions: Mapping[str, str]

    def name(self, path: str) -> str:
        """What a node is called, with what is said of it."""
        return " ".join(filter(None, (path.replace(SEPARATOR, " "), self.descriptions.get(path))))


def read_tree(uri: str, flag: str = "--to") -> Tree:
    """Of a table with `category_path`, or with `id`, `parent_id` and `name`; `description` where there is one. Raises CatalogError for two
    nodes of one path, a parent that is not there, and nodes that are their own ancestors."""
    where = f"{flag} {uri}"
    found = read_table(uri, flag, (), ("category_path", "id", "parent_id", "name", "description"))
    if "category_path" in found.column_names:
        paths = paths_of(found, where).to_pylist()
    else:
        paths = _paths(read_table(uri, flag, ("id", "parent_id", "name"), ()), where)
    if twice := next(
        (path for path, before in zip(sorted(paths)[1:], sorted(paths), strict=False) if path == before), None
    ):
        raise CatalogError(f"{where}: two nodes have the path {twice!r}; leave one out, or name it otherwise")
    if not paths:
        raise CatalogError(f"{where}: has no rows; write a row for each category")
    said = found.column("description").to_pylist() if "description" in found.column_names else [None] * len(paths)
    return Tree(tuple(sorted(paths)), {path: str(text) for path, text in zip(paths, said, strict=True) if text})


def _parent(value: object) -> str | None:
    """A node's id as its children say it: pandas makes floating-point numbers of whole ones where a root has none."""
    if value is None or value != value or not str(value).strip():
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _paths(nodes: pa.Table, where: str) -> list[str]:
    identities = ids_of(nodes, where).to_pylist()
    parents = [_parent(value) for value in nodes.column("parent_id").to_pylist()]
    names = nodes.column("name").to_pylist()
    above = dict(zip(identities, parents, strict=True))
    called = dict(zip(identities, names, strict=True))
    if len(above) < len(identities):
        twice = next(one for one in identities if identities.count(one) > 1)
        raise CatalogError(f"{where}: two nodes have the id {twice}; give each its own")
    paths = []
    for identity in identities:
        steps, node = list[str](), identity
        while node is not None:
            if node not in above:
                raise CatalogError(
                    f"{where}: node {identity} has the ancestor {node}, which is not there; add it, or leave its parent_id empty"
                )
            name = str(called[node] or "").strip()
            if not name or ">" in name:
                raise CatalogError(f"{where}: node {node} is called {name!r}; a name needs letters, and no '>'")
            steps.append(name)
            if len(steps) > len(above):
                raise CatalogError(f"{where}: node {identity} is its own ancestor; mend its parent_id")
            node = above[node]
        paths.append(SEPARATOR.join(reversed(steps)))
    return paths
