"""The order of an epoch: every row once, as random as a shuffle, known part by part, and the same wherever a training goes on."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cataloger.data.batching import Tokens
from cataloger.training.order import POOL, Batches, Shuffled


def of_lengths(lengths: np.ndarray) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(np.zeros(offsets[-1], np.int32), offsets)


@given(st.integers(0, 3_000), st.integers(0, 9), st.integers(1, 700))
def test_every_row_comes_once_whatever_parts_are_asked_for(rows: int, seed: int, part: int) -> None:
    order = Shuffled(rows, np.random.default_rng(seed))
    whole = order[:]
    assert sorted(whole) == list(range(rows)) == sorted(set(whole))
    parts = [order[start : start + part] for start in range(0, rows, part)]
    assert np.concatenate([np.empty(0, int), *parts]).tolist() == whole.tolist()
    assert Shuffled(rows, np.random.default_rng(seed))[:].tolist() == whole.tolist()


@pytest.mark.parametrize("rows", [5, 64, 1_000])
def test_each_row_is_as_likely_in_each_place(rows: int) -> None:
    """And no two rows come one behind the other more often than others do: by chi-squared, of 2,000 orders."""
    orders = np.stack([Shuffled(rows, np.random.default_rng(seed))[:] for seed in range(2_000)])
    for place in (0, rows // 2, rows - 1):
        counts = np.bincount(orders[:, place], minlength=rows)
        expected = len(orders) / rows
        excess = ((counts - expected) ** 2 / expected).sum() - (rows - 1)
        assert excess < 5 * (2 * (rows - 1)) ** 0.5, place
    steps = np.diff(orders, axis=1) % rows
    share = (steps == 1).mean()
    assert share == pytest.approx(1 / rows, abs=5 * (1 / rows / steps.size) ** 0.5 + 1 / rows**2)


def test_two_epochs_have_nothing_in_common() -> None:
    first, second = (Shuffled(10_000, np.random.default_rng([0, 0, epoch]))[:] for epoch in (0, 1))
    assert (first == second).sum() < 10
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.05


def test_a_hundred_million_rows_are_shuffled_in_the_memory_of_one_pool() -> None:
    order = Shuffled(100_000_000, np.random.default_rng(0))
    tracemalloc.start()
    parts = [order[start : start + 8_192] for start in (0, 50_000_000, 99_991_808)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(set(part.tolist())) for part in parts] == [8_192] * 3
    assert all(part.min() >= 0 and part.max() < 100_000_000 for part in parts)
    assert peak < 2_000_000


@given(st.lists(st.integers(0, 40), max_size=400).map(np.array), st.integers(1, 5), st.integers(0, 3), st.data())
def test_batches_have_every_row_once_and_go_on_from_any_of_them(
    lengths: np.ndarray, size: int, seed: int, data: st.DataObject
) -> None:
    tokens = of_lengths(lengths.astype(int))
    batches = Batches(tokens, Shuffled(len(tokens), np.random.default_rng(seed)), size, seed)
    found = list(batches.since(0))
    assert len(found) == len(batches)
    rows = np.concatenate([np.empty(0, int), *(rows for rows, _ in found)])
    assert sorted(rows) == list(range(len(lengths)))
    assert [cost for _, cost in found] == [int(lengths[rows].sum()) for rows, _ in found]
    assert sum(len(rows) != size for rows, _ in found) <= 1
    first = data.draw(st.integers(0, len(found)))
    later = list(batches.since(first))
    assert [rows.tolist() for rows, _ in later] == [rows.tolist() for rows, _ in found[first:]]


def test_rows_of_a_batch_are_about_as_long_and_batches_come_in_no_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 8 * 16 * POOL)
    batches = Batches(of_lengths(lengths), Shuffled(len(lengths), np.random.default_rng(1)), 16, 2)
    longest = np.array([lengths[rows].max() for rows, _ in batches.since(0)])
    padding = sum(int(lengths[rows].max()) * len(rows) for rows, _ in batches.since(0)) / lengths.sum()
    assert padding < 1.1
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2


def test_an_order_may_be_any_array() -> None:
    drawn = np.array([3, 3, 1, 0, 3])
    rows = np.concatenate([rows for rows, _ in Batches(of_lengths(np.arange(4)), drawn, 2, 0).since(0)])
    assert sorted(rows) == sorted(drawn)
