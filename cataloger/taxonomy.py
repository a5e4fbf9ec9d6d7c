"""The category tree: paths, levels, ancestors, label ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

SEPARATOR = " > "


def parse_path(path: str) -> tuple[str, ...]:
    """`"Fruit > Apple"` → `("Fruit", "Apple")`. Raises ValueError for an empty level or a separator at either end."""
    levels = tuple(level.strip() for level in path.strip().split(SEPARATOR))
    if levels[0].startswith(">") or levels[-1].endswith(">"):
        raise ValueError("begins or ends with a separator")
    if not all(levels):
        raise ValueError("empty level" if path.strip() else "empty path")
    return levels


def prefix(path: str, depth: int) -> str:
    """The ancestor of `path` at `depth` levels, or the path itself where it is not that deep."""
    return SEPARATOR.join(path.split(SEPARATOR)[:depth])


@dataclass(frozen=True)
class Taxonomy:
    """The categories a model can answer, in label order (sorted by path). A category may be a leaf or an inner node."""

    categories: tuple[str, ...]

    @classmethod
    def from_paths(cls, paths: Iterable[str]) -> "Taxonomy":
        """Raises ValueError for a malformed path."""
        return cls(tuple(sorted({SEPARATOR.join(parse_path(path)) for path in paths})))

    def __len__(self) -> int:
        return len(self.categories)

    @cached_property
    def depth(self) -> int:
        """Number of levels of the deepest category."""
        return max(path.count(SEPARATOR) + 1 for path in self.categories)

    @cached_property
    def label_ids(self) -> dict[str, int]:
        return {path: label for label, path in enumerate(self.categories)}

    @cached_property
    def depths(self) -> npt.NDArray[np.int64]:
        """Levels of each category, shape [categories]."""
        return np.array([path.count(SEPARATOR) + 1 for path in self.categories])

    @cached_property
    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Per level, the node each category lies in, shape [categories]: equal numbers share the ancestor at that level.

        The probability of an inner node is the sum over its group, so predictions are consistent along the path.
        """
        return [_number([prefix(path, level + 1) for path in self.categories]) for level in range(self.depth)]


def _number(names: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64)
