"""One category per product: softmax over the categories, whose tree gives each ancestor the sum of what lies below it."""

import math
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
from cataloger.heads.arrays import category_answers
from cataloger.heads.losses import Loss
from cataloger.heads.ranked import Ranked
from cataloger.spec import Spec, Words
from cataloger.taxonomy import Taxonomy

# Above every confidence: where validation never reached the target precision, all rows need review.
NEVER = 1.01
# What words give a category at least: with 1e-3, both together have a higher loss on validation rows of three catalogs.
LEAST = 1e-6


class OneCategory:
    """Softmax; nothing waits for a batch while the next one is being packed."""

    def __init__(self, spec: Spec, device: torch.device | str) -> None:
        self.spec, self.taxonomy, self.device = spec, Taxonomy(spec.categories), device
        self.levels = Levels(self.taxonomy, device)

    def targets(self, sets: Ragged) -> torch.Tensor:
        return torch.from_numpy(sets.first()).to(self.device)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=-1)

    def objective(self, config: TrainConfig, sets: Ragged) -> Loss:
        counts = sets.counts_of_first(len(self.taxonomy))
        weights = (1.0,) if config.level_weights == "auto" else config.level_weights or ()
        if len(weights) == 1:
            weights *= self.taxonomy.depth - 1
        return Loss(self.taxonomy, counts, config.long_tail, weights, config.label_smoothing, self.device)

    def with_words(self, logits: torch.Tensor, ranked: Ranked, words: Words) -> torch.Tensor:
        known = torch.from_numpy(ranked.probabilities).clamp_min(LEAST).log()
        return joined_logits(logits, ranked, known, words)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits / self.spec.temperature, dim=1)

    def read(self, logits: torch.Tensor, alternatives: int) -> tuple[torch.Tensor, ...]:
        probabilities = self.probabilities(logits)
        top = torch.topk(probabilities, min(alternatives + 1, logits.shape[1]), dim=1)
        return top.indices, top.values, self.levels.confidences(probabilities, top.indices[:, 0])

    def join(self, batches: Sequence[tuple[torch.Tensor, ...]], place: IntArray) -> pa.Table:
        label, score, level = (torch.cat(column).cpu().numpy()[place] for column in zip(*batches, strict=True))
        return category_answers(label, score, level)

    def judge(self, logits: torch.Tensor, sets: Ragged) -> dict[str, npt.NDArray[Any]]:
        true = sets.first()
        loss = self.losses(logits, self.targets(sets)).cpu().numpy()
        label, score, level = (tensor.cpu().numpy() for tensor in self.read(logits, 0))
        certainty = self.taxonomy.certainty(level, score[:, 0], label[:, 0])
        return {
            "true": true,
            "given": label[:, 0],
            "certainty": certainty,
            "loss": np.where(true < 0, math.nan, loss),  # of an unknown category there is none
        }

    def fit(self, judged: dict[str, npt.NDArray[Any]], target_precision: float) -> tuple[dict[str, float], Spec]:
        # Imported here: of use to training and evaluation only.
        from cataloger.heads.metrics import expected_calibration_error, flat_scores

        true, given, certainty = (judged[name] for name in ("true", "given", "certainty"))
        right = self.taxonomy.right(true, given)
        own = np.arange(len(true)), self.taxonomy.depths[given] - 1
        confidence, correct = certainty[own].astype(np.float64), right[own]
        once = judged.get("distinct", np.ones(len(true), bool))
        thresholds = self._thresholds(certainty[once], right[once], target_precision)
        scores = flat_scores(true, given)
        metrics = {
            "val_loss": float(np.nanmean(judged["loss"])) if (true >= 0).any() else math.nan,
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_calibration_error": expected_calibration_error(confidence, correct),
            "val_coverage": float((confidence >= np.array(thresholds)[own[1]]).mean()),
            "val_temperature": self.spec.temperature,
        }
        for level, group in enumerate(self.taxonomy.groups[:-1], 1):
            metrics[f"val_level_{level}_accuracy"] = float(((true >= 0) & (group[true] == group[given])).mean())
        return metrics, replace(self.spec, thresholds=thresholds)

    def _thresholds(
        self, certainty: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], target_precision: float
    ) -> tuple[float, ...]:
        """Per level, the certainty from which on answers at that level are shown to have the target precision."""
        from cataloger.heads.metrics import trusted_from

        thresholds = []
        for level in range(self.taxonomy.depth):
            there = ~np.isnan(certainty[:, level])
            found = trusted_from(certainty[there, level].astype(np.float64), right[there, level], target_precision)
            thresholds.append(min(found, NEVER))
        return tuple(thresholds)


def joined_logits(logits: torch.Tensor, ranked: Ranked, known: torch.Tensor, words: Words) -> torch.Tensor:
    """[rows, categories]: a weighted sum of a network's logits and those that words have for the categories they have ranked.

    Of probabilities it is a weighted geometric mean, normalised (a logarithmic opinion pool; Genest and Zidek 1986).
    """
    labels = torch.from_numpy(ranked.labels.astype(np.int64)).to(logits.device)
    known = known.to(logits.device)
    theirs = torch.full_like(logits, math.log(LEAST)).scatter_(1, labels, known)
    theirs = theirs.masked_fill(known[:, :1].isnan(), 0.0)  # of rows that words know nothing of
    return logits / words.network_temperature + words.weight * theirs


class Levels:
    """The category tree on a device. Its sizes are known here: asked of the device, they would have to wait for it."""

    def __init__(self, taxonomy: Taxonomy, device: torch.device | str) -> None:
        self.groups = [torch.from_numpy(group).to(device) for group in taxonomy.groups]
        self.sizes = [int(group.max()) + 1 for group in taxonomy.groups]
        self.depths = torch.from_numpy(taxonomy.depths).to(device)

    def confidences(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows, levels]: the sum of the [rows, categories] probabilities below each ancestor of the label, NaN below its depth."""
        columns = []
        for level, (group, size) in enumerate(zip(self.groups, self.sizes, strict=True)):
            mass = probabilities.new_zeros(len(probabilities), size).index_add_(1, group, probabilities)
            column = mass.gather(1, group[labels].unsqueeze(1)).squeeze(1)
            columns.append(column.masked_fill(self.depths[labels] <= level, math.nan))
        return torch.stack(columns, dim=1).clamp(max=1.0)
