"""Rows that have pictures, ready for a network: pixels that are there already, or that are made of bytes when they are asked for."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa

from cataloger.data.batching import Batch, IntArray, Tokens
from cataloger.data.images import Pixels

# What a picture costs in a batch, in tokens of a text: so that a batch has a few of them on a CPU, hundreds on a GPU.
TOKENS_PER_PICTURE = 256


class Album(Protocol):
    """K pictures."""

    def pixels(self, chosen: IntArray, rows: IntArray) -> Pixels:
        """uint8 [n, 3, size, size] of these, which are pictures of these rows."""

    @property
    def alike(self) -> bool:
        """Whether a picture always looks the same."""


@dataclass(frozen=True)
class Decoded:
    """Pictures that are pixels already: uint8 [K, 3, size, size]."""

    array: Pixels
    alike: bool = True

    def pixels(self, chosen: IntArray, rows: IntArray) -> Pixels:
        return self.array[chosen]


@dataclass(frozen=True)
class Pictured:
    """N rows with a picture, a text, or both: `Encoded` for a network.

    `index` [N] says which picture of the album is a row's, -1 where it has none; `status` what became of it.
    """

    tokens: Tokens | None
    index: IntArray
    status: pa.Array
    album: Any
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_coming", {})

    def __len__(self) -> int:
        return len(self.index)

    @property
    def costs(self) -> IntArray:
        return self.costs_of(np.arange(len(self)))

    def costs_of(self, rows: IntArray) -> IntArray:
        texts = self.tokens.costs_of(rows) if self.tokens is not None else np.ones(len(rows), np.int64)
        return np.asarray(texts + TOKENS_PER_PICTURE * (self.index[rows] >= 0), np.int64)

    def batch(self, rows: IntArray) -> Batch:
        """`pixel_values` uint8 [pictures, 3, size, size], `image_index` int64 [rows]: 0 for a row without a picture, n for
        the n-th of them; and the arguments of its texts."""
        coming: Future[Batch] | None = self._coming.pop(rows.tobytes(), None)  # type: ignore[attr-defined]
        return coming.result() if coming else self._batch(rows)

    def ahead(self, rows: IntArray) -> None:
        self._coming.setdefault(rows.tobytes(), _pool().submit(self._batch, rows))  # type: ignore[attr-defined]

    def _batch(self, rows: IntArray) -> Batch:
        batch = self.tokens.batch(rows) if self.tokens is not None else {}
        has = self.index[rows] >= 0
        chosen, place = self.index[rows][has], np.arange(has.sum())
        of = rows[has]
        if self.album.alike:
            chosen, first, place = np.unique(chosen, return_index=True, return_inverse=True)
            of = of[first]
        image_index = np.zeros(len(rows), np.int64)
        image_index[has] = place + 1
        # A network takes no batch of nothing.
        blank = np.zeros((1, 3, self.size, self.size), np.uint8)
        pixels = self.album.pixels(chosen, of) if len(chosen) else blank
        return {**batch, "pixel_values": pixels, "image_index": image_index}

    def take(self, rows: IntArray) -> Self:
        return replace(
            self,
            tokens=None if self.tokens is None else self.tokens.take(rows),
            index=self.index[rows],
            status=self.status.take(pa.array(rows)),
        )

    def slice(self, start: int, stop: int) -> Self:
        return replace(
            self,
            tokens=None if self.tokens is None else self.tokens.slice(start, stop),
            index=self.index[start:stop],
            status=self.status.slice(start, stop - start),
        )

    def to_arrow(self) -> pa.Table:
        """With the pixels of picture k in row k: there are never more pictures than rows."""
        columns = {} if self.tokens is None else {"tokens": self.tokens.lists()}
        pixels = self.album.array.reshape(len(self.album.array), 3 * self.size**2)
        ends = np.minimum(np.arange(len(self) + 1), len(pixels)) * pixels.shape[1]
        buffers = [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(pixels))]
        column = pa.Array.from_buffers(pa.large_binary(), len(self), buffers)
        return pa.table({**columns, "picture": pa.array(self.index), "status": self.status, "pixels": column})


_POOLS: list[ThreadPoolExecutor] = []


def _pool() -> ThreadPoolExecutor:
    """The threads that decode ahead, of this process; made when they are first needed."""
    if not _POOLS:
        _POOLS.append(ThreadPoolExecutor(2, thread_name_prefix="pictures"))
    return _POOLS[0]
