"""Any number of categories per product: a sigmoid for each, and a threshold."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn import functional as F

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged
from cataloger.heads.arrays import set_answers, set_confidence
from cataloger.heads.losses import SetLoss
from cataloger.heads.one_category import LEAST, NEVER, joined_logits
from cataloger.heads.ranked import Ranked
from cataloger.spec import Spec, Words

FloatArray = npt.NDArray[np.float32]
# No threshold lies below: of a validation row only the categories above it are kept.
FLOOR = 0.02
# Of fewer validation rows a threshold would be chance; such a category takes the best common one.
ENOUGH = 5
# Between equal scores of neighbouring columns: far more than the last bit of a double, and nothing beside that of a float.
APART = 1e-14


class ManyCategories:
    """Sigmoids; the confidence of an answer is that the row has just these categories, taking them as independent."""

    def __init__(self, spec: Spec, device: torch.device | str) -> None:
        self.spec, self.device = spec, device
        self.thresholds = torch.tensor(spec.category_thresholds or [0.5] * len(spec.categories), device=device)

    def targets(self, sets: Ragged) -> torch.Tensor:
        """float32 [rows, categories]: 1 where the row has the category."""
        row, known = np.repeat(np.arange(len(sets)), sets.lengths), _values(sets) >= 0
        matrix = np.zeros((len(sets), len(self.spec.categories)), np.float32)
        matrix[row[known], _values(sets)[known]] = 1
        return torch.from_numpy(matrix).to(self.device)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)

    def objective(self, config: TrainConfig, sets: Ragged) -> SetLoss:
        return SetLoss(config.long_tail)

    def with_words(self, logits: torch.Tensor, ranked: Ranked, words: Words) -> torch.Tensor:
        return joined_logits(logits, ranked, torch.logit(torch.from_numpy(ranked.probabilities), eps=LEAST), words)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return sigmoid(logits / self.spec.temperature)

    def read(self, logits: torch.Tensor, alternatives: int) -> tuple[torch.Tensor, ...]:
        logits = logits / self.spec.temperature
        probabilities = sigmoid(logits)
        chosen = probabilities >= self.thresholds
        count = chosen.sum(dim=1)
        # Those that reach their threshold first, by probability; a more probable one may stay below its own.
        width = min(int(count.max()) + alternatives, logits.shape[1]) if len(logits) else 0
        top = _highest(torch.where(chosen, probabilities.double(), probabilities.double() - 1), width)
        beyond = torch.arange(width, device=top.device) >= count.unsqueeze(1) + alternatives
        columns = top.masked_fill(beyond, -1), probabilities.gather(1, top), logits.gather(1, top)
        return *columns, count, _none(logits)

    def join(self, batches: Sequence[tuple[torch.Tensor, ...]], place: IntArray) -> pa.Table:
        widest = max(top.shape[1] for top, *_ in batches)

        def wide(values: torch.Tensor, nothing: float = 0.0) -> torch.Tensor:
            return F.pad(values, (0, widest - values.shape[1]), value=nothing)

        padded = [(wide(top, -1), wide(scores), wide(logits), *rest) for top, scores, logits, *rest in batches]
        label, score, logit, count, none = (
            torch.cat(column).cpu().numpy()[place] for column in zip(*padded, strict=True)
        )
        return set_answers(label, score, logit, count, none)

    def judge(self, logits: torch.Tensor, sets: Ragged) -> dict[str, npt.NDArray[Any]]:
        """Of N rows, the P pairs of a row and a category whose probability reaches FLOOR, and the T categories that they have."""
        targets = self.targets(sets)
        loss = self.losses(logits, targets)
        logits = logits / self.spec.temperature
        probability = sigmoid(logits)
        above = probability >= FLOOR
        judged = {
            "loss": loss,  # [N] before scaling
            "none": _none(logits),  # [N]
            "pairs": above.sum(dim=1),  # [N] how many of P
            "label": above.nonzero(as_tuple=True)[1],  # [P]
            "probability": probability[above],  # [P]
            "logit": logits[above],  # [P] scaled
            "right": targets[above] > 0,  # [P]
        }
        arrays = {name: tensor.cpu().numpy() for name, tensor in judged.items()}
        return {**arrays, "truths": sets.lengths, "true": _values(sets)}  # [N] how many of T; [T]

    def fit(self, judged: dict[str, npt.NDArray[Any]], target_precision: float) -> tuple[dict[str, float], Spec]:
        # Imported here: of use to training and evaluation only.
        from cataloger.heads.metrics import expected_calibration_error, set_scores, trusted_from
        from cataloger.heads.sets import Sets, exact, indicators

        size, label, pairs = len(self.spec.categories), judged["label"], judged["pairs"]
        true = judged["true"]
        positives = np.bincount(true[true >= 0], minlength=size)
        thresholds = fit_thresholds(label, judged["probability"], judged["right"], positives)
        of = np.repeat(np.arange(len(pairs)), pairs)
        # In the precision in which `read` compares.
        chosen = judged["probability"] >= thresholds.astype(np.float32)[label]
        counts = np.bincount(of[chosen], minlength=len(pairs))

        def sets(labels: IntArray, lengths: IntArray) -> Sets:
            """By number; the last one stands for all that the model does not know."""
            ids = np.where(labels < 0, size, labels)
            return Sets([str(number) for number in range(size + 1)], indicators(ids, lengths, size + 1))

        true_sets, given_sets = sets(true, judged["truths"]), sets(label[chosen], counts)
        scores, right = set_scores(true_sets, given_sets), exact(true_sets, given_sets)
        confidence = set_confidence(judged["none"], counts, judged["logit"][chosen]).astype(np.float64)
        once = judged.get("distinct", np.ones(len(right), bool))
        # What may be trusted is shown by rows that the thresholds of categories were not fitted on: each half of the rows by those of the other.
        half, truly = np.cumsum(once) % 2 == 0, np.repeat(np.arange(len(pairs)), judged["truths"])
        apart, unseen = np.zeros(len(pairs)), np.zeros(len(pairs), bool)
        for mine in (half, ~half):
            fitted_on, others = (once & ~mine)[of], true[(once & ~mine)[truly]]
            fitted = fit_thresholds(
                label[fitted_on],
                judged["probability"][fitted_on],
                judged["right"][fitted_on],
                np.bincount(others[others >= 0], minlength=size),
            )
            taken = judged["probability"] >= fitted.astype(np.float32)[label]
            lengths = np.bincount(of[taken], minlength=len(pairs))
            apart[mine] = set_confidence(judged["none"], lengths, judged["logit"][taken])[mine]
            unseen[mine] = exact(true_sets, sets(label[taken], lengths))[mine]
        threshold = trusted_from(apart[once], unseen[once], target_precision)
        metrics = {
            "val_loss": float(judged["loss"].mean()),
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_micro_f1": scores.micro_f1,
            "val_example_f1": scores.example_f1,
            "val_calibration_error": expected_calibration_error(confidence, right),
            "val_coverage": float((confidence >= threshold).mean()),
            "val_temperature": self.spec.temperature,
        }
        own = tuple(float(value) for value in thresholds)
        return metrics, replace(self.spec, thresholds=(min(threshold, NEVER),), category_thresholds=own)


def sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """By way of double precision: PyTorch's arithmetic for many numbers and for the last few of an array differ in the last bit of a float,
    and a row may stand anywhere in its batch."""
    return torch.sigmoid(logits.double()).float()


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """[rows, count] columns of the highest scores, which are in double precision, of equal ones the first column first, whatever else is in the batch."""
    columns = torch.arange(scores.shape[1], dtype=torch.float64, device=scores.device)
    return torch.topk(scores - APART * columns, count, dim=1).indices


def _none(logits: torch.Tensor) -> torch.Tensor:
    """float64 [rows] log of the probability that a row has none of the categories, of scaled logits.

    log(1 - p) is log sigmoid(|x|) - relu(x): the first is small; the second, which the logits of the row's own categories cancel
    later, is summed exactly.
    """
    return F.logsigmoid(logits.double().abs()).sum(dim=1) - F.relu(logits).sum(dim=1, dtype=torch.float64)


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


def _values(sets: Ragged) -> npt.NDArray[np.int32]:
    """All numbers end to end; of a slice, its own."""
    return sets.flat[sets.offsets[0] : sets.offsets[-1]]
