"""Validation rows → metrics, and the temperature and thresholds that go with the model."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from cataloger.bundle import Spec
from cataloger.data.batching import IntArray, Tokens, most_rows, pack
from cataloger.heads.base import Arrays, Head, head_of, joined
from cataloger.training.examples import Examples

TOKENS_PER_BATCH = 8_192
# The temperature is fitted on as many rows as have this many logits on each rank (256 MiB), in random batches: one number needs no more.
LOGITS_KEPT = 1 << 26
TEMPERATURES = np.geomspace(0.25, 4.0, 61)


class Validation:
    """The validation rows, of which rank r of n scores every n-th batch, in random order."""

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
            spec = replace(self.spec, temperature=self._fit_temperature(kept, device))
            head = head_of(spec, device)
            judged = [head.judge(found, self.rows.sets.take(batch)) for batch, found in itertools.chain(kept, logits)]
        return head.fit(self._gather(judged), self.target_precision)

    def _fit_temperature(self, kept: list[tuple[IntArray, torch.Tensor]], device: torch.device) -> float:
        """The temperature of least loss (Guo et al. 2017, section 4.2), over all ranks."""
        head: Head = head_of(self.spec, device)
        losses = torch.zeros(len(TEMPERATURES), dtype=torch.float64, device=device)
        for batch, logits in kept:
            targets = head.targets(self.rows.sets.take(batch))
            for number, temperature in enumerate(TEMPERATURES):
                losses[number] += head.losses(logits / temperature, targets).sum()
        if self.world > 1:
            dist.all_reduce(losses)
        # Without a row of a known category there is nothing to fit.
        return float(TEMPERATURES[int(losses.argmin())]) if losses.any() else 1.0

    def _gather(self, mine: list[Arrays]) -> Arrays:
        """Of all ranks; a rank may have no batch."""
        everyone: list[list[Arrays]] = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, mine)
        return joined([part for parts in everyone for part in parts])
