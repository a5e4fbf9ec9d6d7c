"""What one model knows of a row, in short, for another one to join it with what it knows itself."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.batching import Batch, IntArray
from cataloger.data.inputs import Input
from cataloger.heads.arrays import FloatArray, best

# Of each row, the categories that are passed on; what lies beyond has next to no probability.
KEPT = 32


@dataclass(frozen=True)
class Ranked:
    """The most probable categories of N rows and their probabilities, int32 and float32 [N, K]."""

    labels: IntArray
    probabilities: FloatArray

    @classmethod
    def of(cls, probabilities: FloatArray) -> Self:
        """[N, categories]"""
        labels = best(probabilities, KEPT)
        return cls(labels.astype(np.int32), np.take_along_axis(probabilities, labels, axis=1))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        return cls(
            *(np.concatenate(arrays) for arrays in zip(*((p.labels, p.probabilities) for p in parts), strict=True))
        )

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Self:
        columns = (table.column(name).combine_chunks() for name in ("ranked", "probability"))
        return cls(*(column.flatten().to_numpy().reshape(-1, column.type.list_size) for column in columns))

    def to_arrow(self) -> pa.Table:
        width = self.labels.shape[1]
        columns: dict[str, npt.NDArray[Any]] = {"ranked": self.labels, "probability": self.probabilities}
        lists = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width) for name, values in columns.items()
        }
        return pa.table(lists)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: IntArray) -> Self:
        return type(self)(self.labels[rows], self.probabilities[rows])

    def silent(self, rows: npt.NDArray[np.bool_]) -> Self:
        """With no number for these rows: nothing is known of them, and they are joined with nothing."""
        return type(self)(self.labels, np.where(rows[:, None], np.float32(np.nan), self.probabilities))

    def slice(self, start: int, stop: int) -> Self:
        return type(self)(self.labels[start:stop], self.probabilities[start:stop])


@dataclass(frozen=True)
class WithRanked:
    """Rows for a network (`Encoded`), with what words know of them."""

    encoded: Any
    ranked: Ranked

    @classmethod
    def from_arrow(cls, table: pa.Table, given: Input) -> Self:
        return cls(given.from_arrow(table), Ranked.from_arrow(table))

    def to_arrow(self) -> pa.Table:
        table: pa.Table = self.encoded.to_arrow()
        for name, column in zip(self.ranked.to_arrow().column_names, self.ranked.to_arrow().columns, strict=True):
            table = table.append_column(name, column)
        return table

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def costs(self) -> IntArray:
        costs: IntArray = self.encoded.costs
        return costs

    def costs_of(self, rows: IntArray) -> IntArray:
        costs: IntArray = self.encoded.costs_of(rows)
        return costs

    @property
    def status(self) -> pa.Array:
        """What became of each row's picture, where the network sees."""
        return self.encoded.status

    def ahead(self, rows: IntArray) -> None:
        self.encoded.ahead(rows)

    def batch(self, rows: IntArray) -> Batch:
        """The network's arguments."""
        batch: Batch = self.encoded.batch(rows)
        return batch

    def take(self, rows: IntArray) -> Self:
        return type(self)(self.encoded.take(rows), self.ranked.take(rows))

    def slice(self, start: int, stop: int) -> Self:
        return type(self)(self.encoded.slice(start, stop), self.ranked.slice(start, stop))
