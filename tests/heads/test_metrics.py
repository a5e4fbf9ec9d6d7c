import math

import numpy as np
import pyarrow as pa
import pytest

from cataloger.heads.metrics import (
    coverage_at,
    expected_calibration_error,
    flat_scores,
    hierarchical_f1,
    level_scores,
    precision_by_coverage,
    set_scores,
    trusted_from,
)
from cataloger.heads.sets import Sets

TRUE = ["A > x", "A > x", "A > y", "B > z"]
PREDICTED = ["A > x", "A > y", "A > y", "A > x"]


def single(*sides: list[str]) -> list[Sets]:
    return Sets.of(*map(pa.array, sides))


def test_scores_by_level_by_hand() -> None:
    top, leaf = level_scores(*single(TRUE, PREDICTED))
    assert top.accuracy == 0.75
    assert leaf.accuracy == 0.5
    # F1: x 2*1/(2+2) = .5, y 2*1/(1+2) = 2/3, z 0
    assert leaf.macro_f1 == pytest.approx((0.5 + 2 / 3) / 3)
    assert leaf.weighted_f1 == pytest.approx((2 * 0.5 + 2 / 3) / 4)


def test_levels_below_a_short_path_stand_for_the_path() -> None:
    levels = level_scores(*single(["A", "A > x"], ["A", "A"]))
    assert [level.accuracy for level in levels] == [1.0, 0.5]


def test_hierarchical_f1_by_hand() -> None:
    # shared nodes: 2 + 1 + 2 + 0 of 8 on each side
    assert hierarchical_f1(*single(TRUE, PREDICTED)) == pytest.approx(5 / 8)


def test_scores_of_sets_by_hand() -> None:
    true = [["A > x", "B > z"], ["A > y"], []]
    given = [["A > x"], ["A > y", "B > z"], []]
    true, given = Sets.of(pa.array(true), pa.array(given))
    scores = set_scores(true, given)
    assert scores.accuracy == pytest.approx(1 / 3)
    # A > x and A > y are right once each; B > z was missed once and given once for nothing.
    assert scores.macro_f1 == pytest.approx(2 / 3)
    assert scores.weighted_f1 == pytest.approx(2 / 3)
    assert scores.micro_f1 == pytest.approx(2 * 2 / (3 + 3))
    assert scores.example_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    top, _ = level_scores(true, given)
    assert top.example_f1 == scores.example_f1
    # With their ancestors: {A, x, B, z} and {A, x}, {A, y} and {A, y, B, z}.
    assert hierarchical_f1(true, given) == pytest.approx(2 * 4 / 12)


def test_rows_of_one_category_have_the_same_scores_as_sets() -> None:
    numbers = np.random.default_rng(0).integers(0, 5, (2, 200))
    assert set_scores(*single(*(row.astype(str) for row in numbers))) == flat_scores(*numbers)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)


def test_coverage_at_a_precision_takes_rows_of_equal_confidence_together() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.3])
    correct = np.array([True, True, False, True])
    coverage, precision, threshold = precision_by_coverage(confidence, correct)
    np.testing.assert_allclose(coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(precision, [1.0, 2 / 3, 0.75])
    np.testing.assert_allclose(threshold, [0.9, 0.8, 0.3])
    assert coverage_at(confidence, correct, 0.99) == (0.25, 0.9)
    assert coverage_at(confidence, ~correct, 0.99) == (0.0, float("inf"))


def test_what_is_trusted_keeps_its_promise_on_rows_that_were_not_looked_at() -> None:
    """Answers that are right as often as they say: in at least nine of ten catalogs those that are trusted are right often enough."""
    kept, shares = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        confidence = draw.beta(4, 1, 1_500)
        threshold = trusted_from(confidence, draw.random(1_500) < confidence, 0.9)
        later = np.random.default_rng(seed + 1_000).beta(4, 1, 20_000)
        kept.append(later[later >= threshold].mean() >= 0.9)
        shares.append((later >= threshold).mean())
    assert np.mean(kept) >= 0.9
    assert np.mean(shares) > 0.4, "and it is not for trusting next to nothing: 0.55 would be right"


def test_nothing_is_trusted_where_too_few_rows_could_show_it() -> None:
    for rows, threshold in ((0, math.inf), (66, math.inf), (67, 0.5)):
        assert trusted_from(np.full(rows, 0.5), np.ones(rows, bool), 0.95) == threshold
    assert trusted_from(np.full(5_000, 0.5), np.ones(5_000, bool), 1.0) == math.inf
    assert trusted_from(np.linspace(0, 1, 500), np.zeros(500, bool), 0.95) == math.inf


def test_rows_of_equal_confidence_are_trusted_together() -> None:
    confidence = np.repeat([0.9, 0.6, 0.2], 100)
    right = np.concatenate([np.ones(200, bool), np.zeros(100, bool)])
    assert trusted_from(confidence, right, 0.9) == 0.6
