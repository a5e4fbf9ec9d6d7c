"""Training without Ray Train's controller and worker, in the process of the test: to start those takes longer than a tiny network learns.

For tests of what comes out of a training. How it is spread, killed and gone on with is tested as it is.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray.train
from pyarrow import fs
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import train_fn_utils
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils

from cataloger.training import job


class Kept(LocalTrainFnUtils):
    """Ray's own local mode, which keeps checkpoints as its controller does: the best ones by their score, and the newest."""

    def __init__(self, run: ray.train.RunConfig) -> None:
        super().__init__(experiment_name=str(run.name))
        self.run, self.folder = run, f"{run.storage_path}/{run.name}"
        self.kept: list[tuple[ray.train.Checkpoint, dict[str, Any]]] = []

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, *_: Any, **__: Any) -> None:
        if checkpoint is None:
            return
        place, filesystem = f"{self.folder}/checkpoint_{len(self.kept):06}", self.run.storage_filesystem
        filesystem.create_dir(place)
        fs.copy_files(checkpoint.path, place, checkpoint.filesystem, filesystem)
        self._last_checkpoint = ray.train.Checkpoint(place, filesystem)
        self.kept.append((self._last_checkpoint, metrics))

    def best(self) -> list[tuple[ray.train.Checkpoint, dict[str, Any]]]:
        how = self.run.checkpoint_config
        ranked = sorted(self.kept, key=lambda one: one[1][how.checkpoint_score_attribute], reverse=True)
        return ranked[: how.num_to_keep]


def trainer(train_loop: Any, **how: Any) -> Any:
    """In place of TorchTrainer, which it makes where there are several workers, or GPUs."""
    scaling = how["scaling_config"]
    alone = (scaling.num_workers, scaling.use_gpu) == (1, False)
    return (
        InProcess(train_loop, how["train_loop_config"], how["run_config"]) if alone else TorchTrainer(train_loop, **how)
    )


@dataclass(frozen=True)
class InProcess:
    train_loop: Any
    setup: dict[str, Any]
    run: ray.train.RunConfig

    def fit(self) -> ray.train.Result:
        utils = Kept(self.run)
        train_fn_utils.set_train_fn_utils(utils)
        try:
            self.train_loop(self.setup)
        finally:
            train_fn_utils.set_train_fn_utils(None)  # type: ignore[arg-type]
        best = utils.best()
        return ray.train.Result(None, utils.get_checkpoint(), None, utils.folder, best_checkpoints=best)  # type: ignore[call-arg]


@contextlib.contextmanager
def trained_in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "TorchTrainer", trainer)
        yield
