"""What words know of rows, on its way to a network and joined with what that knows itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cataloger.data.batching import Tokens
from cataloger.data.texts import TextInput
from cataloger.heads.base import head_of
from cataloger.heads.one_category import LEAST
from cataloger.heads.ranked import KEPT, Ranked, WithRanked
from cataloger.spec import MANY_CATEGORIES, Spec, Words

ONE = Spec(("A", "A > x", "B"), ("title",), 64, "mean", "")
MANY = replace(ONE, head=MANY_CATEGORIES)
SPECS = [ONE, MANY]  # one of every head
SIZES = st.tuples(st.integers(0, 6), st.integers(1, KEPT + 8))
PROBABILITIES = arrays(np.float32, SIZES, elements=st.floats(0, 1, width=32))


def assert_same(left: Ranked, right: Ranked) -> None:
    np.testing.assert_array_equal(left.labels, right.labels, strict=True)
    np.testing.assert_array_equal(left.probabilities, right.probabilities, strict=True)


@given(PROBABILITIES)
def test_the_most_probable_categories_are_kept(probabilities: np.ndarray) -> None:
    found = Ranked.of(probabilities)
    rows, categories = probabilities.shape
    assert found.labels.dtype == np.int32
    assert found.labels.shape == found.probabilities.shape == (rows, min(KEPT, categories))
    for row, labels, kept in zip(probabilities, found.labels, found.probabilities, strict=True):
        assert len(set(labels)) == len(labels)
        assert row[labels].tolist() == kept.tolist() == sorted(row, reverse=True)[:KEPT]


@given(PROBABILITIES, st.integers(0, 6), st.integers(0, 6))
def test_arrow_gives_back_what_it_was_given(probabilities: np.ndarray, first: int, second: int) -> None:
    ranked = Ranked.of(probabilities)
    table = ranked.to_arrow()
    assert_same(Ranked.from_arrow(table), ranked)
    start, stop = sorted(np.minimum([first, second], len(ranked)).tolist())
    assert_same(Ranked.from_arrow(table.slice(start, stop - start)), ranked.slice(start, stop))
    turned = Ranked.from_arrow(pa.concat_tables([table.slice(start), table.slice(0, start)]))
    assert_same(turned, ranked.take(np.roll(np.arange(len(ranked)), -start)))


@given(PROBABILITIES, st.integers(0, 6))
def test_parts_are_joined_in_their_order(probabilities: np.ndarray, cut: int) -> None:
    ranked = Ranked.of(probabilities)
    cut = min(cut, len(ranked))
    assert_same(Ranked.joined([ranked.slice(0, cut), ranked.slice(cut, len(ranked))]), ranked)
    assert_same(Ranked.joined([ranked.take(np.arange(cut)), ranked.take(np.arange(cut, len(ranked)))]), ranked)


@pytest.mark.parametrize("rows", [0, 3])
def test_rows_for_a_network_take_what_words_know_along(working_folder: Path, rows: int) -> None:
    (working_folder / "config.json").write_text(json.dumps({"pad_token_id": 7, "vocab_size": 10}))
    given = TextInput(working_folder, ["title"], 64)
    tokens = Tokens(np.arange(rows * 2, dtype=np.int32), np.arange(rows + 1) * 2, pad_id=7)
    ranked = Ranked.of(np.random.default_rng(0).random((rows, 40), np.float32))
    both = WithRanked.from_arrow(WithRanked(tokens, ranked).to_arrow(), given)
    assert len(both) == rows
    assert both.costs.tolist() == [2] * rows
    assert both.costs_of(np.arange(rows)[:1]).tolist() == [2] * min(rows, 1)
    assert_same(both.ranked, ranked)
    order = np.arange(rows)[::-1]
    for name, values in both.batch(order).items():
        np.testing.assert_array_equal(values, tokens.batch(order)[name])
    for part, expected in ((both.take(order), order), (both.slice(rows // 2, rows), np.arange(rows // 2, rows))):
        assert_same(part.ranked, ranked.take(expected))
        assert part.encoded.lists().equals(tokens.take(expected).lists())
        assert len(part) == len(expected)


def test_one_category_is_joined_as_logarithms_of_probabilities() -> None:
    logits = np.array([[0.5, -1.0, 2.0]], np.float32)
    ranked = Ranked(np.array([[2, 0]], np.int32), np.array([[0.9, 0.0]], np.float32))
    words = Words(weight=0.7, network_temperature=2.0)
    found = head_of(ONE, "cpu").with_words(torch.from_numpy(logits), ranked, words)
    expected = logits / 2 + 0.7 * np.log([[LEAST, LEAST, 0.9]])  # one that is not ranked, and one of next to nothing
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_any_number_of_categories_are_joined_as_logits() -> None:
    logits = np.array([[0.5, -1.0, 2.0]], np.float32)
    ranked = Ranked(np.array([[2, 0]], np.int32), np.array([[0.9, 1.0]], np.float32))
    words = Words(weight=0.7, network_temperature=2.0)
    found = head_of(MANY, "cpu").with_words(torch.from_numpy(logits), ranked, words)
    known = np.array([[1 - LEAST, LEAST, 0.9]])
    # Next to one, float32 has few digits.
    np.testing.assert_allclose(found.numpy(), logits / 2 + 0.7 * np.log(known / (1 - known)), rtol=1e-2)


@given(arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)), st.integers(0, 9), st.sampled_from(SPECS))
def test_words_without_weight_change_nothing(logits: np.ndarray, seed: int, spec: Spec) -> None:
    ranked = Ranked.of(np.random.default_rng(seed).random((4, 3), np.float32))
    found = head_of(spec, "cpu").with_words(torch.from_numpy(logits), ranked, Words(weight=0.0))
    np.testing.assert_array_equal(found.numpy(), logits)


@pytest.mark.parametrize("spec", SPECS)
def test_words_of_great_weight_decide(spec: Spec) -> None:
    generator = np.random.default_rng(0)
    ranked = Ranked.of(generator.random((50, 3), np.float32))
    logits = torch.from_numpy(generator.normal(0, 1, (50, 3)).astype(np.float32))
    found = head_of(spec, "cpu").with_words(logits, ranked, Words(weight=1e3))
    np.testing.assert_array_equal(found.argmax(dim=1).numpy(), ranked.labels[:, 0])
