"""What each Ray Train worker runs: the fine-tuning loop.

Every worker holds all tokens (they are small) and walks the same seeded sequence of global batches; rank r of n takes
every n-th row of each. So the loss curve does not depend on the number of workers.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn import functional as F

from cataloger import runtime
from cataloger.batching import IntArray, Tokens, pack, shuffled_batches
from cataloger.bundle import Spec, base_model_folder, network_shape
from cataloger.config import TrainConfig
from cataloger.engines import resolve_dtype
from cataloger.metrics import TEMPERATURES, coverage_at, expected_calibration_error, flat_scores
from cataloger.network import new_classifier, save_bundle

HEAD_RATE = 10.0
GRADIENT_NORM = 1.0
STEPS_PER_LOG = 20
EVALUATION_TOKENS = 8_192
COUNTERS = ("epoch", "step", "seen", "best", "stale")


@dataclass(frozen=True)
class Examples:
    """Tokens and label ids of N rows; label -1 is a category the model does not know."""

    tokens: Tokens
    labels: IntArray


class NotFiniteError(ArithmeticError):
    """The loss is infinite or not a number."""


class Loop:
    """One worker's share of a training run; rank 0 posts progress and metrics on `board`."""

    def __init__(self, config: TrainConfig, spec: Spec, board: Any, blocks: list[Any]) -> None:
        self.config, self.spec, self.board = config, spec, board
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        runtime.set_threads(context.get_local_world_size())
        self.device = ray.train.torch.get_device()
        self.train, self.validation = load_examples(blocks)
        self.base = base_model_folder(self.config.base_model)
        torch.manual_seed(self.config.seed)
        plain = new_classifier(self.base, spec.pooling, spec.taxonomy)
        self.pad_id, _ = network_shape(self.base)
        self.model = ray.train.torch.prepare_model(plain)
        self.plain = plain
        self.bf16 = resolve_dtype(self.config.precision, self.device.type) is torch.bfloat16
        self.peak = config.learning_rate or default_learning_rate(plain)
        self.optimizer = torch.optim.AdamW(_parameter_groups(plain, self.peak, config.weight_decay), fused=True)
        self.epoch, self.step, self.seen, self.best, self.stale = 0, 0, 0, -1.0, 0
        self._resume()
        # Dropout differs by rank; the data order must not, and has generators of its own.
        torch.manual_seed(self.config.seed * 1_000_003 + self.rank + 1_009 * self.epoch)

    def run(self) -> None:
        """Train until the last epoch or until validation stops improving."""
        try:
            self._run_epochs()
        except NotFiniteError as problem:  # on every rank alike: the losses are summed over all
            ray.get(self.board.give_up.remote(str(problem)))

    def _run_epochs(self) -> None:
        while self.epoch < self.config.epochs and self.stale < self.config.patience:
            self._train_epoch()
            self.epoch += 1
            metrics, spec = self._validate()
            self.stale = 0 if metrics["val_weighted_f1"] > self.best else self.stale + 1
            self.best = max(self.best, metrics["val_weighted_f1"])
            self._post(
                {self.step: {**metrics, "epoch": float(self.epoch)}}, f"validation F1 {metrics['val_weighted_f1']:.3f}"
            )
            self._report(metrics, spec)

    def _train_epoch(self) -> None:
        self.model.train()
        rng = np.random.default_rng([self.config.seed, self.epoch])
        losses: list[torch.Tensor] = []
        rows = len(self.train.labels)
        for batch in shuffled_batches(self.train.tokens.lengths, self.config.batch_size, rng):
            rate = self._set_learning_rate(self.seen / (rows * self.config.epochs))
            losses.append(self._step(batch))
            self.seen += len(batch)
            self.step += 1
            if self.step % STEPS_PER_LOG == 0 or self.seen == rows * (self.epoch + 1):
                self._log_losses(losses, rate)
                losses = []

    def _step(self, batch: IntArray) -> torch.Tensor:
        """One optimiser step on a global batch; this rank's share of its mean loss, detached."""
        mine = batch[self.rank :: self.world]
        # With fewer rows than ranks, an idle rank still has to take part in the gradient exchange.
        rows, weight = (mine, 1.0) if len(mine) else (batch[:1], 0.0)
        labels = torch.from_numpy(self.train.labels[rows]).to(self.device)
        total = (
            F.cross_entropy(self._logits(self.model, self.train.tokens, rows), labels, reduction="sum")
            * weight
            / len(batch)
        )
        # DDP averages over ranks; the factor turns that into the sum.
        (total * self.world).backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.detach()

    def _logits(self, model: torch.nn.Module, tokens: Tokens, rows: IntArray) -> torch.Tensor:
        ids, mask = tokens.padded(rows, self.pad_id)
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            output = model(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            )
        return output.logits.float()  # type: ignore[no-any-return]

    def _set_learning_rate(self, progress: float) -> float:
        """Linear warm-up, then linear decay to zero; `progress` in [0, 1) is the share of training done."""
        warmup = self.config.warmup_fraction
        factor = progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _log_losses(self, losses: Sequence[torch.Tensor], rate: float) -> None:
        shares = torch.stack(list(losses))
        if self.world > 1:
            dist.all_reduce(shares)
        values = shares.tolist()
        if not np.isfinite(values).all():
            step = self.step - len(values) + 1 + int(np.argmin(np.isfinite(values)))
            raise NotFiniteError(
                f"the loss at step {step} is not a finite number; lower --learning-rate (it peaks at {self.peak:.2g}) "
                "or use --precision fp32"
            )
        first = self.step - len(values) + 1
        steps: dict[int, dict[str, float]] = {step: {"train_loss": loss} for step, loss in enumerate(values, first)}
        steps[self.step]["learning_rate"] = rate
        self._post(steps, f"loss {np.mean(values):.3f}")

    def _post(self, steps: dict[int, dict[str, float]], note: str) -> None:
        """Show rank 0's progress and hand its metrics to the driver."""
        if self.rank == 0:
            now = int(time.time() * 1000)
            metrics = [(name, float(value), now, step) for step, row in steps.items() for name, value in row.items()]
            epoch = -(-self.seen // len(self.train.labels))
            self.board.post.remote(self.seen, f"epoch {epoch}/{self.config.epochs}  {note}", metrics)

    def _validate(self) -> tuple[dict[str, float], Spec]:
        """Validation metrics, and the spec with temperature and review threshold fitted on the validation rows."""
        self.model.eval()
        rows, predicted, confidences, losses = [], [], [], []
        temperatures = torch.tensor(TEMPERATURES, dtype=torch.float32, device=self.device)
        for number, batch in enumerate(pack(self.validation.tokens.lengths, EVALUATION_TOKENS)):
            if number % self.world != self.rank:
                continue
            with torch.inference_mode():
                # Not through DDP: its forward talks to the other ranks, which may have fewer batches.
                logits = self._logits(self.plain, self.validation.tokens, batch)
                # log Z at every temperature, [rows, temperatures]: confidence and loss then need no second pass.
                scores, labels = logits.max(dim=1)
                normaliser = torch.stack([torch.logsumexp(logits / t, dim=1) for t in temperatures], dim=1)
                true = torch.from_numpy(self.validation.labels[batch]).to(self.device)
                truth = logits.gather(1, true.clamp(min=0).unsqueeze(1)) / temperatures
                loss = torch.where((true >= 0).unsqueeze(1), normaliser - truth, torch.nan)
            rows.append(batch)
            predicted.append(labels.cpu().numpy())
            confidences.append((scores.unsqueeze(1) / temperatures - normaliser).exp().cpu().numpy())
            losses.append(loss.cpu().numpy())
        return self._score(
            *(self._gather(parts, kind) for parts, kind in ((rows, 1), (predicted, 1), (confidences, 2), (losses, 2)))
        )

    def _gather(self, parts: list[npt.NDArray[Any]], dimensions: int) -> npt.NDArray[Any]:
        mine = np.concatenate(parts) if parts else np.empty((0, len(TEMPERATURES))[:dimensions])
        if self.world == 1:
            return mine
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return np.concatenate([part for part in everyone if len(part)])

    def _score(
        self, rows: IntArray, predicted: IntArray, confidences: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]
    ) -> tuple[dict[str, float], Spec]:
        true = self.validation.labels[rows]
        correct = predicted == true
        scores = flat_scores(true, predicted)
        loss = np.nanmean(losses, axis=0) if (true >= 0).any() else np.abs(np.log(TEMPERATURES))
        best = int(loss.argmin())
        coverage, threshold = coverage_at(confidences[:, best], correct, self.config.target_precision)
        plain = int(np.abs(np.log(TEMPERATURES)).argmin())
        metrics = {
            "val_loss": float(loss[plain]),
            "val_accuracy": scores.accuracy,
            "val_weighted_f1": scores.weighted_f1,
            "val_macro_f1": scores.macro_f1,
            "val_calibration_error": expected_calibration_error(confidences[:, best], correct),
            "val_coverage": coverage,
            "val_temperature": float(TEMPERATURES[best]),
        }
        # Above every confidence when the precision was never reached: then all rows need review.
        return metrics, replace(self.spec, temperature=float(TEMPERATURES[best]), review_threshold=min(threshold, 1.01))

    def _report(self, metrics: dict[str, float], spec: Spec) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save_bundle(Path(folder) / "bundle", self.plain, self.base, spec)
                state = {"optimizer": self.optimizer.state_dict(), **{key: getattr(self, key) for key in COUNTERS}}
                torch.save(state, Path(folder) / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            self.plain.load_state_dict(
                load_file(Path(folder) / "bundle" / "model.safetensors", device=str(self.device))
            )
            state = torch.load(Path(folder) / "state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.seen, self.best, self.stale = (state[key] for key in COUNTERS)


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


def default_learning_rate(model: torch.nn.Module) -> float:
    """3e-4 for MiniLM's width of 384, falling with the square of the width: 7.5e-5 for BERT-base."""
    width = next(module.embedding_dim for module in model.modules() if isinstance(module, torch.nn.Embedding))
    return 3e-4 * (384 / width) ** 2


def _parameter_groups(model: torch.nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Four groups: encoder and head, matrices (with weight decay) and vectors (without). `peak` is the highest rate."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("classifier"), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": rate * (HEAD_RATE if head else 1.0),
            "lr": 0.0,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (head, matrix), parameters in groups.items()
    ]
