"""What each Ray Train worker runs: the fine-tuning loop.

Every worker holds all tokens (they are small) and walks the same seeded sequence of global batches; rank r of n takes
every n-th row of each. So the loss curve does not depend on the number of workers, and after a crash a run goes on from
its last checkpoint with as many workers as there are then: all randomness is a function of seed, step and rank.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cataloger.bundle import Spec, checked_base_model
from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.batching import IntArray, Tokens, shuffled_batches
from cataloger.data.inputs import TextInput
from cataloger.data.seen import Seen
from cataloger.errors import CheckpointError, TrainingError
from cataloger.infra import runtime
from cataloger.infra.node_cache import working_folder
from cataloger.infra.progress import StepMetric
from cataloger.model.engines import resolve_dtype
from cataloger.model.network import new_classifier, save_bundle
from cataloger.training.checkpoint import is_out_of_memory, restoring
from cataloger.training.dropout import set_dropout
from cataloger.training.examples import Examples, load_examples
from cataloger.training.objectives import Classification, Machine, Objective
from cataloger.training.pretraining import MaskedLanguage
from cataloger.training.tuning import adversarial, averaged, merged
from cataloger.training.validation import Validation

GRADIENT_NORM = 1.0
STEPS_PER_LOG = 20
# A checkpoint carries the metrics of this long before it: a driver that is killed may not have logged them yet.
RECENT_MS = 10 * 60 * 1000
# Where a run stands: stage, its epochs done, batches of this epoch done, optimiser steps in all; the best score, epochs
# since, and the temperature of the last validation.
COUNTERS = ("stage", "epoch", "batch", "step", "best", "stale", "temperature")
# Below every real score: the newest checkpoint is where a run goes on, never the one that is registered.
NO_RESULT = {"val_weighted_f1": -1.0}


class Loop:
    """One worker's share of a training run; rank 0 posts progress and metrics on `board`."""

    def __init__(self, config: TrainConfig, spec: Spec, board: Any, blocks: list[Any], saw: Seen) -> None:
        self.config, self.board, self.saw = config, board, saw
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        runtime.set_threads(context.get_local_world_size())
        self.device = ray.train.torch.get_device()
        self.base = checked_base_model(config.base_model)
        bf16 = resolve_dtype(config.precision, self.device.type) is torch.bfloat16
        machine = Machine(self.device, bf16)
        train, held_out, unlabelled = load_examples(
            blocks, TextInput(self.base, config.text_columns, config.max_tokens)
        )
        self.validation = Validation(held_out, spec, config.target_precision, self.rank, self.world)
        torch.manual_seed(config.seed)
        self.plain = new_classifier(self.base, spec)
        set_dropout(self.plain, config.dropout, self.device.type)
        self.classification = Classification(config, spec, self.plain, train, unlabelled, self.base, machine)
        self.stages: list[Objective] = [self.classification]
        if config.pretrain_epochs:
            texts = Tokens.joined([train.tokens, unlabelled.tokens])
            self.stages.insert(0, MaskedLanguage(config, self.plain, texts, self.base, machine))
        self.stage, self.epoch, self.batch, self.step = 0, 0, 0, 0
        self.best, self.stale, self.temperature = -1.0, 0, 1.0
        self.saved = time.monotonic()
        self.recent: list[StepMetric] = []

    def run(self) -> None:
        """Train until the last epoch or until validation stops improving."""
        if ray.get(self.board.reason_to_give_up.remote()):
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

    def _run_stages(self) -> None:
        while True:
            while self.epoch < self.objective.epochs and self.stale < self.config.patience:
                self._train_epoch()
                self.epoch, self.batch = self.epoch + 1, 0
                if self.objective is self.classification:
                    self._validate()
                else:
                    self._save(NO_RESULT, None)
            if self.objective is self.classification:
                return
            self.stage, self.epoch = self.stage + 1, 0
            self._enter()

    def _enter(self) -> None:
        """Make the stage's network ready to be trained."""
        torch.manual_seed(self.config.seed)  # for adapters, which are new
        self.objective = self.stages[self.stage]
        # Of an earlier stage: only one DDP at a time may hold the weights.
        self.model: Any = None
        self.optimizer = torch.optim.AdamW(self.objective.parameter_groups(), lr=0.0, fused=True)
        self.model = ray.train.torch.prepare_model(self.objective.network)
        averages = self.config.average_decay and self.objective is self.classification
        self.average = averaged(self.plain, self.config.average_decay) if averages else None

    def _train_epoch(self) -> None:
        if self.objective is self.classification and not self.batch:
            self._label_more()
        self.model.train()
        rng = np.random.default_rng([self.config.seed, self.stage, self.epoch])
        tokens, drawn = self.objective.begin_epoch(rng)
        batches = shuffled_batches(tokens.lengths, drawn, self.config.batch_size, rng)
        losses: list[torch.Tensor] = []
        trained, since = 0, time.monotonic()
        for batch in batches[self.batch :]:
            # Dropout differs by rank; the order of the rows does not.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4_099 + self.rank)
            rate = self._set_learning_rate((self.epoch + self.batch / len(batches)) / self.objective.epochs)
            losses.append(self._step(batch))
            trained += int(tokens.lengths[batch].sum())
            self.step, self.batch = self.step + 1, self.batch + 1
            if self.step % STEPS_PER_LOG == 0 or self.batch == len(batches):
                shown = {"learning_rate": rate, "tokens_per_second": trained / (time.monotonic() - since)}
                due = self._log_losses(losses, shown, self.epoch + self.batch / len(batches))
                losses = []
                if due and self.batch < len(batches):
                    self._save(NO_RESULT, None)
                trained, since = 0, time.monotonic()

    def _step(self, batch: IntArray) -> torch.Tensor:
        """One optimiser step on a global batch; this rank's share of its mean loss, detached."""
        mine = batch[self.rank :: self.world]
        # With fewer rows than ranks, an idle rank still has to take part in the gradient exchange.
        rows, weight = (mine, 1.0) if len(mine) else (batch[:1], 0.0)

        def backward() -> torch.Tensor:
            total = self.objective.losses(self.model, rows).sum() * weight / len(batch)
            # DDP averages over ranks; the factor turns that into the sum.
            (total * self.world).backward()
            return total.detach()

        loss = backward()
        if self.config.adversarial and self.objective is self.classification:
            with adversarial(self.plain.get_input_embeddings().weight, self.config.adversarial):
                backward()
        torch.nn.utils.clip_grad_norm_(self.objective.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.plain)
        return loss

    def _validate(self) -> None:
        """Score this epoch's result and keep it with a checkpoint."""
        metrics, spec = self.validation.score(self._logits_of_result(), self.device)
        self.temperature = spec.temperature
        self.stale = 0 if metrics["val_weighted_f1"] > self.best else self.stale + 1
        self.best = max(self.best, metrics["val_weighted_f1"])
        self.classification.weigh_levels(metrics)
        note = f"validation F1 {metrics['val_weighted_f1']:.3f}"
        self._post({self.step: {**metrics, "epoch": float(self.epoch)}}, self.epoch, note)
        self._save(metrics, spec)

    def _label_more(self) -> None:
        """Unlabelled rows that the model is sure of, for this epoch."""
        if self.config.pseudo_labels and self.epoch:
            rng = np.random.default_rng([self.config.seed, self.stage, self.epoch, 1])
            self.classification.label_more(self._logits_of_result(), self.temperature, rng, self.rank, self.world)
            count = len(self.classification.own_labels)
            self._post({self.step: {"pseudo_labelled_rows": float(count)}}, self.epoch, f"{count:,} pseudo-labels")

    def _result(self) -> Any:
        """The network to validate and to keep."""
        return self.average.module if self.average else self.plain

    def _logits_of_result(self) -> Any:
        # Not through DDP: its forward talks to the other ranks, which may have fewer batches.
        return functools.partial(self.classification.logits, self._result().eval())

    def _set_learning_rate(self, progress: float) -> float:
        """Linear warm-up, then linear decay to zero; `progress` in [0, 1) is the share of the stage done."""
        warmup = self.config.warmup_fraction
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
        name = "train_loss" if self.objective is self.classification else "pretrain_loss"
        steps: dict[int, dict[str, float]] = {step: {name: loss} for step, loss in enumerate(values, first)}
        steps[self.step] |= shown
        self._post(steps, epochs, f"loss {np.mean(values):.3f}")
        return bool(overdue)

    def _post(self, steps: dict[int, dict[str, float]], epochs: float, note: str) -> None:
        """Show rank 0's progress, in rows, and hand its metrics to the driver."""
        if self.rank == 0:
            now = int(time.time() * 1000)
            metrics = [(name, float(value), now, step) for step, row in steps.items() for name, value in row.items()]
            self.recent += metrics
            done = sum(stage.epochs * stage.rows for stage in self.stages[: self.stage])
            stage = "epoch" if self.objective is self.classification else "pretraining epoch"
            note = f"{stage} {int(np.ceil(epochs))}/{self.objective.epochs}  {note}"
            self.board.post.remote(done + int(epochs * self.objective.rows), note, metrics)

    def _save(self, metrics: dict[str, float], spec: Spec | None) -> None:
        """A checkpoint of all that a run needs to go on; with a spec also the bundle."""
        with working_folder("checkpoint") as folder:
            checkpoint = None
            if self.rank == 0:
                if spec:
                    save_bundle(folder / "bundle", merged(self._result()), self.base, spec)
                    seen.write(folder / "bundle", self.saw)
                torch.save(self._state(), folder / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            ray.train.report(metrics, checkpoint=checkpoint)
        self.saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        since = int(time.time() * 1000) - RECENT_MS
        self.recent = [metric for metric in self.recent if metric[2] >= since]
        own = self.classification.own_labels
        return {
            **{key: getattr(self, key) for key in COUNTERS},
            "model": self.objective.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "own_labels": [
                torch.from_numpy(array) for array in (own.tokens.flat, own.tokens.offsets, own.sets.first())
            ],
            "level_weights": self.classification.loss.level_weights,
            "recent": self.recent,
        }

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            self._enter()
            return
        with checkpoint.as_directory() as folder, restoring(checkpoint.path):
            state = torch.load(Path(folder) / "state.pt", map_location=self.device, weights_only=True)
            for key in COUNTERS:
                setattr(self, key, state[key])
        self._enter()  # where a rank waits for the others, whose errors are not this checkpoint's
        with restoring(checkpoint.path):
            self.objective.network.load_state_dict(state["model"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            flat, offsets, labels = (tensor.cpu().numpy() for tensor in state["own_labels"])
            self.classification.loss.level_weights = tuple(state["level_weights"])
            self.classification.own_labels = Examples.of_one_category(
                replace(self.classification.train.tokens, flat=flat, offsets=offsets), labels
            )
            self.recent = state["recent"]
        if self.rank == 0:
            # MLflow keeps equal points (name, value, time, step) once.
            self.board.post.remote(0, "", self.recent)
