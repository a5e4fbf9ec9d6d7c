"""What each Ray Train worker runs: the training loop.

Every worker knows all rows (their tokens lie on the node's disk) and walks the same seeded sequence of global batches; rank r of n
takes every n-th row of each. So the loss curve does not depend on the number of workers, and after a crash a run goes on from
its last checkpoint with as many workers as there are then: all randomness is a function of seed, step and rank.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.batching import IntArray, Tokens
from cataloger.data.seen import Seen
from cataloger.errors import CheckpointError, TrainingError
from cataloger.infra import runtime
from cataloger.infra.progress import StepMetric
from cataloger.infra.storage import Location
from cataloger.model.engines import resolve_dtype, without_plans
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.pretrained import checked_base_model
from cataloger.model.sight import sight_of
from cataloger.model.student import with_head
from cataloger.spec import Spec
from cataloger.training import checkpoint
from cataloger.training.checkpoint import (
    ALL_ANSWERS,
    BEFORE_ALL,
    LEAST,
    NETWORK,
    NO_RESULT,
    RANK,
    is_out_of_memory,
    rank_of,
    restoring,
)
from cataloger.training.distilling import Distillation
from cataloger.training.dropout import set_dropout
from cataloger.training.examples import load_examples
from cataloger.training.folding import FoldingBack
from cataloger.training.hearing import FittedWords
from cataloger.training.lessons import Lessons
from cataloger.training.order import Batches
from cataloger.training.pretraining import MaskedWords
from cataloger.training.remembering import Remembering
from cataloger.training.rows import training_input
from cataloger.training.stages import FineTuning, Machine, Result, Stage
from cataloger.training.tuning import merged

GRADIENT_NORM = 1.0
STEPS_PER_LOG = 20
# A checkpoint carries the metrics of this long before it: a driver that is killed may not have logged them yet.
RECENT_MS = 10 * 60 * 1000
# Where a run stands: stage, its epochs done, batches of this epoch done and of how many, optimiser steps in all; the best score, epochs
# since.
COUNTERS = ("number", "epoch", "batch", "batches", "step", "best", "stale")


def stages_of(
    config: TrainConfig,
    spec: Spec,
    blocks: Sequence[Any],
    key: str,
    base: Path,
    machine: Machine,
    words: FittedWords | None,
    lessons: Location | None,
) -> list[Stage]:
    """What this configuration trains, in order; the last stage has a result."""
    heard = words.hear(blocks, spec) if words else None
    rows = load_examples(blocks, key, spec, training_input(config, tags=spec.tags), config.fold_back)
    torch.manual_seed(config.seed)
    network = new_classifier(base, spec, sight_of(config.image_model) if spec.picture else None)
    known = with_head(network, base)
    set_dropout(network, config.dropout, machine.device.type)
    if lessons:
        taught = Lessons.read(lessons)
        return [Distillation(config, spec, network, rows, base, machine, heard, taught, blocks)]
    if config.keep_old is not None:
        return [Remembering(config, spec, network, rows, base, machine, heard, known)]
    fine_tuning = FineTuning(config, spec, network, rows, base, machine, heard)
    stages: list[Stage] = [fine_tuning, *([FoldingBack(fine_tuning)] if config.fold_back else [])]
    if config.pretrain_epochs:
        labelled, _, unlabelled = rows
        texts = Tokens.joined([labelled.inputs, unlabelled.inputs])
        stages.insert(0, MaskedWords(config, network, texts, base, machine))
    return stages


class Loop:
    """One worker's share of a training run; rank 0 posts progress and metrics on `board`."""

    def __init__(
        self,
        config: TrainConfig,
        spec: Spec,
        board: Any,
        blocks: list[Any],
        key: str,
        saw: Seen,
        words: FittedWords | None,
        lessons: Location | None,
    ) -> None:
        self.config, self.board, self.saw, self.words = config, board, saw, words
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        runtime.set_threads(context.get_local_world_size())
        self.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            without_plans()
        self.base = checked_base_model(config.base_model) if spec.text_columns else Path()
        bf16 = resolve_dtype(config.precision, self.device.type) is torch.bfloat16
        machine = Machine(self.device, bf16, self.rank, self.world)
        self.stages = stages_of(config, spec, blocks, key, self.base, machine, words, lessons)
        self.number, self.epoch, self.batch, self.batches, self.step = 0, 0, 0, 1, 0
        self.best, self.stale = -1.0, 0
        self.saved = time.monotonic()
        self.recent: list[StepMetric] = []

    def run(self) -> None:
        """Train until the last epoch or until validation stops improving."""
        if self._unwanted():
            return
        try:
            self._resume()
            self._run_stages()
        except CheckpointError:  # maybe on this rank alone
            raise
        except TrainingError as problem:  # on every rank alike: the losses are summed over all
            ray.get(self.board.give_up.remote(problem))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            remedy = "lower --batch-size or --max-tokens, or use more workers"
            place = "GPU" if self.device.type == "cuda" else "machine"
            reason = TrainingError(f"the {place} ran out of memory at step {self.step + 1}; {remedy}")
            ray.get(self.board.give_up.remote(reason))
            raise  # the other ranks wait for this one

    def _unwanted(self) -> bool:
        """Whether the training is to end before it begins: as rank 0 finds it, for all, as the others would wait for one that has left."""
        unwanted = self.rank == 0 and bool(ray.get(self.board.reason_to_give_up.remote()))
        if self.world == 1:
            return unwanted
        told = torch.tensor([float(unwanted)], device=self.device)
        dist.broadcast(told, 0)
        return bool(told)

    def _run_stages(self) -> None:
        while True:
            while self.epoch < self.stage.epochs and self.stale < self.config.patience:
                self._train_epoch()
                self.epoch, self.batch = self.epoch + 1, 0
                self._end_epoch(self.stage.end_epoch())
            if self.number == len(self.stages) - 1:
                return
            self.number, self.epoch, self.stale = self.number + 1, 0, 0
            self._enter()

    def _enter(self) -> None:
        """Make the stage's network ready to be trained."""
        torch.manual_seed(self.config.seed)  # for adapters, which are new
        self.stage = self.stages[self.number]
        # Of an earlier stage: only one DDP at a time may hold the weights.
        self.model: Any = None
        self.optimizer = torch.optim.AdamW(self.stage.parameter_groups(), lr=0.0, fused=True)
        self.model = ray.train.torch.prepare_model(self.stage.network)
        self.stage.entered()

    def _train_epoch(self) -> None:
        seeds = [self.config.seed, self.number, self.epoch]
        if not self.batch and (found := self.stage.prepare_epoch(seeds)):
            self._post(
                {self.step: found}, self.epoch, ", ".join(f"{value:,.0f} {name}" for name, value in found.items())
            )
        self.model.train()
        rng = np.random.default_rng(seeds)
        encoded, drawn = self.stage.begin_epoch(rng)
        if not len(drawn):
            return  # weights that are as they shall be
        assert self.config.batch_size
        batches = Batches(encoded, drawn, self.config.batch_size, int(rng.integers(1 << 62)))
        self.batches = len(batches)
        losses: list[torch.Tensor] = []
        trained, since = 0, time.monotonic()
        coming = batches.since(self.batch)
        following = next(coming, None)
        while following:
            (batch, tokens), following = following, next(coming, None)
            if following:
                encoded.ahead(self._mine(following[0])[0])
            # Dropout differs by rank; the order of the rows does not.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4_099 + self.rank)
            rate = self._set_learning_rate(self.epoch + self.batch / len(batches), len(batches))
            losses.append(self._step(batch))
            trained += tokens
            self.step, self.batch = self.step + 1, self.batch + 1
            if self.step % STEPS_PER_LOG == 0 or self.batch == len(batches):
                shown = {"learning_rate": rate, "tokens_per_second": trained / (time.monotonic() - since)}
                due = self._log_losses(losses, shown, self.epoch + self.batch / len(batches))
                losses = []
                if due and self.batch < len(batches):
                    self._save(None)
                trained, since = 0, time.monotonic()

    def _step(self, batch: IntArray) -> torch.Tensor:
        """One optimiser step on a global batch; this rank's share of its mean loss, detached."""
        rows, weight = self._mine(batch)

        def backward() -> torch.Tensor:
            total = self.stage.losses(self.model, rows).sum() * weight / len(batch)
            # DDP averages over ranks; the factor turns that into the sum.
            (total * self.world).backward()
            return total.detach()

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(self.stage.network.parameters(), GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return self.stage.step(backward, update)

    def _mine(self, batch: IntArray) -> tuple[IntArray, float]:
        """(this rank's rows of a global batch, what they count). With fewer rows than ranks, an idle rank has to take part in the
        exchange of gradients all the same."""
        mine = batch[self.rank :: self.world]
        return (mine, 1.0) if len(mine) else (batch[:1], 0.0)

    def _end_epoch(self, result: Result | None) -> None:
        """Keep an epoch with a checkpoint."""
        if result and result.judged:
            found = result.metrics
            score = found["val_weighted_f1"]
            # Patience is with what is being trained: words alone may be better than both for some epochs.
            learnt = rank_of(found, NETWORK, ALL_ANSWERS)
            self.stale = 0 if learnt > self.best + LEAST else self.stale + 1
            self.best = max(self.best, learnt)
            metrics = {**found, "epoch": float(self.epoch)}
            self._post({self.step: metrics}, self.epoch, f"validation F1 {score:.3f}")
        self._save(result)

    def _set_learning_rate(self, epochs: float, steps: int) -> float:
        """Linear warm-up, then linear decay to zero, after so many epochs of that many steps each. A warm-up of less than one step is none:
        that one would learn nothing."""
        progress, warmup = epochs / self.stage.epochs, self.config.warmup_fraction
        warmup = warmup if warmup * steps * self.stage.epochs >= 1 else 0.0
        factor = progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _log_losses(self, losses: Sequence[torch.Tensor], shown: Mapping[str, float], epochs: float) -> bool:
        """Log the losses since the last time, and what is `shown` now; whether a checkpoint is due, by the clock of rank 0.

        Raises TrainingError, on all ranks alike.
        """
        due = self.rank == 0 and time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes
        unwanted = self.rank == 0 and bool(ray.get(self.board.reason_to_give_up.remote()))
        shares = torch.stack([*losses, losses[0].new_tensor(float(due)), losses[0].new_tensor(float(unwanted))])
        if self.world > 1:
            dist.all_reduce(shares)
        *values, overdue, stop = shares.tolist()
        if stop:
            raise TrainingError(f"stopped at step {self.step}")
        if not np.isfinite(values).all():
            step = self.step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
            rate = min(group["peak"] for group in self.optimizer.param_groups)
            raise TrainingError(
                f"the loss at step {step} is not a finite number; lower --learning-rate (it peaks at {rate:.2g}) "
                "or use --precision fp32"
            )
        first = self.step - len(values) + 1
        steps: dict[int, dict[str, float]] = {
            step: {f"{self.stage.name}_loss": loss} for step, loss in enumerate(values, first)
        }
        steps[self.step] |= shown
        self._post(steps, epochs, f"loss {np.mean(values):.3f}")
        return bool(overdue)

    def _post(self, steps: dict[int, dict[str, float]], epochs: float, note: str) -> None:
        """Show rank 0's progress, in rows, and hand its metrics to the driver."""
        if self.rank == 0:
            now = int(time.time() * 1000)
            metrics = [(name, float(value), now, step) for step, row in steps.items() for name, value in row.items()]
            self.recent += metrics
            note = f"{self.stage.name} epoch {int(np.ceil(epochs))}/{self.stage.epochs}  {note}"
            self.board.post.remote(self._rows_done(epochs), note, metrics)

    def _rows_done(self, epochs: float) -> int:
        """In all stages, with so many epochs of this one."""
        before = sum(stage.epochs * stage.rows for stage in self.stages[: self.number])
        return before + int(epochs * self.stage.rows)

    def _save(self, result: Result | None) -> None:
        """A checkpoint of all that a run needs to go on; of a result also the bundle."""

        def write(folder: Path) -> None:
            if result:
                save_bundle(folder / "bundle", merged(result.network), self.base, result.spec)
                seen.write(folder / "bundle", self.saw)
                if self.words:
                    self.words.write(folder / "bundle")

        found = result.metrics if result else {}
        ranked = {RANK: rank_of(found, ALL_ANSWERS)} if found else NO_RESULT
        if result and not result.judged:
            ranked = {RANK: ranked[RANK] + BEFORE_ALL}
        checkpoint.save({**found, **ranked}, self.rank, self._state, write)
        self.saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        since = int(time.time() * 1000) - RECENT_MS
        self.recent = [metric for metric in self.recent if metric[2] >= since]
        counters = {key: getattr(self, key) for key in COUNTERS}
        return {**counters, **self.stage.state(), "optimizer": self.optimizer.state_dict(), "recent": self.recent}

    def _resume(self) -> None:
        found = checkpoint.latest(self.device)
        if found is None:
            self._enter()
            return
        path, state = found
        with restoring(path):
            for key in COUNTERS:
                setattr(self, key, state[key])
        self._enter()  # where a rank waits for the others, whose errors are not this checkpoint's
        with restoring(path):
            self.stage.load_state(state)
            self.optimizer.load_state_dict(state["optimizer"])
            self.recent = state["recent"]
        if self.rank == 0:
            # MLflow keeps equal points (name, value, time, step) once.
            epochs = self.epoch + self.batch / self.batches
            self.board.go_on.remote(self._rows_done(epochs), f"goes on after step {self.step:,}", self.recent)
