"""Answers made with numpy are those that the heads of networks make of the same logits."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cataloger.data.batching import Ragged
from cataloger.heads.arrays import as_judged, best, reader_of
from cataloger.heads.base import head_of
from cataloger.spec import MANY_CATEGORIES, Spec, Words
from cataloger.taxonomy import Taxonomy

CATEGORIES = ("A", "A > x", "A > y", "B > z > w", "C")
ONE = Spec(CATEGORIES, ("title",), 64, "none", "", words=Words())
MANY = replace(ONE, head=MANY_CATEGORIES, category_thresholds=(0.5, 0.9, 0.2, 0.5, 0.03))
SPECS = [ONE, MANY]  # one of every head
LOGITS = arrays(np.float32, st.tuples(st.integers(0, 6), st.just(5)), elements=st.floats(-9, 9, width=32))
NEAR = 1e-5


def by_torch(spec: Spec, logits: np.ndarray, alternatives: int) -> pa.Table:
    head = head_of(spec, "cpu")
    return head.join([head.read(torch.from_numpy(logits), alternatives)], np.arange(len(logits)))


def clear(spec: Spec, logits: np.ndarray) -> np.ndarray:
    """[rows] without two probabilities, or one and its threshold, that are nearly the same."""
    probabilities = reader_of(spec).probabilities(logits)
    apart = np.diff(np.sort(probabilities, axis=1), axis=1).min(axis=1, initial=1) > NEAR
    distance = np.abs(probabilities - np.array(spec.category_thresholds or [2.0], np.float32))
    return apart & (distance.min(axis=1, initial=1) > NEAR)


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.equals(expected.schema)
    for name in found.column_names:
        left, right = (table.column(name).combine_chunks() for table in (found, expected))
        if pa.types.is_list(left.type):
            assert left.value_lengths().equals(right.value_lengths())
            left, right = left.flatten(), right.flatten()
        tolerance = NEAR if pa.types.is_floating(left.type) else 0
        np.testing.assert_allclose(left.to_numpy(), right.to_numpy(), rtol=0, atol=tolerance, err_msg=name)


@given(LOGITS, st.integers(0, 6), st.sampled_from(SPECS))
@settings(max_examples=300)
def test_answers_are_those_of_the_head_of_a_network(logits: np.ndarray, alternatives: int, spec: Spec) -> None:
    found, expected = reader_of(spec).answers(logits, alternatives), by_torch(spec, logits, alternatives)
    rows = pa.array(clear(spec, logits))
    assert_same(found.filter(rows), expected.filter(rows))
    if spec is ONE:  # whichever of two equal ones is the label, it is as probable
        np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=NEAR)


@pytest.mark.parametrize("spec", SPECS)
def test_so_are_those_of_many_rows_and_categories(spec: Spec) -> None:
    categories = tuple(f"{top} > {below} > {leaf}" for top in "ABC" for below in "abcd" for leaf in range(25))
    spec = replace(spec, categories=categories, category_thresholds=())
    logits = np.random.default_rng(0).normal(-3, 3, (200, 300)).astype(np.float32)
    for alternatives in (0, 3):
        assert_same(reader_of(spec).answers(logits, alternatives), by_torch(spec, logits, alternatives))


@given(LOGITS)
@settings(max_examples=100)
def test_answers_are_judged_as_logits_are(logits: np.ndarray) -> None:
    sets = Ragged(np.zeros(len(logits), np.int32), np.arange(len(logits) + 1))
    expected = head_of(ONE, "cpu").judge(torch.from_numpy(logits), sets)
    found = as_judged(by_torch(ONE, logits, 2), Taxonomy(CATEGORIES))
    assert found.keys() == {"given", "certainty"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@given(
    arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 60)), elements=st.integers(0, 4).map(float)),
    st.integers(0, 70),
)
@settings(max_examples=300)
def test_the_best_are_the_highest_and_of_equal_ones_the_first(values: np.ndarray, count: int) -> None:
    expected = [[column for _, column in sorted(zip(-row, range(len(row)), strict=True))][:count] for row in values]
    assert best(values, count).tolist() == expected


def test_scores_become_probabilities_by_a_sigmoid() -> None:
    scores, words = np.array([[-1.0, 0.2, 2.0], [-3.0, -2.0, -2.5]], np.float32), Words(temperature=0.4, shift=0.1)
    sigmoid = 1 / (1 + np.exp(-(scores - 0.1) / 0.4))
    for spec, expected in ((ONE, sigmoid / sigmoid.sum(axis=1, keepdims=True)), (MANY, sigmoid)):
        reader = reader_of(replace(spec, categories=("A", "B", "C"), category_thresholds=()))
        logits = reader.logits(scores, words)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(reader.probabilities(logits), expected, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_the_loss_is_that_of_the_head_of_a_network(spec: Spec) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (8, 5)).astype(np.float32)
    sets, head = Ragged(np.arange(8, dtype=np.int32) % 5, np.arange(9)), head_of(spec, "cpu")
    expected = head.losses(torch.from_numpy(logits), head.targets(sets)).mean().item()
    found = reader_of(spec).loss(logits, np.arange(5) == np.arange(8)[:, None] % 5)
    assert found * (5 if spec is MANY else 1) == pytest.approx(expected, rel=1e-5), "of sets, a mean over categories"


def test_extreme_scores_have_probabilities_that_are_numbers() -> None:
    scores = np.array([[-1e4, 1e4, 0.0, -1e4, 1e4], [-1e4] * 5], np.float32)
    for spec in SPECS:
        reader = reader_of(spec)
        logits = reader.logits(scores, Words(temperature=1e-3))
        confidence = reader.answers(logits, 1)["confidence"].to_numpy()
        assert np.isfinite(reader.probabilities(logits)).all()
        assert ((confidence >= 0) & (confidence <= 1)).all()
