"""Which rows a model was trained or validated on: a sample of what they were split by, kept in the bundle.

A catalog that was copied, shuffled or exported anew is another one by its files, and the same one by its rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.data.text import split_hash, split_keys
from cataloger.errors import ModelError
from cataloger.spec import FORMAT

FILE = "seen.parquet"
# Of larger trainings a sample: 0.8 MB.
KEPT = 100_000
# A product that is listed twice may fall on both sides of somebody else's split: up to 4% of the rows where there was one to measure.
TOLERATED = 0.05
MOST_THINNED = 16
_EVERY = b"cataloger.every"

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Seen:
    """The sorted keys of rows that were seen, of all rows whose key is a multiple of `every`."""

    keys: Keys
    every: int

    @classmethod
    def of(cls, keys: Keys, wanted: int = KEPT) -> "Seen":
        """About `wanted` of these, chosen by the keys themselves: so the rows of any catalog are sampled alike."""
        every = ids.sample_every(len(keys), wanted)
        return cls(np.unique(keys[keys % np.uint64(every) == 0]), every)

    @classmethod
    def union(cls, samples: Sequence["Seen"]) -> "Seen":
        """Rows that any of several trainings saw, of those that all samples speak of."""
        every = math.lcm(*(one.every for one in samples))
        keys = np.concatenate([one.keys for one in samples])
        return cls(np.unique(keys[keys % np.uint64(every) == 0]), every)

    def tells_enough(self, beside: "Seen") -> bool:
        """Whether a union says nearly as much as one of its samples alone: of samples that earlier versions took, little may be left that
        both speak of."""
        return self.every <= MOST_THINNED * beside.every

    def recognise(self, keys: Keys) -> pa.Array:
        """Whether each row was seen; null for those that the sample says nothing about."""
        return pa.array(np.isin(keys, self.keys), mask=keys % np.uint64(self.every) != 0)


def keys(table: pa.Table, texts: pa.Array, group_column: str | None, format_version: int = FORMAT) -> Keys:
    """Of each row what decides its side of the split, as a number: equal for equal normalised texts, or groups."""
    return split_hash(split_keys(table, texts, group_column), format_version)


def share(recognised: pa.Array | pa.ChunkedArray) -> float | None:
    """Of the rows that the sample speaks of, those that were seen; None where it speaks of none."""
    found = pc.mean(recognised).as_py()
    return None if found is None else float(found)


def write(folder: Path, sample: Seen) -> None:
    table = pa.table({"key": sample.keys}).replace_schema_metadata({_EVERY: str(sample.every)})
    pq.write_table(table, folder / FILE, use_dictionary=False)


def read(folder: Path) -> Seen | None:
    """The sample of a bundle, None in those made before there were any. Raises ModelError when it is damaged."""
    if not (folder / FILE).exists():
        return None
    try:
        table = pq.read_table(folder / FILE)
        return Seen(table.column("key").to_numpy(), int(table.schema.metadata[_EVERY]))
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ModelError(f"model {folder}: its {FILE} cannot be read; fetch or copy the bundle again") from error
