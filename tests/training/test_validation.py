import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cataloger.config import TrainConfig
from cataloger.data import batching
from cataloger.data.batching import IntArray, Tokens
from cataloger.heads.one_category import NEVER
from cataloger.spec import Spec
from cataloger.taxonomy import Taxonomy
from cataloger.training import validation
from cataloger.training.examples import Examples
from cataloger.training.validation import Validation

TREE = Taxonomy.from_paths(["A", "A > x", "A > y", "B > z"])
CPU = torch.device("cpu")


def rows(labels: list[int]) -> Examples:
    lengths = np.arange(len(labels)) % 50 + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Examples.of_one_category(Tokens(np.zeros(offsets[-1], np.int32), offsets), np.array(labels))


def score(logits: torch.Tensor, labels: list[int], target: float = 0.9) -> tuple[dict[str, float], Spec]:
    spec = Spec(TREE.categories, ("title",), 64, "mean", "")

    def logits_of(tokens: Tokens, batch: IntArray) -> torch.Tensor:
        return logits[batch.copy()]

    return Validation(rows(labels), spec, TrainConfig(target_precision=target)).score(logits_of, CPU)


def overconfident(count: int, sharpness: float) -> tuple[torch.Tensor, list[int]]:
    """Labels drawn from the softmax of the logits, which are then made too sharp."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 4, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels.tolist()


def test_the_temperature_undoes_overconfidence() -> None:
    metrics, spec = score(*overconfident(4_000, 2.5))
    assert spec.temperature == metrics["val_temperature"] == pytest.approx(2.5, rel=0.1)
    assert metrics["val_calibration_error"] < 0.03


def test_rows_beyond_those_that_fit_the_temperature_are_scored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = overconfident(4_000, 2.5)
    all_kept, _ = score(logits, labels)
    monkeypatch.setattr(validation, "LOGITS_KEPT", 4 * 1_000)
    some_kept, spec = score(logits, labels)
    for name in ("val_accuracy", "val_weighted_f1", "val_macro_f1", "val_loss"):
        assert some_kept[name] == pytest.approx(all_kept[name])
    assert spec.temperature == pytest.approx(2.5, rel=0.15)


def test_many_categories_are_scored_in_batches_of_fewer_rows_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, labels = overconfident(500, 2.5)
    expected, _ = score(logits, labels)
    monkeypatch.setattr(batching, "LOGITS", 7 * len(TREE.categories))
    found, spec = score(logits, labels)
    assert found == pytest.approx(expected)
    batches = Validation(rows(labels), spec, TrainConfig()).batches
    assert max(map(len, batches)) == 7


def test_each_level_has_the_threshold_of_its_own_precision() -> None:
    # The top level is always right; the category is right where it is sure.
    sure = torch.tensor([[-50.0, 5.0, 0.0, -50.0]]).repeat(100, 1)
    unsure = torch.tensor([[-50.0, 1.0, 0.0, -50.0]]).repeat(100, 1)
    labels = [1] * 100 + [1, 2] * 50
    metrics, spec = score(torch.cat([sure, unsure]), labels, 0.95)
    top, below = spec.thresholds
    assert top == pytest.approx(1.0, abs=1e-5), "the least certainty there is"
    sure_confidence = torch.softmax(sure[0] / spec.temperature, dim=0)[1].item()
    assert below == pytest.approx(sure_confidence, rel=1e-5)
    assert metrics["val_coverage"] == 0.5


def test_rows_that_belong_together_show_a_precision_once() -> None:
    """Without words, as models of pictures have none: forty variants of ten products."""
    logits, labels = torch.tensor([[-50.0, 5.0, 0.0, -50.0]]).repeat(400, 1), [1] * 400
    spec = Spec(TREE.categories, ("title",), 64, "mean", "")

    def thresholds(keys: IntArray) -> tuple[float, ...]:
        own = replace(rows(labels), keys=keys.astype(np.uint64))
        found = Validation(own, spec, TrainConfig(target_precision=0.9)).score(
            lambda _, batch: logits[batch.copy()], CPU
        )
        return found[1].thresholds

    assert max(thresholds(np.arange(400))) <= 1
    assert thresholds(np.arange(400) % 10) == (NEVER, NEVER)


def test_a_precision_that_is_never_reached_trusts_nothing() -> None:
    metrics, spec = score(torch.tensor([[0.0, 5.0, 0.0, 0.0]]).repeat(50, 1), [3] * 50)
    assert spec.thresholds == (NEVER, NEVER)
    assert metrics["val_coverage"] == metrics["val_accuracy"] == 0.0


def test_an_inner_category_is_right_only_as_itself() -> None:
    inner = torch.tensor([[5.0, 4.0, 0.0, -50.0]]).repeat(40, 1)
    metrics, _ = score(inner, [1] * 40)
    assert metrics["val_accuracy"] == 0.0
    assert metrics["val_coverage"] == 0.0, "that the product lies somewhere below A does not make A its category"


def test_unknown_categories_are_wrong_and_have_no_loss() -> None:
    metrics, spec = score(torch.zeros(10, 4), [-1] * 10)
    assert math.isnan(metrics["val_loss"])
    assert (metrics["val_accuracy"], spec.temperature) == (0.0, 1.0)


def test_upper_levels_have_an_accuracy_of_their_own() -> None:
    # Labels are A, A > x, A > y, B > z: the second row is wrong below A, the third from the top on.
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    metrics, _ = score(logits, [1, 2, 3, -1])
    assert (metrics["val_level_1_accuracy"], metrics["val_accuracy"]) == (0.5, 0.25)
