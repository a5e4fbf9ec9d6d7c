"""Several answers from one reading: each has a head, which knows nothing of the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Together
from cataloger.heads.many_categories import sigmoid
from cataloger.spec import ONE_CATEGORY, TAGS, Spec

Tensors = tuple[torch.Tensor, ...]
NOT_ALLOWED = -1e4


class Several:
    """The logits of answers about whole texts stand side by side, and behind them those about words, answer by answer.

    `parts` are the heads of `spec.answers`, `sets` the label ids of each, nothing where nobody knows the answer of a row.
    """

    def __init__(self, spec: Spec, parts: Sequence[Any]) -> None:
        self.spec, self.parts, self.answers = spec, parts, spec.answers
        self.sizes = [len(answer.classes) for answer in self.answers]
        self.of_words = [answer.head == TAGS for answer in self.answers]
        self.allowed = {
            number: _classes_allowed(other.allowed, len(other.categories)).to(parts[number].device)
            for number, other in enumerate(spec.others, 1)
            if other.allowed
        }

    def split(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Those of each answer, as its head takes them."""
        texts = sum(size for size, words in zip(self.sizes, self.of_words, strict=True) if not words)
        each_word = sum(self.sizes) - texts
        words = (logits.shape[1] - texts) // each_word if each_word else 0
        widths = [size * (words if of_words else 1) for size, of_words in zip(self.sizes, self.of_words, strict=True)]
        order = sorted(range(len(widths)), key=lambda number: self.of_words[number])  # stable: texts first
        found = dict(zip(order, torch.split(logits, [widths[number] for number in order], dim=1), strict=True))
        return [found[number] for number in range(len(widths))]

    def sensible(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """As `split`, without tags whose name the row's categories, by the first answer, do not have."""
        found = self.split(logits)
        for number, allowed in self.allowed.items():
            words = found[number].shape[1] // self.sizes[number]
            by_word = found[number].reshape(len(logits), words, self.sizes[number])
            may = self._allowed(found[0], allowed)
            found[number] = by_word.masked_fill(~may.unsqueeze(1), NOT_ALLOWED).flatten(1)
        return found

    def _allowed(self, logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """bool [rows, classes]: those of the row's most probable category, and of all others that it has where it may have several."""
        best: torch.Tensor = allowed[logits.argmax(dim=1)]
        if self.answers[0].head == ONE_CATEGORY:
            return best
        chosen = sigmoid(logits / self.answers[0].temperature) >= self.parts[0].thresholds
        found: torch.Tensor = best | (chosen.float() @ allowed.float() > 0)
        return found

    def known(self, sets: Together) -> list[npt.NDArray[np.bool_]]:
        """Of each answer, which rows have one: a label, or a word that is known to be of a tag or of none."""
        return [
            own.has(own.flat >= 0) if of_words else own.lengths > 0
            for own, of_words in zip(sets.parts, self.of_words, strict=True)
        ]

    def targets(self, sets: Together) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """(those of each answer, which rows have it)"""
        return tuple(
            (targets := part.targets(own), torch.from_numpy(known).to(targets.device))
            for part, own, known in zip(self.parts, sets.parts, self.known(sets), strict=True)
        )

    def objective(self, config: TrainConfig, sets: Together) -> "WeighedLoss":
        losses = [
            part.objective(config, own.take(np.flatnonzero(known)))
            for part, own, known in zip(self.parts, sets.parts, self.known(sets), strict=True)
        ]
        return WeighedLoss(self, losses, config.answer_weights)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of the first answer, where it is of texts."""
        found: torch.Tensor = self.parts[0].probabilities(self.split(logits)[0])
        return found

    def read(self, logits: torch.Tensor, alternatives: int) -> tuple[Tensors, ...]:
        return tuple(part.read(own, alternatives) for part, own in zip(self.parts, self.sensible(logits), strict=True))

    def join(self, batches: Sequence[tuple[Tensors, ...]], place: IntArray) -> pa.Table:
        """Columns of further answers have their number before their name: `1.label`."""
        first, *others = (
            part.join([batch[number] for batch in batches], place) for number, part in enumerate(self.parts)
        )
        for number, table in enumerate(others, 1):
            for name in table.column_names:
                first = first.append_column(f"{number}.{name}", table.column(name))
        return first


class WeighedLoss:
    """The sum of all answers' losses, each by its weight, or by its uncertainty, which is learnt: exp(-s) loss + s (Kendall, Gal and
    Cipolla 2018, equation 7, with the usual simpler form for s = log of the variance). A row that lacks an answer teaches nothing of it.
    """

    def __init__(self, head: Several, losses: Sequence[Any], weights: Sequence[float]) -> None:
        self.head, self.losses, self.weights = head, losses, weights
        self.uncertainty: torch.Tensor | None = None
        """Of the network that is trained, where no weights are given."""

    @property
    def level_weights(self) -> tuple[float, ...]:
        return tuple(self.losses[0].level_weights)

    @level_weights.setter
    def level_weights(self, values: tuple[float, ...]) -> None:
        self.losses[0].level_weights = values

    def __call__(self, logits: torch.Tensor, targets: Any, /) -> torch.Tensor:
        """`targets` are (those of each answer, which rows have it)."""
        total = logits.new_zeros(len(logits))
        for number, (loss, own, (theirs, known)) in enumerate(
            zip(self.losses, self.head.split(logits), targets, strict=True)
        ):
            lost = logits.new_zeros(len(logits)).masked_scatter(known, loss(own[known], theirs[known]))
            if self.uncertainty is None:
                total = total + self.weights[number] * lost
            else:
                total = total + torch.exp(-self.uncertainty[number]) * lost + known * self.uncertainty[number]
        return total


def _classes_allowed(allowed: Sequence[Sequence[int] | None], names: int) -> torch.Tensor:
    """bool [categories, classes]: the classes of each word that a category may have."""
    found = torch.zeros(len(allowed), 1 + 2 * names, dtype=torch.bool)
    found[:, 0] = True
    for category, own in enumerate(allowed):
        for name in range(names) if own is None else own:
            found[category, 1 + 2 * name : 3 + 2 * name] = True
    return found
