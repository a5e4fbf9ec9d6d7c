"""What a worker trains: a stage of training as the loop sees it, and the last one, that of the categories."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from cataloger.bundle import Spec
from cataloger.config import TrainConfig
from cataloger.data.augmentation import Augmenter, Ids
from cataloger.data.batching import IntArray, Ragged, Tokens, most_rows, pack
from cataloger.data.inputs import Encoded
from cataloger.heads.base import head_of
from cataloger.training.examples import Examples, draw
from cataloger.training.tuning import parameter_groups
from cataloger.training.validation import TOKENS_PER_BATCH

NOTHING = np.empty(0, np.int32), np.zeros(1, np.int64)
NO_LABELS = Examples(Tokens(*NOTHING), Ragged(*NOTHING))


@dataclass(frozen=True)
class Machine:
    """Where and how precisely a worker computes."""

    device: torch.device
    bf16: bool

    def batch(self, encoded: Encoded, rows: IntArray) -> dict[str, torch.Tensor]:
        """The network's arguments for these rows, on the device."""
        return {name: torch.from_numpy(array).to(self.device) for name, array in encoded.batch(rows).items()}

    def arithmetic(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


class Objective(Protocol):
    """One stage of training. `network` is what DDP wraps; `rows` are the labelled rows, or texts, of an epoch."""

    network: Any
    epochs: int
    rows: int

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of AdamW, `peak` is a group's highest learning rate. Freezes what is not trained."""

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Tokens, IntArray]:
        """(texts, the order in which this epoch goes through them)."""

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        """Per-row losses [rows] of the network as DDP has wrapped it."""


class Classification:
    """The labelled rows, and from the second epoch on those that the model has labelled itself; of one category each, or of any number."""

    def __init__(
        self,
        config: TrainConfig,
        spec: Spec,
        network: Any,
        train: Examples,
        unlabelled: Examples,
        base: Path,
        machine: Machine,
    ) -> None:
        self.config, self.network, self.machine, self.base = config, network, machine, base
        self.train, self.unlabelled = train, unlabelled
        self.epochs, self.rows, self.spec = config.epochs, len(train), spec
        self.head = head_of(spec, machine.device)
        self.loss = self.head.objective(config, train.sets)
        self.own_labels, self.epoch_rows = NO_LABELS, train

    @cached_property
    def augmenter(self) -> Augmenter:
        return Augmenter(self.base)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.network, self.config)

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Tokens, IntArray]:
        rows = self.train.and_these(self.own_labels) if len(self.own_labels) else self.train
        self.epoch_rows, order = draw(rows, len(self.spec.categories), self.config.long_tail, rng, self._alter)
        return self.epoch_rows.tokens, order

    def _alter(self, text: Ids, rng: np.random.Generator) -> Ids:
        return self.augmenter(text, rng)

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        these = self.epoch_rows
        return self.loss(self.logits(model, these.tokens, rows), self.head.targets(these.sets.take(rows)))

    def logits(self, model: Any, tokens: Tokens, rows: IntArray) -> torch.Tensor:
        """float32 [rows, categories] on the device."""
        batch = self.machine.batch(tokens, rows)
        with self.machine.arithmetic():
            return model(**batch).logits.float()  # type: ignore[no-any-return]

    def weigh_levels(self, metrics: Mapping[str, float]) -> None:
        """With `--level-weights auto`: an upper level counts by its errors on validation, those of the category being 1."""
        if self.config.level_weights == "auto":
            errors = max(1 - metrics["val_accuracy"], 1e-9)
            levels = range(1, len(self.loss.level_weights) + 1)
            self.loss.level_weights = tuple((1 - metrics[f"val_level_{level}_accuracy"]) / errors for level in levels)

    def label_more(self, logits_of: Any, temperature: float, rng: np.random.Generator, rank: int, world: int) -> None:
        """Take up unlabelled rows, at most as many as there are labelled ones, with the model's own labels (Lee 2013).

        Those whose calibrated confidence reaches `--pseudo-labels`. Rank r of n asks for every n-th batch; all get all.
        """
        rows = self.unlabelled.take(rng.permutation(len(self.unlabelled))[: len(self.train)])
        labels, head = np.full(len(rows), -1), head_of(replace(self.spec, temperature=temperature), self.machine.device)
        with torch.inference_mode():
            batches = list(pack(rows.tokens.lengths, TOKENS_PER_BATCH, most_rows(len(self.spec.categories))))
            for batch in batches[rank::world]:
                best, confidence, *_ = head.read(logits_of(rows.tokens, batch), 0)
                sure = torch.where(confidence >= self.config.pseudo_labels, best, -1)
                labels[batch] = sure[:, 0].cpu().numpy()
        if world > 1:
            everyone: list[Any] = [None] * world
            dist.all_gather_object(everyone, labels)
            labels = np.max(everyone, axis=0)
        self.own_labels = Examples.of_one_category(rows.tokens, labels).take(np.flatnonzero(labels >= 0))
