"""The seam between a network and its answers: what its logits mean, and what a training makes of labels."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged
from cataloger.heads.many_categories import ManyCategories
from cataloger.heads.one_category import OneCategory
from cataloger.heads.ranked import Ranked
from cataloger.heads.several import Several
from cataloger.heads.tags import Tags
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec, Words

Tensors = tuple[torch.Tensor, ...]
Arrays = dict[str, npt.NDArray[Any]]


class TrainingLoss(Protocol):
    """What training minimises."""

    level_weights: tuple[float, ...]
    """What an error at each upper level of the tree costs, the category's own being 1; may be set anew after an epoch."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, /) -> torch.Tensor:
        """[rows]"""


class Head(Protocol):
    """For one kind of answer, on a device. Logits are float32 [rows, categories], `sets` the label ids of rows, -1 an unknown one.

    Of tags, they are those of each word (see `tags`).
    """

    def __init__(self, spec: Spec, device: torch.device | str) -> None: ...

    def targets(self, sets: Ragged) -> torch.Tensor:
        """What losses hold the logits of these rows against, on the device."""

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[rows] what calibration and validation go by; 0 where a target is unknown."""

    def objective(self, config: TrainConfig, sets: Ragged) -> TrainingLoss:
        """`sets` are those of the training rows."""

    def read(self, logits: torch.Tensor, alternatives: int) -> Tensors:
        """What is kept of a batch, on the device: tensors whose rows are those of the logits."""

    def join(self, batches: Sequence[Tensors], place: IntArray) -> pa.Table:
        """The answers of all rows (see `columns`); the one that came at `place[i]` is row i."""

    def judge(self, logits: torch.Tensor, sets: Ragged) -> Arrays:
        """Validation rows by `read`'s own arithmetic, so that what is fitted on them holds for what is published.

        Arrays by name; those of several batches are joined end to end.
        """

    def fit(self, judged: Arrays, target_precision: float) -> tuple[dict[str, float], Spec]:
        """(metrics of the validation rows, the spec with thresholds fitted on those that are `distinct`, or on all)

        `val_weighted_f1` and `val_accuracy` are among the metrics: the first decides which epoch is kept, of equal ones `val_loss`.
        """


class OfTexts(Head, Protocol):
    """A head whose logits are of whole texts."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """[rows, categories] as `read` has them."""


class Joining(OfTexts, Protocol):
    """A head whose answers words can give as well."""

    def with_words(self, logits: torch.Tensor, ranked: Ranked, words: Words) -> torch.Tensor:
        """Logits of both models together; `ranked` are those of words, of the same rows."""


HEADS: Mapping[str, type[Head]] = {ONE_CATEGORY: OneCategory, MANY_CATEGORIES: ManyCategories, TAGS: Tags}


def head_of(spec: Spec, device: torch.device | str) -> Head:
    """That of a model."""
    if spec.others:
        return several_of(spec, device)  # type: ignore[return-value]  # but for what a validation asks of each of its parts
    return HEADS[spec.head](spec, device)


def joining(head: Head) -> Joining:
    """Of a model with words: a spec has them beside no other head."""
    return cast(Joining, head)


def several_of(spec: Spec, device: torch.device | str) -> Several:
    """That of a model, as a head of several answers, be it one."""
    return Several(spec, [HEADS[answer.head](answer, device) for answer in spec.answers])


def joined(parts: Sequence[Arrays]) -> Arrays:
    """What `judge` made of several batches, as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
