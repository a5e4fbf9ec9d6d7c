"""What each Ray Train worker runs: the fine-tuning loop.

Every worker holds all tokens (they are small) and walks the same seeded sequence of global batches; rank r of n takes
every n-th row of each. So the loss curve does not depend on the number of workers, and after a crash a run goes on from
its last checkpoint with as many workers as there are then: all randomness is a function of seed, step and rank.
"""

import functools
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cataloger import runtime
from cataloger.batching import IntArray, Tokens, shuffled_batches
from cataloger.bundle import Spec, base_model_folder, network_shape
from cataloger.config import TrainConfig
from cataloger.engines import resolve_dtype
from cataloger.losses import Loss, draw_rows
from cataloger.network import new_classifier, save_bundle
from cataloger.progress import StepMetric
from cataloger.scoring import Examples, Validation
from cataloger.tuning import adversarial, averaged, parameter_groups

GRADIENT_NORM = 1.0
STEPS_PER_LOG = 20
# A checkpoint carries the metrics of this long before it: a driver that is killed may not have logged them yet.
RECENT_MS = 10 * 60 * 1000
# Where a run stands: epochs done, batches of this epoch done, optimiser steps and rows in all; best score, epochs since.
COUNTERS = ("epoch", "batch", "step", "seen", "best", "stale")


class CannotGoOnError(Exception):
    """A sentence for the user: a retry would end the same way."""


class Loop:
    """One worker's share of a training run; rank 0 posts progress and metrics on `board`."""

    def __init__(self, config: TrainConfig, spec: Spec, board: Any, blocks: list[Any]) -> None:
        self.config, self.spec, self.board = config, spec, board
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        runtime.set_threads(context.get_local_world_size())
        self.device = ray.train.torch.get_device()
        self.train, held_out = load_examples(blocks)
        self.validation = Validation(held_out, spec, config.target_precision, self.rank, self.world)
        counts = np.bincount(self.train.labels, minlength=len(spec.categories))
        self.loss = Loss(
            spec.taxonomy, counts, config.long_tail, config.level_weight, config.label_smoothing, self.device
        )
        self.base = base_model_folder(self.config.base_model)
        torch.manual_seed(self.config.seed)
        plain = new_classifier(self.base, spec.pooling, spec.taxonomy)
        self.pad_id, _ = network_shape(self.base)
        self.optimizer = torch.optim.AdamW(parameter_groups(plain, config), fused=True)
        self.model = ray.train.torch.prepare_model(plain)
        self.plain = plain
        self.average = averaged(plain, config.average_decay) if config.average_decay else None
        self.bf16 = resolve_dtype(self.config.precision, self.device.type) is torch.bfloat16
        self.epoch, self.batch, self.step, self.seen, self.best, self.stale = 0, 0, 0, 0, -1.0, 0
        self.saved = time.monotonic()
        self.recent: list[StepMetric] = []
        self._resume()

    def run(self) -> None:
        """Train until the last epoch or until validation stops improving."""
        if ray.get(self.board.reason_to_give_up.remote()):
            return
        try:
            self._run_epochs()
        except CannotGoOnError as problem:  # on every rank alike: the losses are summed over all
            ray.get(self.board.give_up.remote(str(problem)))
        except torch.OutOfMemoryError:
            remedy = "lower --batch-size or --max-tokens, or use more workers"
            ray.get(self.board.give_up.remote(f"the GPU ran out of memory at step {self.step + 1}; {remedy}"))
            raise  # the other ranks wait for this one

    def _run_epochs(self) -> None:
        while self.epoch < self.config.epochs and self.stale < self.config.patience:
            self._train_epoch()
            self.epoch, self.batch = self.epoch + 1, 0
            # Not through DDP: its forward talks to the other ranks, which may have fewer batches.
            logits_of = functools.partial(self._logits, self._result().eval())
            metrics, spec = self.validation.score(logits_of, self.device)
            self.stale = 0 if metrics["val_weighted_f1"] > self.best else self.stale + 1
            self.best = max(self.best, metrics["val_weighted_f1"])
            self._post(
                {self.step: {**metrics, "epoch": float(self.epoch)}}, f"validation F1 {metrics['val_weighted_f1']:.3f}"
            )
            self._save(metrics, spec)

    def _train_epoch(self) -> None:
        self.model.train()
        rng = np.random.default_rng([self.config.seed, self.epoch])
        losses: list[torch.Tensor] = []
        rows = len(self.train.labels)
        balanced = self.config.long_tail == "sampling"
        drawn = draw_rows(self.train.labels, len(self.spec.categories), rng, balanced=balanced)
        batches = shuffled_batches(self.train.tokens.lengths, drawn, self.config.batch_size, rng)
        for batch in batches[self.batch :]:
            # Dropout differs by rank; the order of the rows does not.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4_099 + self.rank)
            rate = self._set_learning_rate(self.seen / (rows * self.config.epochs))
            losses.append(self._step(batch))
            self.seen += len(batch)
            self.step, self.batch = self.step + 1, self.batch + 1
            if self.step % STEPS_PER_LOG == 0 or self.batch == len(batches):
                due = self._log_losses(losses, rate)
                losses = []
                if due and self.batch < len(batches):
                    # Below every real score: the newest checkpoint is where a run goes on, never the one that is registered.
                    self._save({"val_weighted_f1": -1.0}, None)

    def _step(self, batch: IntArray) -> torch.Tensor:
        """One optimiser step on a global batch; this rank's share of its mean loss, detached."""
        mine = batch[self.rank :: self.world]
        # With fewer rows than ranks, an idle rank still has to take part in the gradient exchange.
        rows, weight = (mine, 1.0) if len(mine) else (batch[:1], 0.0)
        labels = torch.from_numpy(self.train.labels[rows]).to(self.device)

        def backward() -> torch.Tensor:
            losses = self.loss(self._logits(self.model, self.train.tokens, rows), labels)
            total = losses.sum() * weight / len(batch)
            # DDP averages over ranks; the factor turns that into the sum.
            (total * self.world).backward()
            return total.detach()

        loss = backward()
        if self.config.adversarial:
            with adversarial(self.plain.get_input_embeddings().weight, self.config.adversarial):
                backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update_parameters(self.plain)
        return loss

    def _logits(self, model: torch.nn.Module, tokens: Tokens, rows: IntArray) -> torch.Tensor:
        ids, mask = tokens.padded(rows, self.pad_id)
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            output = model(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            )
        return output.logits.float()  # type: ignore[no-any-return]

    def _result(self) -> Any:
        """The network to validate and to keep."""
        return self.average.module if self.average else self.plain

    def _set_learning_rate(self, progress: float) -> float:
        """Linear warm-up, then linear decay to zero; `progress` in [0, 1) is the share of training done."""
        warmup = self.config.warmup_fraction
        factor = progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _log_losses(self, losses: Sequence[torch.Tensor], rate: float) -> bool:
        """Log the losses since the last time; whether a checkpoint is due, by the clock of rank 0."""
        due = self.rank == 0 and time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes
        shares = torch.stack([*losses, losses[0].new_tensor(float(due))])
        if self.world > 1:
            dist.all_reduce(shares)
        *values, overdue = shares.tolist()
        if not np.isfinite(values).all():
            step = self.step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
            rate = min(group["peak"] for group in self.optimizer.param_groups)
            raise CannotGoOnError(
                f"the loss at step {step} is not a finite number; lower --learning-rate (it peaks at {rate:.2g}) "
                "or use --precision fp32"
            )
        first = self.step - len(values) + 1
        steps: dict[int, dict[str, float]] = {step: {"train_loss": loss} for step, loss in enumerate(values, first)}
        steps[self.step]["learning_rate"] = rate
        self._post(steps, f"loss {np.mean(values):.3f}")
        return bool(overdue)

    def _post(self, steps: dict[int, dict[str, float]], note: str) -> None:
        """Show rank 0's progress and hand its metrics to the driver."""
        if self.rank == 0:
            now = int(time.time() * 1000)
            metrics = [(name, float(value), now, step) for step, row in steps.items() for name, value in row.items()]
            self.recent += metrics
            epoch = -(-self.seen // len(self.train.labels))
            self.board.post.remote(self.seen, f"epoch {epoch}/{self.config.epochs}  {note}", metrics)

    def _save(self, metrics: dict[str, float], spec: Spec | None) -> None:
        """A checkpoint of all that a run needs to go on; with a spec also the bundle."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                if spec:
                    save_bundle(Path(folder) / "bundle", self._result(), self.base, spec)
                state = {"model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict()}
                if self.average:
                    state["average"] = self.average.state_dict()
                since = int(time.time() * 1000) - RECENT_MS
                self.recent = [metric for metric in self.recent if metric[2] >= since]
                counters = {key: getattr(self, key) for key in COUNTERS}
                torch.save({**state, **counters, "recent": self.recent}, Path(folder) / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)
        self.saved = time.monotonic()

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", map_location=self.device, weights_only=True)
        self.plain.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key in COUNTERS:
            setattr(self, key, state[key])
        if self.rank == 0:
            # MLflow keeps equal points (name, value, time, step) once.
            self.recent = state["recent"]
            self.board.post.remote(self.seen, "", self.recent)


def load_examples(blocks: list[Any]) -> tuple[Examples, Examples]:
    """(training rows, validation rows) of the tokenized catalog, in memory."""
    table = pa.concat_tables(ray.get(blocks)).combine_chunks()
    held_out = table.column("validation")
    sides = []
    for mask in (pc.invert(held_out), held_out):
        side = table.filter(mask)
        sides.append(
            Examples(Tokens.from_arrow(side.column("tokens")), side.column("label").to_numpy().astype(np.int64))
        )
    return sides[0], sides[1]
