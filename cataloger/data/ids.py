"""Product ids as 64-bit hashes: a sample of products that is the same in every run, and how many ids are repeated."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.text import undecodable

Hashes = npt.NDArray[np.uint64]
# Up to this many rows all ids are counted, 8 MB of hashes on the driver; beyond it a sample by hash.
COUNTED = 1_000_000
# The hash of a missing id.
NULL = np.uint64(0x9E3779B97F4A7C15)
# Why a row is rejected whose id nobody can read.
ID_NOT_UTF8 = "the id is not valid UTF-8; the bytes that are not are spelt \\xff here"


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> Hashes:
    """One hash per id; equal ids have equal ones whatever their integer or string width. All nulls have one, too."""
    ids = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
    if pa.types.is_integer(ids.type):
        kind = pa.uint64() if pa.types.is_unsigned_integer(ids.type) else pa.int64()
        values = pc.fill_null(ids.cast(kind), 0)
    else:
        if pa.types.is_dictionary(ids.type):
            ids = ids.cast(ids.type.value_type)
        # As bytes: Parquet readers take strings as they come, UTF-8 or not.
        values = pc.fill_null(ids.cast(pa.large_string(), safe=False).cast(pa.large_binary()), b"")
    hashes = np.array(pd.util.hash_array(values.to_numpy()), np.uint64)
    hashes[ids.is_null().to_numpy()] = NULL
    return hashes


@dataclass(frozen=True)
class Lookup:
    """N ids as text, found by their hashes."""

    ids: pa.Array
    hashes: Hashes
    order: npt.NDArray[np.int64]

    @classmethod
    def of(cls, own: pa.Array) -> "Lookup":
        hashes = hash_ids(own)
        order = np.argsort(hashes, kind="stable")
        return cls(own, hashes[order], order)

    def find(self, others: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(place of an own id, place of the same id among the others) for each of the others that is there."""
        text = as_text(others)
        hashes = hash_ids(text)
        at = np.minimum(np.searchsorted(self.hashes, hashes), max(0, len(self.hashes) - 1))
        row = np.flatnonzero(self.hashes[at] == hashes) if len(self.hashes) else np.empty(0, np.int64)
        own = self.order[at[row]]
        same = pc.equal(self.ids.take(pa.array(own)), text.take(pa.array(row)))
        there = pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        return own[there], row[there]


def as_text(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """An id that is a number in one table and a string in the other is the same."""
    return written(ids)[0].cast(pa.large_string())


def written(ids: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """(ids that every reader of Parquet can read, whether each was none before): bytes that are not UTF-8 are spelt `\\xff`."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    bad = undecodable(ids)
    if not bad.any():
        return ids, bad
    values = ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids
    raw = values.cast(pa.large_string(), safe=False).cast(pa.large_binary()).to_pylist()
    spelt = [None if value is None else value.decode(errors="backslashreplace") for value in raw]
    return pa.array(spelt, values.type), bad


def sample_every(rows: int, wanted: int) -> int:
    """Keep ids whose hash is a multiple of this, to have about `wanted` of `rows`."""
    return max(1, -(-rows // wanted))


def sample(ids: pa.Array | pa.ChunkedArray, every: int) -> Hashes:
    """The hashes that `every` keeps: all rows of an id or none of them."""
    hashes = hash_ids(ids)
    kept: Hashes = hashes[hashes % np.uint64(every) == 0]
    return kept


def count_repeated(samples: Iterable[Hashes], every: int) -> int:
    """How many ids are on more than one row: exact when every = 1, else estimated from the sample."""
    hashes = np.concatenate([np.empty(0, np.uint64), *samples])
    hashes.sort()
    same = hashes[1:] == hashes[:-1]
    first = same & ~np.concatenate([[False], same[:-1]])[: len(same)]
    return int(first.sum()) * every
