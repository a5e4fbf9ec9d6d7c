"""The order in which an epoch goes through its rows: seeded, and known part by part, so that no worker ever holds all of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cataloger.data.batching import IntArray

# A pool of so many batches is sorted by length at a time.
POOL = 32
# Of a Feistel network: four are as good as random to whoever does not know the keys (Luby and Rackoff 1988).
ROUNDS = 6
# Of murmur3's last step, which spreads each bit of a number over all others.
FIRST, SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


class Order(Protocol):
    """The numbers of the rows that an epoch draws, in its order: an array, or `Shuffled`."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> IntArray: ...


class Shuffled:
    """All N rows in a random order, of which any part is worked out by itself.

    A Feistel network is a permutation of the numbers of some even number of bits. What falls on N or beyond goes through it again
    (cycle walking, Black and Rogaway 2002).
    """

    def __init__(self, rows: int, rng: np.random.Generator) -> None:
        self.rows = rows
        self.bits = np.uint64(max(1, -(-max(1, rows - 1).bit_length() // 2)))
        self.keys = rng.integers(1 << 63, size=ROUNDS, dtype=np.uint64)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, part: slice) -> IntArray:
        found = self._permuted(np.arange(*part.indices(self.rows), dtype=np.uint64))
        while len(beyond := np.flatnonzero(found >= self.rows)):
            found[beyond] = self._permuted(found[beyond])
        return found.astype(np.int64)

    def _permuted(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        mask = (np.uint64(1) << self.bits) - np.uint64(1)
        left, right = numbers >> self.bits, numbers & mask
        for key in self.keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return (left << self.bits) | right


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    shift = np.uint64(33)
    numbers = (numbers ^ (numbers >> shift)) * FIRST
    numbers = (numbers ^ (numbers >> shift)) * SECOND
    return numbers ^ (numbers >> shift)


@dataclass(frozen=True)
class Batches:
    """An epoch in batches of `size` rows of similar length; the last one may be smaller.

    Rows are sorted by length within pools of 32 batches only, whose batches are then shuffled: padding shrinks while a batch
    stays a random sample of its pool, which is one of all rows. A pool is read when its turn comes.
    """

    encoded: Any
    """`Encoded`."""
    drawn: Order
    size: int
    seed: int

    def __len__(self) -> int:
        return -(-len(self.drawn) // self.size)

    def since(self, first: int) -> Iterator[tuple[IntArray, int]]:
        """(row numbers, their tokens) of each batch, from this one on."""
        for pool in range(first // POOL, -(-len(self) // POOL)):
            rows = self.drawn[pool * POOL * self.size : (pool + 1) * POOL * self.size]
            costs = self.encoded.costs_of(rows)
            places = np.split(np.argsort(costs, kind="stable"), np.arange(self.size, len(rows), self.size))
            shuffled = np.random.default_rng([self.seed, pool]).permutation(len(places))
            for number in shuffled[max(0, first - pool * POOL) :]:
                yield rows[places[number]], int(costs[places[number]].sum())
