"""A training's checkpoints: written by rank 0, read by all; and whose fault it is when one cannot be restored."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from cataloger.bundle import read_spec
from cataloger.errors import CheckpointError
from cataloger.infra.node_cache import working_folder
from cataloger.spec import Spec

# What checkpoints are kept for, see `rank`. Below every real one: the newest is where a run goes on, never the one that is registered.
RANK = "rank"
NO_RESULT = {RANK: -1.0}
# Of equal scores, as few validation rows have them, the lower loss decides. It adds TIE at most; less than LEAST is no difference.
TIE, LEAST = 1e-6, 1e-9
STATE = "state.pt"
# Added to the rank of what is kept whatever its score is.
BEFORE_ALL = 2.0
# Kinds of scores in the metrics of a validation: of the network without words, and the mean over several answers.
NETWORK, ALL_ANSWERS = "network_", "mean_"


def save(
    metrics: dict[str, float], rank: int, state: Callable[[], dict[str, Any]], write: Callable[[Path], None]
) -> None:
    """Report an epoch, or a point within one, with a checkpoint: its state, and what `write` puts beside it. Called on all ranks."""
    with working_folder("checkpoint") as folder:
        checkpoint = None
        if rank == 0:
            write(folder)
            torch.save(state(), folder / STATE)
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(metrics, checkpoint=checkpoint)


def rank(score: float, loss: float) -> float:
    """What is better the higher it is: the score, and of equal scores the one with the lower loss."""
    return score + (TIE / (1 + loss) if loss >= 0 else 0.0)  # NaN where no row has a known category


def rank_of(metrics: Mapping[str, float], *kinds: str) -> float:
    """By the first kind of scores that a validation has, such as those of the network alone, or by those of the first answer."""
    kind = next((kind for kind in kinds if f"val_{kind}weighted_f1" in metrics), "")
    return rank(metrics[f"val_{kind}weighted_f1"], metrics[f"val_{kind}loss"])


@dataclass(frozen=True)
class Kept:
    """The best epoch so far: its metrics, and what was fitted with it."""

    metrics: dict[str, float]
    spec: Spec
    weights: dict[str, torch.Tensor]
    """As they are trained: of the moving average, where there is one."""


def best(device: torch.device) -> Kept:
    """Raises CheckpointError."""
    reported = max(ray.train.get_all_reported_checkpoints(), key=lambda one: float(one.metrics[RANK]))
    with reported.checkpoint.as_directory() as folder, restoring(reported.checkpoint.path):
        state = torch.load(Path(folder) / STATE, map_location=device, weights_only=True)
        average = state.get("average") or {}
        averaged = {name.removeprefix("module."): own for name, own in average.items() if name.startswith("module.")}
        metrics = {name: float(value) for name, value in reported.metrics.items() if name != RANK}
        return Kept(metrics, read_spec(Path(folder) / "bundle"), averaged or state["model"])


def latest(device: torch.device) -> tuple[str, dict[str, Any]] | None:
    """(where the newest checkpoint lies, its state), None where there is none yet. Raises CheckpointError."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder, restoring(checkpoint.path):
        return checkpoint.path, torch.load(Path(folder) / STATE, map_location=device, weights_only=True)


@contextmanager
def restoring(checkpoint: str) -> Iterator[None]:
    """What does not fit this code in a state that another one wrote is a CheckpointError; a disk or a GPU that fails is not."""
    try:
        yield
    except Exception as error:
        failed = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if failed or isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"checkpoint {checkpoint}: cannot be restored: {type(error).__name__}: {why}") from error


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for GPUs' allocators only; its one for CPUs says so in words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
