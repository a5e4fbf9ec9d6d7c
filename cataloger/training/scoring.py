"""Validation rows → metrics, and the temperature and thresholds that go with the model."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.nn import functional as F

from cataloger.bundle import Spec
from cataloger.data.batching import IntArray, Tokens, most_rows, pack
from cataloger.heads.levels import Levels
from cataloger.heads.metrics import TEMPERATURES, coverage_at, expected_calibration_error, flat_scores
from cataloger.training.examples import Examples

TOKENS_PER_BATCH = 8_192
# The temperature is fitted on as many rows as have this many logits on each rank (256 MiB), in random batches: one number needs no more.
LOGITS_KEPT = 1 << 26
# Above every confidence: where validation never reached the target precision, all rows need review.
NEVER = 1.01


@dataclass(frozen=True)
class Judged:
    """Answers for N validation rows of D levels. `certainty` is that of `Taxonomy.certainty`; `loss` is NaN for unknown labels."""

    rows: IntArray  # [N]
    predicted: IntArray  # [N]
    certainty: npt.NDArray[np.float32]  # [N, D]
    loss: npt.NDArray[np.float32]  # [N], before scaling


class Scorer(ABC):
    """The validation rows, of which rank r of n scores every n-th batch, in random order. What an answer is, a subclass knows."""

    judged: Any
    """The dataclass of arrays that `_judge` makes of a batch."""

    def __init__(self, rows: Examples, spec: Spec, target_precision: float, rank: int, world: int) -> None:
        self.rows, self.spec, self.target_precision, self.world = rows, spec, target_precision, world
        batches = list(pack(rows.tokens.lengths, TOKENS_PER_BATCH, most_rows(len(spec.categories))))
        self.batches = [batches[i] for i in np.random.default_rng(0).permutation(len(batches))][rank::world]

    def score(
        self, logits_of: Callable[[Tokens, IntArray], torch.Tensor], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """The metrics of all ranks' rows, and the spec with temperature and thresholds fitted on them."""
        with torch.inference_mode():
            logits = ((batch, logits_of(self.rows.tokens, batch)) for batch in self.batches)
            kept, size = [], 0
            for pair in logits:
                kept.append(pair)
                size += pair[1].numel()
                if size > LOGITS_KEPT:
                    break
            temperature = self._fit_temperature(kept, device)
            judged = [self._judge(*pair, temperature) for pair in itertools.chain(kept, logits)]
        return self._summarise(self._gather(judged), temperature)

    def _fit_temperature(self, kept: list[tuple[IntArray, torch.Tensor]], device: torch.device) -> float:
        """The temperature of least loss (Guo et al. 2017, section 4.2), over all ranks."""
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64, device=device)
        for batch, logits in kept:
            true = self._true(batch, device)
            for number, temperature in enumerate(TEMPERATURES):
                losses[number] += self._losses(logits / temperature, true).sum()
        if self.world > 1:
            dist.all_reduce(losses)
        # Without a row of a known category there is nothing to fit.
        return float(TEMPERATURES[int(losses.argmin())]) if losses.any() else 1.0

    def _gather(self, mine: list[Any]) -> Any:
        everyone: list[Any] = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, mine)
        parts = [part for judged in everyone for part in judged]
        names = self.judged.__annotations__
        return self.judged(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @abstractmethod
    def _true(self, batch: IntArray, device: torch.device) -> torch.Tensor:
        """What `_losses` holds the logits of these rows against."""

    @abstractmethod
    def _losses(self, logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Of float32 logits [rows, categories], by row, or by row and category."""

    @abstractmethod
    def _judge(self, batch: IntArray, logits: torch.Tensor, temperature: float) -> Any:
        """The answers for a batch, one `judged`."""

    @abstractmethod
    def _summarise(self, judged: Any, temperature: float) -> tuple[dict[str, float], Spec]:
        """What `score` returns, of all answers in one `judged`."""


class Validation(Scorer):
    """Of one category each."""

    judged = Judged

    def __init__(self, rows: Examples, spec: Spec, target_precision: float, rank: int, world: int) -> None:
        super().__init__(rows, spec, target_precision, rank, world)
        self.taxonomy = spec.taxonomy

    def _true(self, batch: IntArray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.rows.labels[batch]).to(device)

    def _losses(self, logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, true, reduction="none", ignore_index=-1)

    def _judge(self, batch: IntArray, logits: torch.Tensor, temperature: float) -> Judged:
        levels, labels = Levels(self.taxonomy, logits.device), self._true(batch, logits.device)
        loss = self._losses(logits, labels).masked_fill(labels < 0, math.nan)
        probabilities = torch.softmax(logits / temperature, dim=1)
        confidence, predicted = probabilities.max(dim=1)
        below, chosen, label = (
            tensor.cpu().numpy() for tensor in (levels.confidences(probabilities, predicted), confidence, predicted)
        )
        return Judged(batch, label, self.taxonomy.certainty(below, chosen, label), loss.cpu().numpy())

    def _summarise(self, judged: Judged, temperature: float) -> tuple[dict[str, float], Spec]:
        true = self.rows.labels[judged.rows]
        right = self.taxonomy.right(true, judged.predicted)
        own = np.arange(len(true)), self.taxonomy.depths[judged.predicted] - 1
        confidence, correct = judged.certainty[own].astype(np.float64), right[own]
        thresholds = self._fit_thresholds(judged.certainty, right)
        scores = flat_scores(true, judged.predicted)
        metrics = {
            "val_loss": float(np.nanmean(judged.loss)) if (true >= 0).any() else math.nan,
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_calibration_error": expected_calibration_error(confidence, correct),
            "val_coverage": float((confidence >= np.array(thresholds)[own[1]]).mean()),
            "val_temperature": temperature,
        }
        for level, group in enumerate(self.taxonomy.groups[:-1], 1):
            metrics[f"val_level_{level}_accuracy"] = float(
                ((true >= 0) & (group[true] == group[judged.predicted])).mean()
            )
        return metrics, replace(self.spec, temperature=temperature, thresholds=thresholds)

    def _fit_thresholds(self, certainty: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> tuple[float, ...]:
        """Per level, the least certainty from which on answers at that level reach the target precision."""
        thresholds = []
        for level in range(self.taxonomy.depth):
            there = ~np.isnan(certainty[:, level])
            found = coverage_at(certainty[there, level].astype(np.float64), right[there, level], self.target_precision)
            thresholds.append(min(found[1], NEVER))
        return tuple(thresholds)
