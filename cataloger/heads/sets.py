"""The categories of many rows as numbers of one list of names: a row costs bytes, not Python objects."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from cataloger.taxonomy import SEPARATOR, prefix

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sets:
    """Which of the sorted `names` each of N rows has: `rows` is a sparse matrix [N, names] of ones, sorted within a row."""

    names: list[str]
    rows: Any

    @classmethod
    def of(cls, *columns: pa.Array | pa.ChunkedArray) -> "list[Sets]":
        """Those of columns of paths, or of lists of paths, over the names that occur in any of them. No path may be null."""
        encoded = [_encoded(column) for column in columns]
        names = sorted({name for dictionary, *_ in encoded for name in dictionary})
        place = {name: number for number, name in enumerate(names)}
        return [
            cls(names, indicators(np.array([place[name] for name in dictionary], np.int32)[ids], lengths, len(names)))
            for dictionary, ids, lengths in encoded
        ]

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """[names] the rows that have each."""
        return np.bincount(self.rows.indices, minlength=len(self.names))

    def at_level(self, depth: int) -> "Sets":
        """The ancestors at a level, 1 for the top; a path that ends above it stands for itself."""
        ancestors = [prefix(name, depth) for name in self.names]
        names = sorted(set(ancestors))
        place = {name: number for number, name in enumerate(names)}
        ids = np.array([place[name] for name in ancestors], np.int32)[self.rows.indices]
        return Sets(names, indicators(ids, np.diff(self.rows.indptr), len(names)))

    def with_ancestors(self) -> "Sets":
        """The categories and all that they lie in."""
        steps = [[prefix(name, depth) for depth in range(1, levels(name) + 1)] for name in self.names]
        names = sorted({step for own in steps for step in own})
        place = {name: number for number, name in enumerate(names)}
        ids = np.array([place[step] for own in steps for step in own], np.int32)
        rows = self.rows @ indicators(ids, np.array([len(own) for own in steps]), len(names))
        rows.data[:] = 1
        return Sets(names, rows)

    def of_row(self, row: int) -> list[str]:
        """The names of one row."""
        return [self.names[place] for place in self.rows.indices[self.rows.indptr[row] : self.rows.indptr[row + 1]]]


def levels(name: str) -> int:
    return name.count(SEPARATOR) + 1


def indicators(ids: Ids, lengths: Ids, width: int) -> Any:
    """A sparse matrix [rows, width] of ones: `ids` are the columns of all rows end to end, as many of each as `lengths` says."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    matrix = scipy.sparse.csr_matrix((np.ones(len(ids), np.int32), ids, offsets), (len(lengths), width))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def exact(true: Sets, given: Sets) -> npt.NDArray[np.bool_]:
    """[N] whether a row was given just its true categories."""
    shared = np.diff(true.rows.multiply(given.rows).indptr)
    return np.asarray(2 * shared == np.diff(true.rows.indptr) + np.diff(given.rows.indptr))


def _encoded(column: pa.Array | pa.ChunkedArray) -> tuple[list[str], Ids, Ids]:
    """(names, the numbers of all rows' names end to end, how many each row has)"""
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    lengths = np.ones(len(column), np.int64)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    values = column.unify_dictionaries().combine_chunks()
    return values.dictionary.to_pylist(), values.indices.to_numpy(), lengths
