"""Going on from a trained model without learning everything again: of what it gets right already, a share is enough to keep it.

A row that is learnt again is held against its category and against what the model said of it before, so that the others like it keep
their answers too (dark experience replay, Buzzega et al. 2020, section 3).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cataloger.config import TrainConfig
from cataloger.data.batching import most_rows, pack
from cataloger.data.inputs import Encoded
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.training.distilling import Taught
from cataloger.training.examples import Examples
from cataloger.training.hearing import Heard
from cataloger.training.order import Order
from cataloger.training.stages import Machine
from cataloger.training.validation import TOKENS_PER_BATCH

# What is kept of an answer.
MOST_LIKELY = 8


class Remembering(Taught):
    """Rows that the network gets wrong as it begins, in each epoch, and a share of those that it gets right."""

    def __init__(
        self,
        config: TrainConfig,
        spec: Spec,
        network: Any,
        rows: tuple[Examples, Examples, Examples],
        base: Path,
        machine: Machine,
        heard: Heard | None,
        known: Sequence[int],
    ) -> None:
        super().__init__(config, spec, network, rows, base, machine, heard)
        self.everything = self.train
        self.known = np.asarray(known, np.int64)
        self.unknown = np.setdiff1d(np.arange(len(spec.categories)), known)
        self.right = np.zeros(len(self.train), bool)

    def entered(self) -> None:
        """The network is as it begins, after a crash too: what it knows is asked here."""
        super().entered()
        with torch.inference_mode():
            self._ask()

    def prepare_epoch(self, seeds: Sequence[int]) -> dict[str, float]:
        known = int(self.right.sum())
        return {"new_rows": float(len(self.right) - known), "old_rows": float(round(known * self._share()))}

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Encoded, Order]:
        old, new = np.flatnonzero(self.right), np.flatnonzero(~self.right)
        again = rng.permutation(old)[: round(len(old) * self._share())]
        return self.train.inputs, rng.permutation(np.concatenate([new, again]))

    def _share(self) -> float:
        assert self.config.keep_old is not None
        return self.config.keep_old

    def _ask(self) -> None:
        """What the network says of all training rows. Rank r of n asks about every n-th batch; all get all."""
        machine, rows = self.machine, len(self.train)
        width = min(MOST_LIKELY, len(self.spec.categories) - len(self.unknown))
        labels, shares = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
        right = np.zeros(rows, bool)
        self.network.eval()
        batches = list(pack(self.train.inputs.costs, TOKENS_PER_BATCH, most_rows(len(self.spec.categories))))
        for batch in batches[machine.rank :: machine.world]:
            logits = self.logits(self.network, self.train.inputs, batch)
            logits[:, torch.from_numpy(self.unknown).to(logits.device)] = -torch.inf
            targets = self.head.targets(self.train.sets.take(batch))
            if self.spec.head == MANY_CATEGORIES:
                found = torch.sigmoid(logits)
                right[batch] = ((found > 0.5) == (targets > 0.5)).all(dim=1).cpu().numpy()
            else:
                found = torch.softmax(logits, dim=1)
                right[batch] = (logits.argmax(dim=1) == targets).cpu().numpy()
                # Where it knows none, it gets none right.
                right[batch] &= np.isin(targets.cpu().numpy(), self.known)
            best = found.topk(width, dim=1)
            labels[batch], shares[batch] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        if machine.world > 1:
            everyone: list[Any] = [None] * machine.world
            dist.all_gather_object(everyone, (labels, shares, right))
            labels, shares, right = (np.max(parts, axis=0) for parts in zip(*everyone, strict=True))
        # What it gets wrong, it does not teach.
        shares[~right] = 0
        self.taught, self.shares, self.right = torch.from_numpy(labels), torch.from_numpy(shares), right
