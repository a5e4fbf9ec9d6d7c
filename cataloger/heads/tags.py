"""Tags of words: stretches of a text that have a name. Each word begins a tag, goes on with one, or has none."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn import functional as F

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged
from cataloger.data.spans import HIDDEN, names_in
from cataloger.heads.one_category import NEVER
from cataloger.spec import Spec

# What stands for words beyond the end of a row: nothing is learnt of them.
BEYOND = -2
# A name with too few tags on validation takes the threshold of all names together. Enough are so many times those that could just show
# the target precision, if all of them were right.
ENOUGH = 3


class Tags:
    """Softmax over "no tag" and two classes for each name (Ramshaw and Marcus 1995): 1 + 2n begins a tag of name n, 2 + 2n goes on.

    Logits are [rows, words * classes], words as many as the longest row of the batch has. A word's name is the one with the
    highest sum of both of its classes; the confidence of a tag is the geometric mean of its words'.
    """

    def __init__(self, spec: Spec, device: torch.device | str) -> None:
        self.spec, self.device, self.classes = spec, device, 1 + 2 * len(spec.categories)

    def targets(self, sets: Ragged) -> torch.Tensor:
        """int64 [rows, words]: the class of each word, HIDDEN of what nobody knows."""
        lengths = sets.lengths
        matrix = np.full((len(sets), max(1, int(lengths.max(initial=0)))), BEYOND, np.int64)
        matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = sets.flat[sets.offsets[0] : sets.offsets[-1]]
        return torch.from_numpy(matrix).to(self.device)

    def losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed over the words of a row."""
        return self.word_losses(logits, targets).sum(dim=1)

    def word_losses(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """[rows, words] cross entropies, 0 of what nobody knows. The logits may be of more words than the targets."""
        by_word = self._by_word(logits)
        known = F.pad(targets.masked_fill(targets < 0, -100), (0, by_word.shape[1] - targets.shape[1]), value=-100)
        return F.cross_entropy(by_word.transpose(1, 2), known, reduction="none", label_smoothing=smoothing)

    def objective(self, config: TrainConfig, sets: Ragged) -> "TagLoss":
        return TagLoss(self, float(np.count_nonzero(sets.flat >= 0)) / max(1, len(sets)), config.label_smoothing)

    def read(self, logits: torch.Tensor, alternatives: int) -> tuple[torch.Tensor, ...]:
        """(name of each word, -1 for none; whether a tag begins there; the logarithm of its probability), each [rows, words]."""
        scaled = torch.log_softmax(self._by_word(logits) / self.spec.temperature, dim=2)
        begins, goes_on = scaled[:, :, 1::2], scaled[:, :, 2::2]
        both = torch.logaddexp(begins, goes_on)
        best, name = both.max(dim=2) if both.numel() else (both.sum(dim=2), both.sum(dim=2).long())
        named = best > scaled[:, :, 0]
        begin = (begins > goes_on).gather(2, name.unsqueeze(2)).squeeze(2) if both.numel() else named
        return torch.where(named, name, -1), begin & named, torch.where(named, best, scaled[:, :, 0])

    def join(self, batches: Sequence[tuple[torch.Tensor, ...]], place: IntArray) -> pa.Table:
        """One column, `tags`: list<struct<name: int32, first: int32, last: int32, confidence: float>>, by the numbers of words."""
        found = [_stretches(*(tensor.cpu().numpy() for tensor in batch)) for batch in batches]
        before = np.cumsum([0, *(len(batch[0]) for batch in batches)])
        row = np.concatenate([own[0] + start for own, start in zip(found, before, strict=False)])
        counts = np.bincount(row, minlength=int(before[-1]))
        names = ("name", "first", "last", "confidence")
        kinds = (np.int32, np.int32, np.int32, np.float32)
        columns = [np.concatenate([own[1 + n] for own in found]).astype(kind) for n, kind in enumerate(kinds)]
        tags = pa.StructArray.from_arrays([pa.array(column) for column in columns], list(names))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.table({"tags": pa.ListArray.from_arrays(pa.array(offsets), tags)}).take(pa.array(place))

    def judge(self, logits: torch.Tensor, sets: Ragged) -> dict[str, npt.NDArray[Any]]:
        """Of N rows, the G tags that are given and the T true ones; what nobody knows counts on neither side."""
        targets = self.targets(sets)
        loss = self.losses(logits, targets)
        row, name, first, last, confidence = _stretches(*(tensor.cpu().numpy() for tensor in self.read(logits, 0)))
        width = logits.shape[1] // self.classes
        known = np.pad(targets.cpu().numpy(), ((0, 0), (0, width - targets.shape[1])), constant_values=BEYOND)
        # With a word of no tag behind each row, none goes on in the next one.
        flat = np.append(np.maximum(known, 0), np.zeros((len(known), 1), np.int64), axis=1).reshape(-1)
        start, end, true = names_in(flat)
        hidden = np.append(np.cumsum(known.reshape(-1) == HIDDEN), 0)
        seen = hidden[row * width + last] == np.where(row * width + first > 0, hidden[row * width + first - 1], 0)
        row, name, first, last, confidence = (one[seen] for one in (row, name, first, last, confidence))
        theirs = set(zip(start.tolist(), end.tolist(), true.tolist(), strict=True))
        at = row * (width + 1)
        mine = zip((at + first).tolist(), (at + last).tolist(), name.tolist(), strict=True)
        return {
            "loss": loss.cpu().numpy(),  # [N]
            "rows": np.bincount(start // (width + 1), minlength=len(known)),  # [N] how many of T
            "given_rows": np.bincount(row, minlength=len(known)),  # [N] how many of G
            "given": name,  # [G]
            "confidence": confidence,  # [G]
            "right": np.fromiter((one in theirs for one in mine), bool, len(row)),  # [G]
            "true": true,  # [T]
        }

    def fit(self, judged: dict[str, npt.NDArray[Any]], target_precision: float) -> tuple[dict[str, float], Spec]:
        # Imported here: of use to training and evaluation only.
        from cataloger.heads.metrics import expected_calibration_error, least_trusted, trusted_from

        size = len(self.spec.categories)
        given, true, right = judged["given"], judged["true"], judged["right"]
        confidence = judged["confidence"].astype(np.float64)
        had, found = np.bincount(true, minlength=size), np.bincount(given[right], minlength=size)
        f1 = 2 * found / np.maximum(had + np.bincount(given, minlength=size), 1)
        occurs = (had + np.bincount(given, minlength=size)) > 0
        owner = np.repeat(np.arange(len(judged["loss"])), judged["given_rows"])
        once = judged.get("distinct", np.ones(len(judged["loss"]), bool))[owner]
        common = min(trusted_from(confidence[once], right[once], target_precision), NEVER)
        thresholds = np.full(size, common)
        enough = ENOUGH * least_trusted(target_precision) if target_precision < 1 else np.inf
        for name in np.flatnonzero(np.bincount(given[once], minlength=size) >= enough):
            mine = once & (given == name)
            thresholds[name] = min(trusted_from(confidence[mine], right[mine], target_precision), NEVER)
        rows_right = (np.bincount(owner, right, len(judged["loss"])) == judged["given_rows"]) & (
            judged["rows"] == judged["given_rows"]
        )
        sure = confidence.astype(np.float32) >= thresholds.astype(np.float32)[given]
        metrics = {
            "val_loss": float(judged["loss"].mean()),
            "val_accuracy": float(rows_right.mean()),
            "val_weighted_f1": float((had * f1).sum() / max(1, had.sum())),
            "val_macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
            "val_micro_f1": float(2 * right.sum() / max(1, len(true) + len(given))),
            "val_calibration_error": expected_calibration_error(confidence, right),
            "val_coverage": float(sure.mean()) if len(sure) else 0.0,
            "val_temperature": self.spec.temperature,
        }
        own = tuple(float(value) for value in thresholds)
        return metrics, replace(self.spec, category_thresholds=own)

    def _by_word(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.reshape(len(logits), logits.shape[1] // self.classes, self.classes)


class TagLoss:
    """Cross entropy of all known words, as the mean of a batch of rows with as many of them as is usual."""

    def __init__(self, head: Tags, words: float, smoothing: float) -> None:
        self.head, self.words, self.smoothing = head, max(1.0, words), smoothing
        self.level_weights: tuple[float, ...] = ()

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, /) -> torch.Tensor:
        return self.head.word_losses(logits, targets, self.smoothing).sum(dim=1) / self.words


def _stretches(
    name: npt.NDArray[np.int64], begin: npt.NDArray[np.bool_], log_probability: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], ...]:
    """(row, name, first word, last word, confidence) of the tags in [rows, words] as `read` gives them."""
    width = name.shape[1] + 1
    labels = np.zeros((len(name), width), np.int64)
    labels[:, :-1] = np.where(name < 0, 0, np.where(begin, 1 + 2 * name, 2 + 2 * name))
    first, last, found = names_in(labels.reshape(-1))
    row = first // width
    first, last = first - row * width, last - row * width
    total = np.cumsum(np.append(np.zeros((len(name), 1)), log_probability.astype(np.float64), axis=1), axis=1)
    mean = (total[row, last + 1] - total[row, first]) / (last - first + 1)
    return row, found, first, last, np.exp(mean).astype(np.float32)
