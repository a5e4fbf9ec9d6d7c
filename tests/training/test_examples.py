from itertools import pairwise

import numpy as np
import pytest

from cataloger.data.batching import Ragged, Tokens
from cataloger.training.examples import Examples, draw


def numbered(count: int, labels: np.ndarray) -> Examples:
    """Row i is [i, i + 1] or [i, i + 1, i + 2], in turn."""
    rows = [np.arange(i, i + 2 + i % 2, dtype=np.int32) for i in range(count)]
    tokens = Tokens(np.concatenate(rows), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
    return Examples.of_one_category(tokens, labels)


def texts(examples: Examples) -> list[list[int]]:
    offsets = examples.inputs.offsets
    return [examples.inputs.flat[a:b].tolist() for a, b in pairwise(offsets)]


def never(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    raise AssertionError("nothing is altered")


def test_rows_are_taken_and_joined_with_their_tokens() -> None:
    rows = numbered(7, np.arange(7))
    chosen = rows.take(np.array([3, 0, 3]))
    assert texts(chosen) == [[3, 4, 5], [0, 1], [3, 4, 5]]
    part = Examples(rows.inputs.slice(4, 6), rows.sets.slice(4, 6))
    both = part.and_these(chosen)
    assert texts(both) == [[4, 5], [5, 6, 7], [3, 4, 5], [0, 1], [3, 4, 5]]
    assert both.sets.first().tolist() == [4, 5, 3, 0, 3]
    assert texts(rows.take(np.array([], int))) == []


def test_a_row_has_as_many_labels_as_it_likes() -> None:
    tokens = numbered(4, np.zeros(4, int)).inputs
    rows = Examples(tokens, Ragged(np.array([2, 0, -1, 1], np.int32), np.array([0, 2, 2, 3, 4])))
    assert rows.sets.first().tolist() == [2, -1, -1, 1]
    part = rows.take(np.array([0, 3])).and_these(rows.take(np.array([1])))
    assert part.sets.lists().to_pylist() == [[2, 0], [1], []]
    assert rows.take(np.array([1])).sets.first().tolist() == [-1]


def test_every_row_is_drawn_once_by_default() -> None:
    rows = numbered(50, np.zeros(50, int))
    same, order = draw(rows, 1, "focal", np.random.default_rng(0), never)
    assert same is rows
    assert sorted(order[:]) == list(range(50))


def test_sampling_draws_a_category_by_its_square_root() -> None:
    rows = numbered(10_000, np.repeat([0, 1], [9_000, 1_000]))
    same, order = draw(rows, 2, "sampling", np.random.default_rng(0), never)
    assert len(order) == 10_000
    rare = (same.sets.first()[order] == 1).mean()
    assert rare == pytest.approx(1 / (1 + 3), abs=0.02), "sqrt(1,000) of sqrt(1,000) + sqrt(9,000)"


def test_augmentation_alters_what_is_drawn_again() -> None:
    rows = numbered(1_000, np.repeat([0, 1], [990, 10]))

    def reverse(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return text[::-1]

    drawn, order = draw(rows, 2, "augmentation", np.random.default_rng(0), reverse)
    assert sorted(order) == list(range(1_000))
    seen: set[int] = set()
    for text, label in zip(texts(drawn), drawn.sets.first(), strict=True):
        row = min(text)
        assert label == (row >= 990)
        assert text == (texts(rows)[row][::-1] if row in seen else texts(rows)[row])
        seen.add(row)
    assert len(seen) < 1_000, "some rows were drawn again"
