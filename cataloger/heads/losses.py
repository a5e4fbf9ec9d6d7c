"""What training minimises: cross-entropy over the categories, over the levels of their tree, and fair to the long tail."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cataloger.config import LongTail
from cataloger.taxonomy import Taxonomy

FOCUS = 2.0
BETA = 0.999


class Loss:
    """Per-row loss of logits. `counts` [categories] are the training rows of each category.

    With level weights w, top level first, the cross-entropy of the row's ancestor at each upper level l is added w[l] times;
    the probability of an ancestor is the sum over the categories below it. With label smoothing s, a share s of the target is spread evenly over the levels
    of the tree and at each level over the categories that share the row's ancestor there: near categories get more than
    far ones (after Bertinetto et al. 2020, section 3.2).
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        counts: npt.NDArray[np.int64],
        long_tail: LongTail = "off",
        level_weights: Sequence[float] = (),
        label_smoothing: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.long_tail, self.level_weights, self.label_smoothing = long_tail, tuple(level_weights), label_smoothing
        self.weight = torch.from_numpy(class_weights(counts)).float().to(device)
        # Categories without training rows keep a finite prior.
        self.log_prior = torch.from_numpy(np.log(np.maximum(counts, 0.5) / counts.sum())).float().to(device)
        self.levels = [torch.from_numpy(group).to(device) for group in taxonomy.groups[:-1]]

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows] losses of [rows, categories] float32 logits and [rows] label ids."""
        # Menon et al. 2021, equation 10, with tau = 1: the prior is added while training, and not when predicting.
        scores = logits + self.log_prior if self.long_tail == "logit-adjusted" else logits
        logs = F.log_softmax(scores, dim=1)
        own = logs.gather(1, labels.unsqueeze(1)).squeeze(1)
        loss = -own
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * self._far(logs, labels)
        if self.long_tail == "focal":  # Lin et al. 2017, equation 4
            loss = loss * (1 - own.exp()).clamp(min=0) ** FOCUS
        if self.long_tail == "class-balanced":
            loss = loss * self.weight[labels]
        for group, weight in zip(self.levels, self.level_weights, strict=False):
            if weight:
                outside = group.unsqueeze(0) != group[labels].unsqueeze(1)
                loss = loss - weight * logs.masked_fill(outside, -torch.inf).logsumexp(dim=1)
        return loss

    def _far(self, logs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the root and the upper levels of the mean -log p of the categories below the row's ancestor there."""
        losses = [-logs.mean(dim=1)]
        for group in self.levels:
            inside = (group.unsqueeze(0) == group[labels].unsqueeze(1)).float()
            losses.append(-(logs * inside).sum(dim=1) / inside.sum(dim=1))
        return torch.stack(losses).mean(dim=0)


class SetLoss:
    """Per-row loss of logits of a model that gives any number of categories: binary cross-entropy, summed over the categories."""

    level_weights: tuple[float, ...] = ()

    def __init__(self, long_tail: LongTail = "off") -> None:
        self.long_tail = long_tail

    def __call__(self, logits: torch.Tensor, indicators: torch.Tensor) -> torch.Tensor:
        """[rows] losses of [rows, categories] float32 logits and indicators, 1 where the row has the category."""
        loss = F.binary_cross_entropy_with_logits(logits, indicators, reduction="none")
        if self.long_tail == "focal":  # Lin et al. 2017, equation 4
            loss = loss * (1 - (-loss).exp()) ** FOCUS
        return loss.sum(dim=1)


def class_weights(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Inverse effective number of rows, (1 - beta) / (1 - beta^n) with beta = 0.999 (Cui et al. 2019, equation 4).

    Scaled so that their mean over the training rows is 1: the learning rate keeps its meaning.
    """
    weights = (1 - BETA) / (1 - BETA ** np.maximum(counts, 1).astype(np.float64))
    return np.asarray(weights * counts.sum() / (weights * counts).sum())
