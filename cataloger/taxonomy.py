"""The category tree: paths, levels, ancestors, label ids."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

SEPARATOR = " > "


def parse_path(path: str) -> tuple[str, ...]:
    """`"Fruit > Apple"` → `("Fruit", "Apple")`; any white space does around the `>`, such as a no-break space.

    Raises ValueError for an empty level, a separator at either end, and a `>` that may or may not be meant as one.
    """
    levels = tuple(level.strip() for level in re.split(r"\s+>(?=\s)", path.strip()))
    if levels[0].startswith(">") or levels[-1].endswith(">"):
        raise ValueError("begins or ends with a separator")
    if not all(levels):
        raise ValueError("empty level" if path.strip() else "empty path")
    if any(">" in level for level in levels):
        raise ValueError("a '>' without white space on both sides")
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
        return [_number(self.ancestors(level)) for level in range(self.depth)]

    def ancestors(self, level: int) -> list[str]:
        """The ancestor of each category at a level, 0 for the top; a category that is not that deep stands for itself."""
        return [prefix(path, level + 1) for path in self.categories]

    def certainty(
        self, levels: npt.NDArray[np.float32], confidence: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """[N, D]: how sure an answer is of each step of its path, for [N, D] level confidences, NaN below its depth.

        Of an ancestor, that the product lies anywhere below it; of the category itself, that it is just that one.
        """
        certainty = levels.copy()
        certainty[np.arange(len(labels)), self.depths[labels] - 1] = confidence
        return certainty

    def right(self, true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[N, D]: whether each step of the predicted path is right, in the sense of `certainty`; -1 is an unknown category."""
        steps = np.stack([group[true] == group[predicted] for group in self.groups], axis=1) & (true >= 0)[:, None]
        steps[np.arange(len(true)), self.depths[predicted] - 1] = true == predicted
        return steps


def _number(names: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64)
