"""Validation rows → metrics, and the temperature and confidence threshold that go with the model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cataloger.batching import IntArray, Tokens, pack
from cataloger.bundle import Spec
from cataloger.metrics import TEMPERATURES, coverage_at, expected_calibration_error, flat_scores

TOKENS_PER_BATCH = 8_192


@dataclass(frozen=True)
class Examples:
    """Tokens and label ids of N rows; label -1 is a category the model does not know."""

    tokens: Tokens
    labels: IntArray


@dataclass(frozen=True)
class Validation:
    """The validation rows, of which rank r of n scores every n-th batch."""

    rows: Examples
    spec: Spec
    target_precision: float
    rank: int
    world: int

    def score(
        self, logits_of: Callable[[Tokens, IntArray], torch.Tensor], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """The metrics of all ranks' rows, and the spec with temperature and review threshold fitted on them."""
        rows, predicted, confidences, losses = [], [], [], []
        temperatures = torch.tensor(TEMPERATURES, dtype=torch.float32, device=device)
        for number, batch in enumerate(pack(self.rows.tokens.lengths, TOKENS_PER_BATCH)):
            if number % self.world != self.rank:
                continue
            with torch.inference_mode():
                logits = logits_of(self.rows.tokens, batch)
                # log Z at every temperature, [rows, temperatures]: confidence and loss then need no second pass.
                scores, labels = logits.max(dim=1)
                normaliser = torch.stack([torch.logsumexp(logits / t, dim=1) for t in temperatures], dim=1)
                true = torch.from_numpy(self.rows.labels[batch]).to(device)
                truth = logits.gather(1, true.clamp(min=0).unsqueeze(1)) / temperatures
                loss = torch.where((true >= 0).unsqueeze(1), normaliser - truth, torch.nan)
            rows.append(batch)
            predicted.append(labels.cpu().numpy())
            confidences.append((scores.unsqueeze(1) / temperatures - normaliser).exp().cpu().numpy())
            losses.append(loss.cpu().numpy())
        return self._summarise(
            *(self._gather(parts, kind) for parts, kind in ((rows, 1), (predicted, 1), (confidences, 2), (losses, 2)))
        )

    def _gather(self, parts: list[npt.NDArray[Any]], dimensions: int) -> npt.NDArray[Any]:
        mine = np.concatenate(parts) if parts else np.empty((0, len(TEMPERATURES))[:dimensions])
        if self.world == 1:
            return mine
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return np.concatenate([part for part in everyone if len(part)])

    def _summarise(
        self, rows: IntArray, predicted: IntArray, confidences: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]
    ) -> tuple[dict[str, float], Spec]:
        true = self.rows.labels[rows]
        correct = predicted == true
        scores = flat_scores(true, predicted)
        loss = np.nanmean(losses, axis=0) if (true >= 0).any() else np.abs(np.log(TEMPERATURES))
        best = int(loss.argmin())
        coverage, threshold = coverage_at(confidences[:, best], correct, self.target_precision)
        plain = int(np.abs(np.log(TEMPERATURES)).argmin())
        metrics = {
            "val_loss": float(loss[plain]),
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_calibration_error": expected_calibration_error(confidences[:, best], correct),
            "val_coverage": coverage,
            "val_temperature": float(TEMPERATURES[best]),
        }
        # Above every confidence when the precision was never reached: then all rows need review.
        return metrics, replace(self.spec, temperature=float(TEMPERATURES[best]), review_threshold=min(threshold, 1.01))
