"""The rows that judged a training are learnt from at its end: one more epoch, over training and validation rows.

What was fitted on them stays, as nothing is left to fit it on anew: temperatures, the weight of words, tiers and thresholds are those of
the network as it was before (docs/quality.md says what that comes to).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cataloger.data.batching import IntArray
from cataloger.data.inputs import Encoded
from cataloger.training import checkpoint
from cataloger.training.order import Order
from cataloger.training.stages import FineTuning, Result

# The highest rate, as a share of that of the epochs before.
RATE = 0.3


class FoldingBack:
    """The last stage where it is asked for: from the epoch that is kept, with the loss and the draws of fine-tuning."""

    name = "fold_back"
    epochs = 1

    def __init__(self, before: FineTuning) -> None:
        self.before, self.network = before, before.network
        self.everything = before.train.and_these(before.validation.rows)
        self.rows = len(self.everything)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{**group, "peak": RATE * group["peak"]} for group in self.before.parameter_groups()]

    def entered(self) -> None:
        """Also after a crash: what is kept of this stage has weights of its own then."""
        kept = checkpoint.best(self.before.machine.device)
        self.metrics, self.spec = kept.metrics, kept.spec
        self.network.load_state_dict(kept.weights)
        # Labels that the network gave itself are not drawn on any more.
        self.before.train, self.before.own_labels = self.everything, self.everything.take(np.arange(0))

    def prepare_epoch(self, seeds: Sequence[int]) -> dict[str, float]:
        return {}

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Encoded, Order]:
        return self.before.begin_epoch(rng)

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        return self.before.losses(model, rows)

    def step(self, backward: Callable[[], torch.Tensor], update: Callable[[], None]) -> torch.Tensor:
        return self.before.step(backward, update)

    def end_epoch(self) -> Result:
        # No row is left that could judge it, or a model that is made of it.
        return Result(self.metrics, replace(self.spec, validation_fraction=0.0), self.network, judged=False)

    def state(self) -> dict[str, Any]:
        # Validation may have set the weights of levels; none follows that would set them again.
        return {"model": self.network.state_dict(), "level_weights": self.before.loss.level_weights}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        self.before.loss.level_weights = tuple(state["level_weights"])
