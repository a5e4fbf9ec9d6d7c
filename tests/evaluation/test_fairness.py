"""Whether some groups of products get worse answers than others."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fairlearn.metrics import MetricFrame
from sklearn.metrics import accuracy_score

from cataloger.errors import ConfigError
from cataloger.evaluation.comparison import compare_predictions
from cataloger.evaluation.fairness import LEAST_ROWS, Fairness, Group, between, judge
from cataloger.evaluation.groups_page import groups_metrics, groups_page, groups_table
from cataloger.evaluation.predictions import About, Predictions
from cataloger.evaluation.promotion import check

NAMES = np.array(["A > x", "A > y", "B > z", "B > w"])
ABOUT = About("m", "c", "f", "id", "category_path", "all", tuple(NAMES), 1.0)


def said(true: np.ndarray, given: np.ndarray, **columns: object) -> Predictions:
    rows = len(true)
    confidence = np.random.default_rng(5).uniform(0.5, 1, rows)
    table = {
        "row": np.arange(rows),
        "id": np.arange(rows),
        "text": [f"text {row}" for row in range(rows)],
        **{f"slice.{name}": pa.array(values) for name, values in columns.items()},
        "true_category": NAMES[true],
        "category": NAMES[given],
        "confidence": confidence,
        "needs_review": confidence < 0.6,
    }
    return Predictions(pa.table(table), ABOUT)


def answered(true: np.ndarray, share: np.ndarray, seed: int = 0) -> np.ndarray:
    """Right with these probabilities."""
    random = np.random.default_rng(seed)
    wrong = (true + random.integers(1, 4, len(true))) % 4
    return np.where(random.random(len(true)) < share, true, wrong)


def by_name(found: Fairness) -> dict[str, Group]:
    return {group.name: group for group in found.groups}


def test_a_group_that_is_answered_worse_is_found_and_counted_as_fairlearn_does() -> None:
    random = np.random.default_rng(1)
    true, brand = random.integers(0, 4, 3_000), random.choice(["big", "small", "middle"], 3_000)
    given = answered(true, np.where(brand == "small", 0.6, 0.9))
    (found,) = judge(said(true, given, brand=brand), ["brand"])
    frame = MetricFrame(metrics=accuracy_score, y_true=true, y_pred=given, sensitive_features=brand)
    groups = by_name(found)
    for name, group in groups.items():
        assert group.figures["accuracy"].value == pytest.approx(frame.by_group[name])
        assert group.figures["accuracy"].low < group.figures["accuracy"].value < group.figures["accuracy"].high
    assert found.worst is groups["small"]
    assert groups["small"].verdict == "worse, also within the same categories"
    assert groups["small"].within is not None
    assert groups["small"].within.value == pytest.approx(-0.3, abs=0.04)
    assert found.gap == pytest.approx(0.3, abs=0.03)
    assert found.clearly_worse == 1
    assert groups_metrics([found])["groups/brand/clearly_worse"] == 1


def test_a_group_that_only_sells_harder_products_is_told_apart() -> None:
    """Simpson's paradox: within each category both brands are answered equally well."""
    random = np.random.default_rng(2)
    brand = random.choice(["easy", "hard"], 8_000)
    true = np.where(random.random(8_000) < np.where(brand == "hard", 0.8, 0.2), 3, random.integers(0, 3, 8_000))
    given = answered(true, np.where(true == 3, 0.5, 0.95))
    (found,) = judge(said(true, given, brand=brand), ["brand"])
    hard = by_name(found)["hard"]
    assert hard.figures["accuracy"].differs
    assert hard.verdict == "worse, but not clearly within the same categories"
    assert hard.within is not None
    assert abs(hard.within.value) < 0.03
    assert hard.within.low < 0 < hard.within.high


def test_the_difference_within_categories_by_hand() -> None:
    """Two strata: 40 of 50 against 90 of 100 right, and 30 of 60 against 30 of 40."""
    strata = [(0, "g", 50, 40), (0, "o", 100, 90), (1, "g", 60, 30), (1, "o", 40, 30)]
    true = np.concatenate([[category] * rows for category, _, rows, _ in strata])
    given = np.concatenate([[category] * right + [2] * (rows - right) for category, _, rows, right in strata])
    group = np.concatenate([[name] * rows for _, name, rows, _ in strata])
    (found,) = judge(said(true, given, group=group), ["group"])
    weights = np.array([50 * 100 / 150, 60 * 40 / 100])
    expected = float((weights * np.array([0.8 - 0.9, 0.5 - 0.75])).sum() / weights.sum())
    within = by_name(found)["g"].within
    assert within is not None
    assert within.value == pytest.approx(expected)
    # Cochran, Mantel and Haenszel without a continuity correction.
    apart = (40 - 50 * 130 / 150) + (30 - 60 * 60 / 100)
    variance = 50 * 100 * 130 * 20 / (150**2 * 149) + 60 * 40 * 60 * 40 / (100**2 * 99)
    import scipy.stats

    assert within.p_value == pytest.approx(scipy.stats.chi2.sf(apart**2 / variance, 1))


def test_chance_alone_hardly_ever_makes_a_group_worse() -> None:
    wrong = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        true, brand = random.integers(0, 4, 2_000), random.integers(0, 20, 2_000).astype(str)
        (found,) = judge(said(true, answered(true, np.full(2_000, 0.8), seed), brand=brand), ["brand"])
        wrong += any(figure.differs for group in found.groups for figure in group.figures.values())
        wrong += sum(bool(group.misjudged) for group in found.groups)
        lang = np.where(random.random(2_000) < 0.9, "large", "small")
        (uneven,) = judge(said(true, answered(true, np.full(2_000, 0.8), seed), lang=lang), ["lang"])
        wrong += any(figure.differs for group in uneven.groups for figure in group.figures.values())
    assert wrong <= 24, "of 80 judgements with four figures each, at 5%"


def test_categories_that_a_group_is_given_too_often() -> None:
    random = np.random.default_rng(3)
    true, brand = random.integers(0, 4, 2_000), random.choice(["a", "b"], 2_000)
    given = np.where((brand == "a") & (true == 0) & (random.random(2_000) < 0.5), 1, true)
    (found,) = judge(said(true, given, brand=brand), ["brand"])
    named = {one.category: one for one in by_name(found)["a"].misjudged}
    assert set(named) == {"A > x", "A > y"}
    assert named["A > x"].given < named["A > x"].true
    assert named["A > y"].given > named["A > y"].true
    assert by_name(found)["b"].misjudged == ()


def test_small_groups_and_those_without_a_value_are_said() -> None:
    true = np.zeros(300, int)
    brand = np.array(["big"] * 180 + [None] * 70 + ["small"] * (LEAST_ROWS - 1) + ["one"], object)
    (found,) = judge(said(true, true, brand=brand), ["brand"])
    assert [(group.name, group.rows) for group in found.groups] == [("big", 180), ("none", 70)]
    assert found.unjudged == (2, LEAST_ROWS)
    assert found.names == ("small", "one")
    page = groups_page([found], ABOUT)
    assert "2 groups with 50 products are not judged" in page
    assert len(groups_table([found])) == 10


def test_a_column_of_one_group_has_nothing_to_compare_with() -> None:
    true = np.zeros(100, int)
    (found,) = judge(said(true, true, brand=["a"] * 100), ["brand"])
    assert found.gap is None
    assert found.groups[0].verdict == "no clear difference"
    assert "No group gets clearly worse" in groups_page([found], ABOUT)


def test_no_protected_group_may_get_worse() -> None:
    random = np.random.default_rng(4)
    true, lang = random.integers(0, 4, 4_000), random.choice(["de", "en", "fr"], 4_000, p=[0.1, 0.6, 0.3])
    before = answered(true, np.full(4_000, 0.8))
    after = np.where(lang == "de", answered(true, np.full(4_000, 0.6), 7), true)
    pair = compare_predictions(said(true, before, lang=lang), said(true, after, lang=lang), ("old", "new"), ["lang"])
    (failed,) = [one for one in check(pair, "accuracy", 1.5) if one.reason.startswith("guard lang")]
    assert not failed.passed
    assert failed.reason.startswith("guard lang: de is worse, 0.")
    good = replace(pair, protected=tuple(one for one in pair.protected if one.accuracy.name != "de"))
    assert "guard lang: none of the 2 groups of 50 products or more is significantly worse" in [
        one.reason for one in check(good, "accuracy", 1.5)
    ]
    few = compare_predictions(
        said(true[:90], before[:90], lang=[str(row) for row in range(90)]),
        said(true[:90], after[:90], lang=[str(row) for row in range(90)]),
        ("old", "new"),
        ["lang"],
    )
    assert "guard lang: no group has 50 products" in " ".join(
        one.reason for one in check(few, "accuracy", 1.5) if not one.passed
    )
    with pytest.raises(ConfigError, match="--protect brand: the models were evaluated without it"):
        between(said(true, before, lang=lang), said(true, after), ["brand"])
