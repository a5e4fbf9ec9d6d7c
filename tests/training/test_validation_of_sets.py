import numpy as np
import pytest
import torch

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged, Tokens
from cataloger.heads.base import head_of
from cataloger.heads.many_categories import ENOUGH, FLOOR, fit_thresholds
from cataloger.heads.one_category import NEVER
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.training.examples import Examples
from cataloger.training.validation import Validation

CATEGORIES = ("A > x", "A > y", "B")
CPU = torch.device("cpu")


def validation(sets: list[list[int]], target: float = 0.9) -> Validation:
    lengths = np.arange(len(sets)) % 50 + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.array([label for labels in sets for label in labels], np.int32)
    labels = Ragged(flat, np.concatenate([[0], np.cumsum([len(labels) for labels in sets])]))
    rows = Examples(Tokens(np.zeros(offsets[-1], np.int32), offsets), labels)
    spec = Spec(CATEGORIES, ("title",), 64, "mean", "", head=MANY_CATEGORIES)
    return Validation(rows, spec, TrainConfig(target_precision=target))


def score(logits: torch.Tensor, sets: list[list[int]], target: float = 0.9) -> tuple[dict[str, float], Spec]:
    def logits_of(tokens: Tokens, batch: IntArray) -> torch.Tensor:
        return logits[batch.copy()]

    return validation(sets, target).score(logits_of, CPU)


def drawn(count: int, sharpness: float) -> tuple[torch.Tensor, list[list[int]]]:
    """Labels drawn from the sigmoid of the logits, which are then made too sharp."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 3, generator=generator)
    has = torch.rand(count, 3, generator=generator) < torch.sigmoid(logits)
    return sharpness * logits, [row.nonzero()[:, 0].tolist() for row in has]


def test_temperature_and_the_confidence_of_a_whole_set_are_calibrated() -> None:
    metrics, spec = score(*drawn(8_000, 2.5))
    assert spec.temperature == metrics["val_temperature"] == pytest.approx(2.5, rel=0.1)
    assert metrics["val_calibration_error"] < 0.03
    assert len(spec.category_thresholds) == 3


def test_metrics_by_hand() -> None:
    # Sure of all, wrong once: row 2 has a category more.
    sets = [[0, 2], [1], [0, 1], []] * 10
    logits = torch.tensor([[9.0, -9.0, 9.0], [-9.0, 9.0, -9.0], [9.0, -9.0, -9.0], [-9.0, -9.0, -9.0]]).repeat(10, 1)
    metrics, _ = score(logits, sets)
    assert metrics["val_accuracy"] == 0.75
    assert metrics["val_micro_f1"] == pytest.approx(2 * 40 / (50 + 40))
    assert metrics["val_macro_f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert metrics["val_example_f1"] == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)


def test_each_category_has_the_threshold_of_its_best_f1() -> None:
    label = np.repeat([0, 1, 2], [20, 20, 4])
    probability = np.concatenate([np.linspace(0.9, 0.1, 20), np.linspace(0.9, 0.1, 20), [0.9, 0.8, 0.7, 0.6]])
    true = np.concatenate([np.arange(20) < 5, np.arange(20) < 15, [True, False, False, False]])
    positives = np.array([5, 15, ENOUGH - 1])
    found = fit_thresholds(label, probability.astype(np.float32), true, positives)
    step = 0.8 / 19
    assert found[0] == pytest.approx(0.9 - 4.5 * step, abs=1e-6)
    assert found[1] == pytest.approx(0.9 - 14.5 * step, abs=1e-6)
    assert found[2] == pytest.approx(
        fit_thresholds(np.zeros(44, int), probability.astype(np.float32), true, np.array([24]))[0]
    )
    assert fit_thresholds(label[:0], probability[:0].astype(np.float32), true[:0], positives).tolist() == [0.5] * 3


def test_no_threshold_is_below_what_is_kept_of_a_row() -> None:
    sets = [[0]] * 50
    _, spec = score(torch.full((50, 3), -1.0), sets)
    assert min(spec.category_thresholds) >= FLOOR


def test_where_the_target_precision_is_out_of_reach_every_set_needs_review() -> None:
    _, spec = score(torch.zeros(50, 3), [[0], [1]] * 25, target=0.99)
    assert spec.thresholds == (NEVER,)


def test_what_is_trusted_is_shown_by_rows_that_no_threshold_was_fitted_on() -> None:
    """Probabilities that say nothing: a category's best threshold is right by chance, 62% of the time on its own rows, and half of the time on others."""
    rows, rng = 1_200, np.random.default_rng(0)
    categories = tuple(f"c{number:02}" for number in range(60))
    likely = np.arange(rows) % len(categories)
    logits = np.full((rows, len(categories)), -12, np.float32)
    logits[np.arange(rows), likely] = rng.normal(0, 2, rows)
    lengths = (rng.random(rows) < 0.5).astype(np.int64)
    sets = Ragged(likely[lengths > 0].astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    head = head_of(Spec(categories, ("title",), 64, "mean", "", head=MANY_CATEGORIES), CPU)
    judged = head.judge(torch.from_numpy(logits), sets)
    metrics, spec = head.fit(judged, 0.55)
    assert metrics["val_accuracy"] > 0.6
    assert spec.thresholds == (NEVER,)
    assert head.fit(judged, 0.45)[1].thresholds < (1,)


def test_unknown_categories_count_as_missed() -> None:
    metrics, _ = score(torch.tensor([[9.0, -9.0, -9.0]]).repeat(20, 1), [[0], [0, -1]] * 10)
    assert metrics["val_accuracy"] == 0.5
