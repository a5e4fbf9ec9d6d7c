"""Product ids as 64-bit hashes: a sample of products that is the same in every run, and how many ids are repeated."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
# Up to this many rows all ids are counted, 8 MB of hashes on the driver; beyond it a sample by hash.
COUNTED = 1_000_000


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> Hashes:
    """One hash per id; equal ids have equal ones whatever their integer or string width."""
    kind = pa.int64() if pa.types.is_integer(ids.type) and not ids.null_count else pa.large_string()
    column = pc.fill_null(ids.cast(kind), "") if kind == pa.large_string() else ids.cast(kind)
    return np.asarray(pd.util.hash_array(column.to_numpy(zero_copy_only=False)), np.uint64)


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
