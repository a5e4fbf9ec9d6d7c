"""What a worker trains, stage by stage: the seam that the loop knows, and the last stage, that of the categories."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from cataloger.config import TrainConfig
from cataloger.data.augmentation import Augmenter
from cataloger.data.batching import IntArray, most_rows, pack
from cataloger.data.inputs import Encoded
from cataloger.heads.base import head_of
from cataloger.spec import Spec
from cataloger.training.examples import Examples, draw
from cataloger.training.gallery import vary
from cataloger.training.hearing import Heard
from cataloger.training.order import Order, Shuffled
from cataloger.training.tuning import adversarial, averaged, parameter_groups
from cataloger.training.validation import TOKENS_PER_BATCH, Validation

# A group of fewer rows counts as one of so many: a weight beyond that would teach the noise of a few products.
LEAST_BALANCED = 50


@dataclass(frozen=True)
class Machine:
    """Where and how precisely a worker computes, and which of all workers it is."""

    device: torch.device
    bf16: bool
    rank: int = 0
    world: int = 1

    def batch(self, encoded: Encoded, rows: IntArray) -> dict[str, torch.Tensor]:
        """The network's arguments for these rows, on the device."""
        return {name: torch.from_numpy(array).to(self.device) for name, array in encoded.batch(rows).items()}

    def arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


@dataclass(frozen=True)
class Result:
    """What an epoch came to: its metrics on validation, and the model to keep."""

    metrics: dict[str, float]
    spec: Spec
    network: Any
    judged: bool = True
    """Whether the metrics are of this network; those of the one before, if it has learnt from the rows that judge. It goes before all others."""


class Stage(Protocol):
    """One stage of training. The loop knows stages, and not which one it is in."""

    name: str
    """`train` or `pretrain`: its losses are the metric NAME_loss."""
    network: Any
    """What DDP wraps."""
    epochs: int
    rows: int
    """Those of an epoch."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of AdamW, `peak` is a group's highest learning rate. Freezes what is not trained."""

    def entered(self) -> None:
        """The network is on its device now."""

    def prepare_epoch(self, seeds: Sequence[int]) -> dict[str, float]:
        """Before the first batch of an epoch, the last of the `seeds`; metrics to log."""

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Encoded, Order]:
        """(rows, the order in which this epoch goes through them); also where an epoch is gone on with."""

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        """Per-row losses [rows] of the network as DDP has wrapped it."""

    def step(self, backward: Callable[[], torch.Tensor], update: Callable[[], None]) -> torch.Tensor:
        """Call `backward`, which adds to the gradients, and then `update`, which moves the weights; the loss to log."""

    def end_epoch(self) -> Result | None:
        """What to keep of the epoch that has ended."""

    def state(self) -> dict[str, Any]:
        """All that the stage needs to go on: tensors, numbers, lists and dicts of them."""

    def load_state(self, state: dict[str, Any]) -> None: ...


class FineTuning:
    """The labelled rows, and from the second epoch on those that the model has labelled itself."""

    name = "train"

    def __init__(
        self,
        config: TrainConfig,
        spec: Spec,
        network: Any,
        rows: tuple[Examples, Examples, Examples],
        base: Path,
        machine: Machine,
        heard: Heard | None = None,
    ) -> None:
        self.config, self.spec, self.network, self.machine, self.base = config, spec, network, machine, base
        self.train, held_out, self.unlabelled = rows
        assert config.epochs is not None, "chosen by the plan where nobody asked for a number"
        # Without an epoch the weights are as they shall be: they are judged, and what goes with them is fitted.
        self.epochs, self.rows = max(1, config.epochs), len(self.train) if config.epochs else 0
        self.head = head_of(spec, machine.device)
        self.loss = self.head.objective(config, self.train.sets)
        self.weighs_by_itself = bool(spec.others) and not config.answer_weights
        if self.weighs_by_itself:
            self.loss.uncertainty = network.uncertainty  # type: ignore[attr-defined]  # of several answers
        self.validation = Validation(held_out, spec, config, machine.rank, machine.world, heard)
        self.temperature = 1.0  # of the network's logits, by the last validation
        self.own_labels, self.epoch_rows = self.train.take(np.arange(0)), self.train
        self.average: Any = None

    @cached_property
    def group_weights(self) -> torch.Tensor:
        """float32 [groups] on the device, whose mean over the training rows is one; where groups are balanced."""
        assert self.train.groups is not None
        counts = np.bincount(self.train.groups)
        weights = 1 / np.sqrt(np.maximum(counts, LEAST_BALANCED))
        weights *= counts.sum() / (weights * counts).sum()
        return torch.from_numpy(weights.astype(np.float32)).to(self.machine.device)

    @cached_property
    def augmenter(self) -> Augmenter:
        return Augmenter(self.base)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = parameter_groups(self.network, self.config)
        if (uncertainty := getattr(self.network, "uncertainty", None)) is not None and not self.weighs_by_itself:
            uncertainty.requires_grad_(False)  # of what has no part in the loss, DDP would wait for a gradient
        return groups

    def entered(self) -> None:
        if self.config.average_decay:
            self.average = averaged(self.network, self.config.average_decay)

    def prepare_epoch(self, seeds: Sequence[int]) -> dict[str, float]:
        if not self.config.pseudo_labels or not seeds[-1]:
            return {}
        self.label_more(np.random.default_rng([*seeds, 1]))
        return {"pseudo_labelled_rows": float(len(self.own_labels))}

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Encoded, Order]:
        if not self.config.epochs:
            return self.train.inputs, np.empty(0, np.int64)
        rows = self.train.and_these(self.own_labels) if len(self.own_labels) else self.train
        self.epoch_rows, order = draw(
            rows, len(self.spec.categories), self.config.long_tail, rng, lambda text, rng: self.augmenter(text, rng)
        )
        if self.spec.picture:
            seen = vary(self.epoch_rows.inputs, self.config.image_augmentation, rng)
            self.epoch_rows = replace(self.epoch_rows, inputs=seen)
        return self.epoch_rows.inputs, order

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        these = self.epoch_rows
        losses = self.loss(self.logits(model, these.inputs, rows), self.head.targets(these.sets.take(rows)))
        return (
            losses
            if these.groups is None
            else losses * self.group_weights[torch.from_numpy(these.groups[rows]).to(losses.device)]
        )

    def step(self, backward: Callable[[], torch.Tensor], update: Callable[[], None]) -> torch.Tensor:
        loss = backward()
        if self.config.adversarial:
            with adversarial(self.network.get_input_embeddings().weight, self.config.adversarial):
                backward()
        update()
        if self.average:
            self.average.update_parameters(self.network)
        return loss

    def end_epoch(self) -> Result:
        metrics, spec = self.validation.score(self._logits_of_result(), self.machine.device)
        self.temperature = metrics["val_temperature"]
        if self.config.level_weights == "auto":
            # An upper level counts by its errors on validation, those of the category being 1.
            errors = max(1 - metrics["val_accuracy"], 1e-9)
            levels = range(1, len(self.loss.level_weights) + 1)
            self.loss.level_weights = tuple((1 - metrics[f"val_level_{level}_accuracy"]) / errors for level in levels)
        return Result(metrics, spec, self._result())

    def state(self) -> dict[str, Any]:
        own = self.own_labels
        return {
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "temperature": self.temperature,
            "level_weights": self.loss.level_weights,
            "own_labels": [torch.from_numpy(array) for array in (own.inputs.flat, own.inputs.offsets, own.sets.first())]
            if self.config.pseudo_labels
            else [],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.temperature, self.loss.level_weights = state["temperature"], tuple(state["level_weights"])
        if state["own_labels"]:
            flat, offsets, labels = (tensor.cpu().numpy() for tensor in state["own_labels"])
            self.own_labels = Examples.of_one_category(replace(self.train.inputs, flat=flat, offsets=offsets), labels)

    def logits(self, model: Any, encoded: Encoded, rows: IntArray) -> torch.Tensor:
        """float32 [rows, categories] on the device."""
        batch = self.machine.batch(encoded, rows)
        with self.machine.arithmetic():
            return model(**batch).logits.float()  # type: ignore[no-any-return]

    def label_more(self, rng: np.random.Generator) -> None:
        """Take up unlabelled rows, at most as many as there are labelled ones, with the model's own labels (Lee 2013).

        Those whose calibrated confidence reaches `--pseudo-labels`. Rank r of n asks for every n-th batch; all get all.
        """
        rows, machine = self.unlabelled.take(Shuffled(len(self.unlabelled), rng)[: len(self.train)]), self.machine
        head, logits_of = (
            head_of(replace(self.spec, temperature=self.temperature), machine.device),
            self._logits_of_result(),
        )
        labels = np.full(len(rows), -1)
        with torch.inference_mode():
            batches = list(pack(rows.inputs.costs, TOKENS_PER_BATCH, most_rows(len(self.spec.categories))))
            for batch in batches[machine.rank :: machine.world]:
                best, confidence, *_ = head.read(logits_of(rows.inputs, batch), 0)
                sure = torch.where(confidence >= self.config.pseudo_labels, best, -1)
                labels[batch] = sure[:, 0].cpu().numpy()
        if machine.world > 1:
            everyone: list[Any] = [None] * machine.world
            dist.all_gather_object(everyone, labels)
            labels = np.max(everyone, axis=0)
        self.own_labels = Examples.of_one_category(rows.inputs, labels).take(np.flatnonzero(labels >= 0))

    def _result(self) -> Any:
        """The network to validate and to keep."""
        return self.average.module if self.average else self.network

    def _logits_of_result(self) -> Callable[[Encoded, IntArray], torch.Tensor]:
        # Not through DDP: its forward talks to the other ranks, which may have fewer batches.
        return functools.partial(self.logits, self._result().eval())
