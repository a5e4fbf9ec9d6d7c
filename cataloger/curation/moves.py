"""What an edited map of one tree to another says of categories that go somewhere as a whole."""

from cataloger.curation.tables import read_table
from cataloger.errors import CatalogError
from cataloger.infra.storage import locate
from cataloger.taxonomy import SEPARATOR, parse_path

MAP = "map.parquet"


def read_moves(uri: str) -> dict[str, str]:
    """The new category of each old one, of the folder of a map, or its table; those that are split or gone are not in it. Raises CatalogError."""
    table = read_table(
        f"{uri.rstrip('/')}/{MAP}" if not locate(uri).info().is_file else uri, "--tree-map", ("old", "target")
    )
    found: dict[str, str] = {}
    for old, target in zip(*(table.column(name).to_pylist() for name in ("old", "target")), strict=True):
        if old in found:
            raise CatalogError(f"--tree-map {uri}: has two rows for {old!r}; leave one out")
        try:
            found[old] = SEPARATOR.join(parse_path(target)) if target else ""
        except ValueError as problem:
            raise CatalogError(
                f"--tree-map {uri}: {target!r}, the target of {old!r}, is no category path: {problem}; write levels as 'A > B > C'"
            ) from problem
    found = {old: target for old, target in found.items() if target}
    if not found:
        raise CatalogError(f"--tree-map {uri}: no category has a target; name the --output of jobs/migrate.py")
    return found
