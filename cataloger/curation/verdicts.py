"""Published columns of what people decide, for labels of one category and for those of any number."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.heads.category_columns import Categories, Category
from cataloger.heads.columns import Columns
from cataloger.taxonomy import SEPARATOR

Mask = npt.NDArray[np.bool_]
OTHERS = pa.list_(pa.struct([("category", pa.string()), ("confidence", pa.float32())]))


class Verdicts(Protocol):
    names: tuple[str, ...]
    """The columns that a decision changes."""

    def repeated(self, paths: Sequence[str], count: int) -> pa.Array:
        """What a rule gives, as pins have it."""

    def given(self, paths: pa.Array) -> pa.Table:
        """The columns of labels that people gave: certain, and without alternatives."""

    def lies_in(self, labels: pa.Table, covers: Callable[[str], bool]) -> Mask:
        """[N] whether a category of each is covered; of a row without a label none is."""

    def instead(self, labels: pa.Table, covers: Callable[[str], bool]) -> tuple[pa.Table, Mask]:
        """(the columns of labels without what is covered, whether there is such a label)"""


class OneCategory:
    names: tuple[str, ...] = (
        "category",
        "confidence",
        "level_confidences",
        "alternatives",
        "trusted_category",
        "needs_review",
    )

    def repeated(self, paths: Sequence[str], count: int) -> pa.Array:
        return pa.repeat(pa.scalar(paths[0], pa.string()), count)

    def given(self, paths: pa.Array) -> pa.Table:
        certain = np.ones(len(paths), np.float32)
        return self._labels(paths, certain, _empty(len(paths)), paths, np.zeros(len(paths), bool))

    def lies_in(self, labels: pa.Table, covers: Callable[[str], bool]) -> Mask:
        return _covered(labels.column("category"), covers)

    def instead(self, labels: pa.Table, covers: Callable[[str], bool]) -> tuple[pa.Table, Mask]:
        """The most probable alternative that is not covered. Its confidence is what it has of all that is known not to be forbidden,
        P(category | not forbidden), which is at least this."""
        others = labels.column("alternatives").combine_chunks()
        row = pc.list_parent_indices(others).to_numpy()
        paths, scores = others.flatten().field("category"), others.flatten().field("confidence").to_numpy()
        covered = _covered(paths, covers)
        mass = np.bincount(row, scores * covered, len(labels)) + labels.column("confidence").to_numpy()
        mass = np.maximum(mass, self._mass(labels, covers))
        free = np.flatnonzero(~covered)
        has, first = np.unique(row[free], return_index=True)
        chosen = free[first]
        rest = np.setdiff1d(free, chosen)
        # Where nothing is left of what the model was sure of, it is shared out among those that are not forbidden.
        left_over = np.maximum(1 - mass, np.bincount(row, scores * ~covered, len(labels)))
        scaled = np.minimum(1.0, scores / np.maximum(1e-9, left_over[row])).astype(np.float32)
        at = np.full(len(labels), -1)
        at[has] = chosen
        counts = np.bincount(row[rest], minlength=len(labels))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        pairs = pa.StructArray.from_arrays(
            [paths.take(pa.array(rest)), pa.array(scaled[rest])], ["category", "confidence"]
        )
        left = pa.ListArray.from_arrays(pa.array(offsets), pairs)
        there = at >= 0
        found = self._labels(
            paths.take(pa.array(at[there])),
            scaled[at[there]],
            left.filter(pa.array(there)),
            pa.nulls(int(there.sum()), pa.string()),
            np.ones(int(there.sum()), bool),
        )
        return found, there

    @staticmethod
    def _mass(labels: pa.Table, covers: Callable[[str], bool]) -> npt.NDArray[np.float64]:
        """What the model has for the topmost covered step of each label's path, with all that is below."""
        found = []
        for path, levels in zip(
            labels.column("category").to_pylist(), labels.column("level_confidences").to_pylist(), strict=True
        ):
            steps = path.split(SEPARATOR)
            depth = next((depth for depth in range(1, len(steps)) if covers(SEPARATOR.join(steps[:depth]))), len(steps))
            found.append(levels[depth - 1])
        return np.array(found, np.float64)

    @staticmethod
    def _labels(
        paths: pa.Array, confidence: npt.NDArray[np.float32], others: pa.Array, trusted: pa.Array, review: Mask
    ) -> pa.Table:
        depths = (pc.count_substring(paths, SEPARATOR).to_numpy(zero_copy_only=False) + 1).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(depths)]).astype(np.int32)
        # Of each step at least as sure as of the category.
        levels = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.repeat(confidence, depths)))
        columns = (paths, pa.array(confidence), levels, others, trusted, pa.array(review))
        return pa.table(dict(zip(OneCategory.names, columns, strict=True)))


class ManyCategories:
    names: tuple[str, ...] = ("categories", "confidences", "confidence", "alternatives", "needs_review")

    def repeated(self, paths: Sequence[str], count: int) -> pa.Array:
        return pa.array([list(paths)] * count, pa.list_(pa.string()))

    def given(self, paths: pa.Array) -> pa.Table:
        certain = pa.array(np.ones(len(paths), np.float32))
        each = pa.ListArray.from_arrays(
            pc.subtract(paths.offsets, paths.offsets[0]), pa.array(np.ones(len(paths.flatten()), np.float32))
        )
        columns = (paths, each, certain, _empty(len(paths)), pa.array(np.zeros(len(paths), bool)))
        return pa.table(dict(zip(self.names, columns, strict=True)))

    def lies_in(self, labels: pa.Table, covers: Callable[[str], bool]) -> Mask:
        lists = labels.column("categories").combine_chunks()
        row = pc.list_parent_indices(lists).to_numpy()
        return np.bincount(row, _covered(lists.flatten(), covers), len(labels)) > 0

    def instead(self, labels: pa.Table, covers: Callable[[str], bool]) -> tuple[pa.Table, Mask]:
        """The list without what is covered, where that leaves anything; its confidence stays, and people look."""
        names, scores, others = (
            labels.column(name).combine_chunks() for name in ("categories", "confidences", "alternatives")
        )
        free = ~_covered(names.flatten(), covers)
        columns = (
            _filtered(names, free),
            _filtered(scores, free),
            labels.column("confidence"),
            _filtered(others, ~_covered(others.flatten().field("category"), covers)),
            pa.array(np.ones(len(labels), bool)),
        )
        there: Mask = pc.greater(pc.list_value_length(columns[0]), 0).to_numpy(zero_copy_only=False)
        return pa.table(dict(zip(self.names, columns, strict=True))).filter(pa.array(there)), there


def verdicts_of(columns: Columns) -> Verdicts:
    """Those of a model's first answer."""
    kinds: dict[str, Verdicts] = {Category.answer: OneCategory(), Categories.answer: ManyCategories()}
    return kinds[columns.answer]


def _empty(count: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], OTHERS.value_type))


def _covered(paths: pa.Array | pa.ChunkedArray, covers: Callable[[str], bool]) -> Mask:
    """[N] for each path; false for null."""
    coded = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
    coded = coded.dictionary_encode()
    names = [bool(covers(path)) for path in coded.dictionary.to_pylist()]
    found: Mask = pc.fill_null(pa.array(names, pa.bool_()).take(coded.indices), False).to_numpy(zero_copy_only=False)
    return found


def _filtered(lists: pa.Array, kept: Mask) -> pa.Array:
    """Lists with the values that are kept."""
    row = pc.list_parent_indices(lists).to_numpy()[kept]
    counts = np.bincount(row, minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), lists.flatten().filter(pa.array(kept)))
