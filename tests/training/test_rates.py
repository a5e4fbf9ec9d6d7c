"""How the learning rate rises and falls over a stage."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cataloger.config import TrainConfig
from cataloger.training.loop import Loop


def rates(steps: int, epochs: int, warmup: float = 0.1) -> list[float]:
    loop = Loop.__new__(Loop)
    loop.config = TrainConfig(warmup_fraction=warmup)
    loop.stage = SimpleNamespace(epochs=epochs)  # type: ignore[assignment]
    loop.optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "peak": 1.0}], lr=0.0)
    return [loop._set_learning_rate(epoch + step / steps, steps) for epoch in range(epochs) for step in range(steps)]


def test_it_rises_to_its_peak_and_falls_to_nothing() -> None:
    found = rates(steps=10, epochs=2)
    np.testing.assert_allclose(found[:3], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(np.diff(found[2:]), -1 / 18)


@pytest.mark.parametrize("epochs", [1, 3])
def test_of_few_steps_none_is_lost_to_the_warm_up(epochs: int) -> None:
    np.testing.assert_allclose(rates(steps=1, epochs=epochs), 1 - np.arange(epochs) / epochs)
