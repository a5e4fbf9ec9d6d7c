"""Validation rows of any number of categories → metrics, and the temperature and thresholds that go with the model."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cataloger.bundle import Spec
from cataloger.data.batching import IntArray, Ragged
from cataloger.heads.metrics import coverage_at, expected_calibration_error, set_scores
from cataloger.heads.sets import Sets, exact, indicators
from cataloger.training.scoring import NEVER, Scorer

FloatArray = npt.NDArray[np.float32]
# No threshold lies below: a row is kept as its categories above it, and the confidence that it has none of the others.
FLOOR = 0.02
# Of fewer validation rows a threshold would be chance; such a category takes the best common one.
ENOUGH = 5


@dataclass(frozen=True)
class Judged:
    """Answers for N validation rows, and their P pairs of row and category whose probability reaches FLOOR."""

    rows: IntArray  # [N]
    loss: FloatArray  # [N] before scaling
    without: FloatArray  # [N] log of the probability that the row has none of the other categories
    row: IntArray  # [P]
    label: IntArray  # [P]
    probability: FloatArray  # [P]


class SetValidation(Scorer):
    """Of any number of categories each."""

    judged = Judged

    def _true(self, batch: IntArray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.rows.indicators(batch, len(self.spec.categories))).to(device)

    def _losses(self, logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, true, reduction="none")

    def _judge(self, batch: IntArray, logits: torch.Tensor, temperature: float) -> Judged:
        loss = self._losses(logits, self._true(batch, logits.device)).sum(dim=1)
        logits = logits / temperature
        probability = torch.sigmoid(logits)
        above = probability >= FLOOR
        without = F.logsigmoid(-logits).masked_fill(above, 0.0).sum(dim=1)
        row, label = above.nonzero(as_tuple=True)
        arrays = (tensor.cpu().numpy() for tensor in (loss, without, row, label, probability[above]))
        loss_array, without_array, rows, labels, probabilities = arrays
        return Judged(batch, loss_array, without_array, batch[rows], labels, probabilities)

    def _summarise(self, judged: Judged, temperature: float) -> tuple[dict[str, float], Spec]:
        sets = self.rows.sets
        size = len(self.spec.categories)
        owner = np.repeat(np.arange(len(self.rows)), sets.lengths)
        true = np.isin(judged.row * size + judged.label, (owner * size + sets.flat)[sets.flat >= 0])
        positives = np.bincount(sets.flat[sets.flat >= 0], minlength=size)
        thresholds = fit_thresholds(judged.label, judged.probability, true, positives)
        chosen = judged.probability >= thresholds[judged.label]
        predicted = _grouped(judged.row[chosen], judged.label[chosen], len(self.rows))
        true_sets, given_sets = (_sets(rows, size) for rows in (sets, predicted))
        scores = set_scores(true_sets, given_sets)
        confidence = self._confidence(judged, chosen)
        right = exact(true_sets, given_sets)
        coverage, threshold = coverage_at(confidence, right, self.target_precision)
        metrics = {
            "val_loss": float(judged.loss.mean()),
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_micro_f1": scores.micro_f1,
            "val_example_f1": scores.example_f1,
            "val_calibration_error": expected_calibration_error(confidence, right),
            "val_coverage": coverage,
            "val_temperature": temperature,
        }
        spec = replace(
            self.spec,
            temperature=temperature,
            thresholds=(min(threshold, NEVER),),
            category_thresholds=tuple(float(value) for value in thresholds),
        )
        return metrics, spec

    def _confidence(self, judged: Judged, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """[validation rows] that a row has just its chosen categories, as `heads.set_confidence`."""
        own = np.where(chosen, judged.probability, 1 - judged.probability).astype(np.float64)
        logs = np.bincount(judged.row, np.log(np.maximum(own, 1e-30)), len(self.rows)).astype(np.float64)
        logs[judged.rows] += judged.without
        return np.exp(logs)


def fit_thresholds(
    labels: IntArray, probabilities: FloatArray, true: npt.NDArray[np.bool_], positives: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Per category, the probability from which on its F1 is highest. `positives` [categories] are the rows that have it.

    `labels`, `probabilities` and `true` [P] are pairs of a row and a category, and whether the row has it.
    """
    common = _best_threshold(probabilities, true, int(positives.sum()), 0.5)
    thresholds = np.full(len(positives), common)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(len(positives) + 1))
    for label in np.flatnonzero(positives >= ENOUGH):
        mine = order[starts[label] : starts[label + 1]]
        thresholds[label] = _best_threshold(probabilities[mine], true[mine], int(positives[label]), common)
    return thresholds


def _best_threshold(probabilities: FloatArray, true: npt.NDArray[np.bool_], positives: int, default: float) -> float:
    """Half-way between the last pair that is better taken and the next; `default` where nothing is right."""
    if not true.any():
        return default
    order = np.argsort(-probabilities, kind="stable")
    ranked = np.append(probabilities[order].astype(np.float64), FLOOR)
    f1 = 2 * np.cumsum(true[order]) / (np.arange(1, len(order) + 1) + positives)
    f1[ranked[:-1] == ranked[1:]] = -1  # no threshold lies between equals
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def _grouped(rows: IntArray, labels: IntArray, count: int) -> Ragged:
    """The labels of each of `count` rows."""
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return Ragged(labels[order].astype(np.int32), offsets)


def _sets(rows: Ragged, categories: int) -> Sets:
    """By number; the last one stands for all that the model does not know."""
    ids = np.where(rows.flat < 0, categories, rows.flat)
    return Sets([str(number) for number in range(categories + 1)], indicators(ids, rows.lengths, categories + 1))
