"""Learning from teachers as well as from labels: the last stage of a training whose rows a larger model has answered.

The student is held against the teachers' probabilities, softened by a temperature, and against the labels where there are some (Hinton,
Vinyals and Dean 2015, section 2).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray
from cataloger.data.inputs import Encoded
from cataloger.errors import TrainingError
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.training.examples import TRAINING, UNLABELLED, Examples
from cataloger.training.hearing import Heard
from cataloger.training.lessons import Lessons, keys_of
from cataloger.training.order import Order, Shuffled
from cataloger.training.stages import FineTuning, Machine

# The temperature of both sides, and the weight of the teachers beside that of a label, where a row has both.
TEMPERATURE, TEACHING = 2.0, 0.7
# Rows that no model could read have no answer; where many have none, the answers are of other rows.
LEAST_ANSWERED = 0.5


class Taught(FineTuning):
    """Rows that have a category, a teacher's answer, or both."""

    everything: Examples
    taught: torch.Tensor
    """int32 [rows, K] the categories that teachers found most probable."""
    shares: torch.Tensor
    """float32 [rows, K] how probable each is; all 0 of a row that nobody answered."""

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        sets = self.everything.sets.take(rows)
        logits = self.logits(model, self.everything.inputs, rows)
        has_label = torch.from_numpy(sets.lengths > 0).to(logits.device)
        labelled = sets.take(np.flatnonzero(sets.lengths > 0))
        # Also of no row, so that every weight has a gradient on every rank.
        by_label = logits.new_zeros(len(logits)).masked_scatter(
            has_label, self.loss(logits[has_label], self.head.targets(labelled))
        )
        shares = self.shares[rows].to(logits.device)
        by_teachers = softened(self.spec, logits, self.taught[rows].long().to(logits.device), shares)
        has_answer = shares.sum(dim=1) > 0
        teaching = torch.where(has_label, TEACHING, 1.0) * has_answer
        return teaching * by_teachers + torch.where(has_answer, 1 - TEACHING, 1.0) * by_label


class Distillation(Taught):
    """The rows that have a category, and those that only teachers have answered."""

    def __init__(
        self,
        config: TrainConfig,
        spec: Spec,
        network: Any,
        rows: tuple[Examples, Examples, Examples],
        base: Path,
        machine: Machine,
        heard: Heard | None,
        lessons: Lessons,
        blocks: Any,
    ) -> None:
        super().__init__(config, spec, network, rows, base, machine, heard)
        self.everything = self.train.and_these(self.unlabelled)
        keys = np.concatenate([keys_of(blocks, use) for use in (TRAINING, UNLABELLED)])
        labels, probabilities = lessons.of(keys)
        answered = float((probabilities.sum(axis=1) > 0).mean())
        if answered < LEAST_ANSWERED:
            raise TrainingError(
                f"the models have answered {answered:.1%} of the rows to learn from; remove the lessons in --storage, and run again"
            )
        self.taught, self.shares = torch.from_numpy(labels), torch.from_numpy(probabilities)
        self.rows = len(self.everything)

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Encoded, Order]:
        self.epoch_rows = self.everything
        return self.everything.inputs, Shuffled(len(self.everything), rng)


def softened(spec: Spec, logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """[rows] cross-entropy of [rows, categories] logits at the temperature against the teachers' [rows, K] shares of their K labels at the
    same one, times its square, as its gradients are that much smaller.

    Where products have any number of categories, each category is a question of its own.
    """
    if spec.head == MANY_CATEGORIES:
        softer = torch.sigmoid(torch.logit(shares.clamp(1e-6, 1 - 1e-6)) / TEMPERATURE)
        silent = torch.sigmoid(torch.logit(torch.tensor(1e-6)) / TEMPERATURE).item()
        targets = torch.full_like(logits, silent).scatter_reduce(1, labels, softer, "amax")
        found = F.binary_cross_entropy_with_logits(logits / TEMPERATURE, targets, reduction="none").sum(dim=1)
        return found * TEMPERATURE**2
    softer = shares ** (1 / TEMPERATURE)
    softer = softer / softer.sum(dim=1, keepdim=True).clamp_min(1e-9)
    logs = F.log_softmax(logits / TEMPERATURE, dim=1).gather(1, labels)
    return -(softer * logs).sum(dim=1) * TEMPERATURE**2
