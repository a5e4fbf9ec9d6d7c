"""What logits mean: calibrated answers of a model that gives a product one category, or any number of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn import functional as F

from cataloger.bundle import Spec
from cataloger.data.batching import IntArray, Ragged
from cataloger.heads.levels import Levels

FloatArray = npt.NDArray[np.float32]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Predictions:
    """Calibrated answers for N rows, K alternatives and D levels; `levels` is NaN below the depth of the category."""

    labels: IntArray  # [N] label ids, the most probable category
    confidence: FloatArray  # [N]
    levels: FloatArray  # [N, D] probability of the category's ancestor at each level
    alternatives: IntArray  # [N, K] label ids of the runners-up, most probable first
    alternative_confidence: FloatArray  # [N, K]

    def table(self) -> pa.Table:
        """The columns of `answers`."""
        return pa.table(
            {
                "label": pa.array(self.labels.astype(np.int32)),
                "confidence": pa.array(self.confidence),
                "levels": _matrix(self.levels),
                "alternatives": _matrix(self.alternatives.astype(np.int32)),
                "alternative_confidence": _matrix(self.alternative_confidence),
            }
        )


@dataclass(frozen=True)
class SetPredictions:
    """Answers for N rows of any number of categories each; numbers in `flat` are those of the label ids in the same place."""

    sets: Ragged  # label ids of a row's categories, most probable first
    probabilities: FloatArray  # flat, calibrated
    confidence: FloatArray  # [N] that the row has just these, taking categories as independent
    alternatives: Ragged  # label ids of the most probable other categories
    alternative_probabilities: FloatArray  # flat

    def table(self) -> pa.Table:
        """The columns of `answers` for many categories."""
        return pa.table(
            {
                "labels": _lists(self.sets, self.sets.flat),
                "probabilities": _lists(self.sets, self.probabilities),
                "confidence": pa.array(self.confidence),
                "alternatives": _lists(self.alternatives, self.alternatives.flat),
                "alternative_confidence": _lists(self.alternatives, self.alternative_probabilities),
            }
        )


class Head(Protocol):
    """From the logits of batches to the answers of all rows."""

    def read(self, logits: torch.Tensor, alternatives: int) -> Tensors:
        """What is kept of a batch, on the device: tensors whose rows are those of the float32 [rows, categories] logits."""
        ...

    def join(self, batches: Sequence[Tensors], place: IntArray) -> Any:
        """Predictions of all rows; the one that came at `place[i]` is row i."""
        ...


def head_of(spec: Spec, device: str) -> Head:
    return ManyCategories(spec, device) if spec.multi_label else OneCategory(spec, device)


class OneCategory:
    """Softmax; nothing waits for a batch while the next one is being packed."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.levels = Levels(spec.taxonomy, device)

    def read(self, logits: torch.Tensor, alternatives: int) -> Tensors:
        probabilities = torch.softmax(logits / self.spec.temperature, dim=1)
        top = torch.topk(probabilities, min(alternatives + 1, logits.shape[1]), dim=1)
        return top.indices, top.values, self.levels.confidences(probabilities, top.indices[:, 0])

    def join(self, batches: Sequence[Tensors], place: IntArray) -> Predictions:
        label, score, level = (torch.cat(column).cpu().numpy()[place] for column in zip(*batches, strict=True))
        return Predictions(label[:, 0], score[:, 0], level, label[:, 1:], score[:, 1:])


class ManyCategories:
    """A sigmoid per category, and a threshold."""

    def __init__(self, spec: Spec, device: str) -> None:
        self.spec = spec
        self.thresholds = torch.tensor(spec.category_thresholds or [0.5] * len(spec.categories), device=device)

    def read(self, logits: torch.Tensor, alternatives: int) -> Tensors:
        logits = logits / self.spec.temperature
        probabilities = torch.sigmoid(logits)
        chosen = probabilities >= self.thresholds
        count = chosen.sum(dim=1)
        # Those that reach their threshold first, by probability; a more probable one may stay below its own.
        width = min(int(count.max()) + alternatives, logits.shape[1]) if len(logits) else 0
        top = torch.topk(torch.where(chosen, probabilities, probabilities - 1), width, dim=1).indices
        scores = probabilities.gather(1, top)
        beyond = torch.arange(width, device=top.device) >= count.unsqueeze(1) + alternatives
        return top.masked_fill(beyond, -1), scores, count, set_confidence(logits, chosen)

    def join(self, batches: Sequence[Tensors], place: IntArray) -> SetPredictions:
        widest = max(top.shape[1] for top, *_ in batches)
        padded = [
            (F.pad(top, (0, widest - top.shape[1]), value=-1), F.pad(scores, (0, widest - top.shape[1])), *rest)
            for top, scores, *rest in batches
        ]
        label, score, count, confidence = (
            torch.cat(column).cpu().numpy()[place] for column in zip(*padded, strict=True)
        )
        mine = np.arange(widest) < count[:, None]
        other = ~mine & (label >= 0)
        return SetPredictions(_ragged(label, mine), score[mine], confidence, _ragged(label, other), score[other])


def set_confidence(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """[rows] that a row has just the `chosen` [rows, categories] categories, taking them as independent."""
    return torch.where(chosen, F.logsigmoid(logits), F.logsigmoid(-logits)).sum(dim=1).exp()


def _ragged(labels: IntArray, wanted: npt.NDArray[np.bool_]) -> Ragged:
    return Ragged(labels[wanted].astype(np.int32), np.concatenate([[0], np.cumsum(wanted.sum(axis=1))]))


def _matrix(values: npt.NDArray[Any]) -> pa.Array:
    """A [rows, width] matrix as a list column."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _lists(rows: Ragged, values: npt.NDArray[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), pa.array(values))
