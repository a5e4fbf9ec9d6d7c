"""A few numbers of least loss on validation rows: temperatures, and how words join a network."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from scipy.optimize import minimize
from scipy.stats import t as student_t

from cataloger.data.batching import IntArray, Ragged
from cataloger.heads.base import head_of, joining
from cataloger.spec import Spec, Words
from cataloger.training.hearing import Heard

# Words join a network where rows show with this confidence that it helps. At least so many rows: of fewer, one may outweigh all others.
CONFIDENCE, LEAST_ROWS = 0.95, 30
# The logarithms of one or two numbers are looked for (Nelder and Mead 1965).
SIMPLEX: dict[str, Any] = {"method": "Nelder-Mead", "options": {"xatol": 1e-3, "fatol": 1e-3}}
Logits = Iterable[tuple[IntArray, torch.Tensor]]
Change = Callable[[IntArray, torch.Tensor], torch.Tensor]
BoolArray = npt.NDArray[np.bool_]


class Fit:
    """Numbers of least loss over all ranks' rows."""

    def __init__(self, spec: Spec, sets: Ragged, kept: Logits, world: int, device: torch.device) -> None:
        self.head, self.world, self.device = head_of(spec, device), world, device
        self.kept = [(batch, found, self.head.targets(sets.take(batch))) for batch, found in kept]
        self.known = _known(sets)

    def temperature(self, change: Change = lambda _, found: found, rows: BoolArray | None = None) -> float:
        """That of the logits, changed, of these rows, or of all (Guo et al. 2017, section 4.2)."""
        if not self._loss(change, rows):
            return 1.0  # without a row of a known category there is nothing to fit
        found = minimize(
            lambda x: self._loss(lambda batch, logits: change(batch, logits) / _positive(x, 4.0), rows), 0.0, **SIMPLEX
        ).x
        return _positive(found, 4.0)

    def joining(self, heard: Heard, rows: BoolArray | None = None) -> Words:
        """How words and network are joined, fitted on all rows or on these, of rows that belong together on one.

        A few rows that both are sure of say nothing about the two numbers, which would then go anywhere: a prior, log-normal around
        where the search begins, holds them as one row would.
        """
        rows = heard.distinct if rows is None else heard.distinct & rows

        def words(x: npt.NDArray[np.float64]) -> Words:
            return replace(heard.words, network_temperature=_positive(x[0]), weight=_positive(x[1]))

        start = np.log([1.5 * self.temperature(rows=rows), 0.3])

        def loss(x: npt.NDArray[np.float64]) -> float:
            return float(((x - start) ** 2).sum() / 2) + self._loss(self._joined_by(heard, words(x)), rows)

        return words(minimize(loss, start, **SIMPLEX).x)

    def shown_to_help(self, heard: Heard, words: Words) -> bool:
        """Whether the loss with words is lower than the network's alone, by a paired t-test over rows that do not belong together and
        whose category the model knows.

        With words there is one fitted number more. It gains 1 by chance (Akaike 1974), which is taken off.
        """
        alone, told = self.temperature(rows=heard.distinct), heard.distinct & self.known
        moments = torch.zeros(3, dtype=torch.float64, device=self.device)
        network, both = (
            self._losses(change, told) for change in (lambda _, logits: logits / alone, self._joined_by(heard, words))
        )
        for without, with_words in zip(network, both, strict=True):
            gain = without - with_words
            moments += torch.stack([torch.ones_like(gain).sum(), gain.sum(), (gain**2).sum()])
        rows, gain, squares = self._of_all_ranks(moments).tolist()
        if rows < LEAST_ROWS:
            return False
        deviation = (max(0.0, squares - gain**2 / rows) * rows / (rows - 1)) ** 0.5
        return bool(gain - 1 > student_t.ppf(CONFIDENCE, rows - 1) * deviation)

    def _joined_by(self, heard: Heard, words: Words) -> Change:
        return lambda batch, found: joining(self.head).with_words(found, heard.ranked.take(batch), words)

    def _loss(self, change: Change, rows: BoolArray | None = None) -> float:
        """The summed loss of the logits, changed; of these rows, or of all."""
        total = torch.zeros(1, dtype=torch.float64, device=self.device)
        for losses in self._losses(change, rows):
            total += losses.sum()
        return float(self._of_all_ranks(total))

    def _losses(self, change: Change, rows: BoolArray | None) -> Iterator[torch.Tensor]:
        for batch, found, targets in self.kept:
            losses = self.head.losses(change(batch, found), targets).double()
            yield losses if rows is None else losses[torch.from_numpy(rows[batch]).to(self.device)]

    def _of_all_ranks(self, total: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(total)
        return total


def _known(sets: Ragged) -> BoolArray:
    """[N] whether the model knows a category of each row, or the row has none."""
    of = np.repeat(np.arange(len(sets)), sets.lengths)
    flat = sets.flat[sets.offsets[0] : sets.offsets[-1]]
    known: BoolArray = (np.bincount(of, flat >= 0, len(sets)) > 0) | (sets.lengths == 0)
    return known


def _positive(x: npt.NDArray[np.float64], most: float = 400.0) -> float:
    """From its logarithm, from 1 / `most` to `most`."""
    return float(np.clip(np.exp(x), 1 / most, most).item())
