import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from cataloger.evaluation.significance import Scored, accuracy_difference, differences, enough_samples, mcnemar
from cataloger.heads import metrics
from cataloger.heads.sets import Sets, exact

PATHS = ["A > x", "A > y", "B > z", "B", "C > u > v"]
KIND = pa.list_(pa.string())


def rows(seed: int, count: int, right: float) -> tuple[list[list[str]], list[list[str]], np.ndarray]:
    """True and given categories, as many of them right, and confidences with repeats."""
    random = np.random.default_rng(seed)
    true = random.choice(len(PATHS), count, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    given = np.where(random.random(count) < right, true, random.integers(0, len(PATHS), count))
    confidence = np.round(random.random(count), 2)
    return [[PATHS[i]] for i in true], [[PATHS[i]] for i in given], confidence


def scored(true: list[list[str]], given: list[list[str]], confidence: np.ndarray) -> Scored:
    return Scored(*sets(true, given), confidence, ["C > u > v", "B"])


def sets(true: list[list[str]], given: list[list[str]]) -> list[Sets]:
    """Over all names, so that models are comparable."""
    return Sets.of(pa.array(true, KIND), pa.array(given, KIND), pa.array([PATHS], KIND))[:2]


def by_metrics(true: list[list[str]], given: list[list[str]], confidence: np.ndarray) -> dict[str, float]:
    """The same scores from the functions that evaluation uses."""
    sides = sets(true, given)
    flat, right, counts = metrics.set_scores(*sides), exact(*sides), metrics.count_sets(*sides)
    tail = [f1 for path, f1 in zip(counts.categories, counts.f1, strict=True) if path in ("C > u > v", "B")]
    return {
        "accuracy": flat.accuracy,
        "weighted F1": flat.weighted_f1,
        "macro F1": flat.macro_f1,
        "tail macro F1": float(np.mean(tail)),
        "hierarchical F1": metrics.hierarchical_f1(*sides),
        "calibration error": metrics.expected_calibration_error(confidence, right),
        "coverage at 95%": metrics.coverage_at(confidence, right, 0.95)[0],
    }


@pytest.mark.parametrize("right", [0.3, 0.97])
def test_scores_are_those_of_evaluation_for_all_rows_and_for_a_sample_of_them(right: float) -> None:
    true, given, confidence = rows(0, 300, right)
    random = np.random.default_rng(1)
    drawn = random.integers(0, 300, 300)
    weights = np.stack([np.ones(300), np.bincount(drawn, minlength=300)], axis=1).astype(float)
    found = scored(true, given, confidence).scores(weights)
    for number, places in enumerate((range(300), drawn)):
        expected = by_metrics([true[i] for i in places], [given[i] for i in places], confidence[list(places)])
        assert {name: pytest.approx(values[number]) for name, values in found.items()} == expected


def test_scores_of_several_categories_per_row() -> None:
    random = np.random.default_rng(2)
    true, given = ([[path for path in PATHS if random.random() < 0.4] for _ in range(200)] for _ in range(2))
    confidence = random.random(200)
    found = scored(true, given, confidence).scores(np.ones((200, 1)))
    assert {name: pytest.approx(values[0]) for name, values in found.items()} == by_metrics(true, given, confidence)


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    true, first, confidence = rows(3, 400, 0.6)
    second = [list(path) if i % 3 else list(true[i]) for i, path in enumerate(first)]
    found = {d.name: d for d in differences(*(scored(true, given, confidence) for given in (first, second)))}
    random, apart = np.random.default_rng(9), []
    for _ in range(1_000):
        drawn = random.integers(0, 400, 400)
        one, other = (
            metrics.set_scores(*sets([true[i] for i in drawn], [given[i] for i in drawn])) for given in (first, second)
        )
        apart.append((other.accuracy - one.accuracy, other.macro_f1 - one.macro_f1))
    for name, values in zip(("accuracy", "macro F1"), np.transpose(apart), strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.012)
        assert found[name].high == pytest.approx(high, abs=0.012)
        assert found[name].better
        assert not found[name].worse
    assert found["hierarchical F1"].verdict == "better"


def test_equal_models_do_not_differ_and_the_lower_calibration_error_is_the_better_one() -> None:
    true, given, confidence = rows(4, 500, 0.8)
    one = scored(true, given, confidence)
    assert {d.verdict for d in differences(one, one)} == {"no clear difference"}
    sure = np.full(500, float(exact(*sets(true, given)).mean()))
    (calibration,) = [d for d in differences(one, scored(true, given, sure)) if d.name == "calibration error"]
    assert calibration.second == pytest.approx(0, abs=1e-9)
    assert calibration.by < 0
    assert calibration.better


def test_mcnemar_by_hand() -> None:
    first = np.array([True] * 5 + [False] * 15)
    second = np.array([True] * 3 + [False] * 2 + [True] * 10 + [False] * 5)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (2, 10)
    assert found.p_value == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert mcnemar(first, first).p_value == 1.0
    assert accuracy_difference("", first, second).by == pytest.approx(8 / 20)


def test_of_more_rows_fewer_samples_are_drawn() -> None:
    assert [enough_samples(rows) for rows in (0, 3_107, 100_000, 200_000, 10**6, 10**9)] == [1_000] * 3 + [
        500,
        200,
        200,
    ]
