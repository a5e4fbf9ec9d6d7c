"""What the linear model of words learns from and is judged by: the texts of the ingest's rows, without their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from cataloger.data.batching import IntArray, Ragged


@dataclass(frozen=True)
class Texts:
    """N rows: text, label ids, and the hash of what the row was split by, which is the same for rows that belong together."""

    texts: pa.Array
    sets: Ragged
    keys: npt.NDArray[np.uint64]
    uses: npt.NDArray[np.int8]

    @classmethod
    def of(cls, blocks: Sequence[Any], uses: Sequence[int], share: float = 1.0) -> "Texts":
        """The rows of the ingest's tables that have one of these uses, in their order; or a share of them, evenly spread."""
        tables, before = [], 0
        for block in blocks:
            table = ray.get(block)
            wanted = np.isin(table.column("use").to_numpy(), uses)
            number = before + np.cumsum(wanted)
            before = int(number[-1]) if len(number) else before
            wanted &= np.floor(number * share) > np.floor((number - 1) * share)
            tables.append(table.select(["text", "labels", "key", "use"]).filter(pa.array(wanted)))
        rows = pa.concat_tables(tables)
        texts = pa.chunked_array(
            [chunk.cast(pa.large_string()) for chunk in rows.column("text").chunks], pa.large_string()
        )
        return cls(
            texts.combine_chunks(),
            Ragged.from_arrow(rows.column("labels")),
            rows.column("key").to_numpy(),
            rows.column("use").to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: IntArray) -> "Texts":
        return Texts(self.texts.take(pa.array(rows)), self.sets.take(rows), self.keys[rows], self.uses[rows])

    @property
    def distinct(self) -> npt.NDArray[np.bool_]:
        """One row of each key: rows of one text, or one group, tell the same thing once."""
        first = np.zeros(len(self), bool)
        first[np.unique(self.keys, return_index=True)[1]] = True
        return first

    @property
    def half(self) -> npt.NDArray[np.int64]:
        """0 or 1 for each row, the same for all rows of a key."""
        return (self.keys % np.uint64(2)).astype(np.int64)

    def fold(self, folds: int) -> npt.NDArray[np.int64]:
        """From 0 to `folds` - 1 for each row, the same for all rows of a key, and whatever its `half` is."""
        return (self.keys // np.uint64(2) % np.uint64(folds)).astype(np.int64)


def rows_of(blocks: Sequence[Any], uses: Sequence[int]) -> int:
    """How many rows of the ingest's tables have one of these uses."""
    return sum(int(np.isin(ray.get(block).column("use").to_numpy(), uses).sum()) for block in blocks)
