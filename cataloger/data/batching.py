"""Token lists → batches of similar length, for labelling and for training."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IntArray = npt.NDArray[np.int64]
Batch = dict[str, npt.NDArray[Any]]  # the arguments of a network by name
# Starting a batch costs as much as this share of a full one: measured on CPUs, about 150 tokens of 8,192.
BATCHES_PER_START = 64
# Of all batches that are computed at once: half a gibibyte in float32, of which probabilities need as much again.
LOGITS = 1 << 27
COUNTED = 1 << 20


@dataclass(frozen=True)
class Ragged:
    """Lists of numbers of N rows end to end: `flat[offsets[i]:offsets[i + 1]]` are those of row i."""

    flat: npt.NDArray[np.int32]
    offsets: IntArray

    @classmethod
    def from_arrow(cls, lists: pa.Array | pa.ChunkedArray) -> Self:
        """From a list<int32> column without nulls; its chunks may have more than 2^31 numbers together."""
        if isinstance(lists, pa.ChunkedArray):
            # Joined here: Arrow would count them all in 32 bits.
            return cls.joined([cls.from_arrow(chunk) for chunk in lists.chunks or [pa.array([], lists.type)]])
        offsets = lists.offsets.to_numpy().astype(np.int64)
        flat = lists.values.to_numpy(zero_copy_only=False)
        return cls(np.asarray(flat, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def slice(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop`, without a copy."""
        return replace(self, offsets=self.offsets[start : stop + 1])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All rows of the parts, in their order; where they lie end to end in one array, without a copy of it."""
        if len(parts) > 1 and all(
            left.flat is right.flat and left.offsets[-1] == right.offsets[0]
            for left, right in itertools.pairwise(parts)
        ):
            offsets = [part.offsets[:-1] for part in parts]
            return replace(parts[0], offsets=np.concatenate([*offsets, parts[-1].offsets[-1:]]))
        flat = [part.flat[part.offsets[0] : part.offsets[-1]] for part in parts]
        lengths = np.concatenate([part.lengths for part in parts])
        return replace(parts[0], flat=np.concatenate(flat), offsets=np.concatenate([[0], np.cumsum(lengths)]))

    def take(self, rows: IntArray) -> Self:
        """These rows, copied."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(self, flat=self.flat[positions], offsets=offsets)

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)

    def lists(self) -> pa.Array:
        """A list<int32> column of fewer than 2^31 numbers."""
        offsets, flat = self.offsets - self.offsets[0], self.flat[self.offsets[0] : self.offsets[-1]]
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(flat))

    def counts_of_first(self, size: int) -> IntArray:
        """[size] how many rows have each number first; some rows after the other, as they may be many."""
        counts = np.zeros(size, np.int64)
        for start in range(0, len(self), COUNTED):
            counts += np.bincount(self.slice(start, min(len(self), start + COUNTED)).first(), minlength=size)
        return counts

    def has(self, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[N] whether a row has any of the numbers that are wanted: one truth for each of `flat`."""
        counted = np.concatenate([[0], np.cumsum(wanted)])
        return np.asarray(counted[self.offsets[1:]] > counted[self.offsets[:-1]])

    def first(self) -> IntArray:
        """[N] the first number of each row, -1 where it has none."""
        if not len(self.flat):
            return np.full(len(self), -1)
        first = self.flat[np.minimum(self.offsets[:-1], len(self.flat) - 1)]
        return np.where(self.lengths > 0, first, -1).astype(np.int64)


@dataclass(frozen=True)
class Together:
    """Several lists of numbers of each of N rows."""

    parts: tuple[Ragged, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def take(self, rows: IntArray) -> Self:
        return replace(self, parts=tuple(part.take(rows) for part in self.parts))


@dataclass(frozen=True)
class Tokens(Ragged):
    """The tokens of N texts, `Encoded` for a network; `pad_id` fills up the shorter ones of a batch."""

    pad_id: int = 0

    @classmethod
    def from_arrow(cls, lists: pa.Array | pa.ChunkedArray, pad_id: int = 0) -> Self:
        """From a list<int32> column without nulls."""
        return replace(super().from_arrow(lists), pad_id=pad_id)

    def to_arrow(self) -> pa.Table:
        return pa.table({"tokens": self.lists()})

    @property
    def costs(self) -> IntArray:
        return self.lengths

    def costs_of(self, rows: IntArray) -> IntArray:
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows])

    def ahead(self, rows: IntArray) -> None:
        """A batch of tokens is made in no time."""

    def batch(self, rows: IntArray) -> Batch:
        """`input_ids` and `attention_mask` of these rows, int64 and bool, each [rows, longest of them]."""
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        positions = starts[:, None] + np.arange((ends - starts).max(initial=1))
        mask = positions < ends[:, None]
        flat = self.flat if len(self.flat) else np.zeros(1, np.int32)
        ids = np.where(mask, flat[np.minimum(positions, len(flat) - 1)], self.pad_id)
        return {"input_ids": ids.astype(np.int64), "attention_mask": mask}


def most_rows(categories: int, at_once: int = 1) -> int:
    """The row budget of a batch where so many are computed at once: every row has a logit per category."""
    return max(1, LOGITS // (categories * at_once))


def pack(lengths: IntArray, token_budget: int, row_budget: int) -> Iterator[IntArray]:
    """Row numbers of batches of similar length, longest first, each of at most `row_budget` rows and, after padding, `token_budget` tokens.

    A row longer than the budget gets a batch of its own. Every row is in exactly one batch. Of all ways to cut the sorted
    rows where their length changes, this is the one with the least padding plus a fixed cost per batch.
    """
    # Lengths are small numbers: as 16 bits they are sorted by radix, five times as fast.
    small = lengths.astype(np.uint16) if len(lengths) and lengths.max() < 1 << 16 else lengths
    order = np.argsort(small, kind="stable")[::-1]
    for start, stop, longest in _cut(lengths, token_budget, row_budget):
        room = max(1, min(token_budget // longest, row_budget))
        for first in range(start, stop, room):
            yield order[first : min(stop, first + room)]


def _cut(lengths: IntArray, token_budget: int, row_budget: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, longest) of the stretches of the rows, longest first, that are padded alike: a shortest path over lengths."""
    distinct, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    distinct, ends = distinct[::-1], np.concatenate([[0], np.cumsum(counts[::-1])])
    room = np.clip(token_budget // distinct, 1, row_budget)
    per_batch = token_budget / BATCHES_PER_START
    cheapest, before = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    for stop in range(1, len(ends)):
        rows = ends[stop] - ends[:stop]
        cost = cheapest[:stop] + rows * distinct[:stop] + per_batch * -(-rows // room[:stop])
        before[stop] = cost.argmin()
        cheapest[stop] = cost[before[stop]]
    cuts = [len(ends) - 1]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    for stop, start in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
        yield int(ends[start]), int(ends[stop]), int(distinct[start])


def slots(lengths: IntArray, token_budget: int, row_budget: int) -> int:
    """Tokens and padding of all batches of `pack`."""
    return sum(len(rows) * int(lengths[rows[0]]) for rows in pack(lengths, token_budget, row_budget))
