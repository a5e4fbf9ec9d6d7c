"""Validation rows → metrics, and what is fitted on them: temperatures, the weight of words, tiers and thresholds."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from scipy.optimize import minimize
from scipy.stats import t as student_t

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Ragged, Together, most_rows, pack
from cataloger.data.inputs import Encoded
from cataloger.heads.base import Arrays, head_of, joined, joining, several_of
from cataloger.spec import ONE_CATEGORY, Spec, Words
from cataloger.taxonomy import Taxonomy
from cataloger.training.certificate import Certificate, certify
from cataloger.training.checkpoint import ALL_ANSWERS
from cataloger.training.examples import Examples
from cataloger.training.hearing import Heard

TOKENS_PER_BATCH = 8_192
# A few numbers are fitted on as many rows as have this many logits on each rank, in random batches: they need no more.
LOGITS_KEPT = 1 << 24
# Words join a network where rows show with this confidence that it helps. At least so many rows: of fewer, one may outweigh all others.
CONFIDENCE, LEAST_ROWS = 0.95, 30
# The logarithms of one or two numbers are looked for (Nelder and Mead 1965).
SIMPLEX: dict[str, Any] = {"method": "Nelder-Mead", "options": {"xatol": 1e-3, "fatol": 1e-3}}
Logits = Iterable[tuple[IntArray, torch.Tensor]]
Change = Callable[[IntArray, torch.Tensor], torch.Tensor]
BoolArray = npt.NDArray[np.bool_]


class Validation:
    """The validation rows, of which rank r of n scores every n-th batch, in random order."""

    def __init__(
        self, rows: Examples, spec: Spec, config: TrainConfig, rank: int = 0, world: int = 1, heard: Heard | None = None
    ) -> None:
        self.rows, self.spec, self.config, self.world, self.heard = rows, spec, config, world, heard
        batches = list(pack(rows.inputs.costs, TOKENS_PER_BATCH, most_rows(spec.width)))
        self.batches = [batches[i] for i in np.random.default_rng(0).permutation(len(batches))][rank::world]

    def score(
        self, logits_of: Callable[[Encoded, IntArray], torch.Tensor], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """The metrics of all ranks' rows, and the spec with all that is fitted on them."""

        def asked(batches: Sequence[IntArray]) -> Logits:
            return ((batch, logits_of(self.rows.inputs, batch)) for batch in batches)

        with torch.inference_mode():
            kept, size = [], 0
            for pair in asked(self.batches):
                kept.append(pair)
                size += pair[1].numel()
                if size > LOGITS_KEPT:
                    break

            def logits() -> Logits:
                return itertools.chain(kept, asked(self.batches[len(kept) :]))

            if self.heard:
                return self._with_words(
                    self.heard, _Fit(self.spec, self.rows.sets, kept, self.world, device), logits, device
                )
            return self._of_network(kept, logits, device)

    def _of_network(
        self, kept: Sequence[tuple[IntArray, torch.Tensor]], logits: Callable[[], Logits], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """Each answer by the rows that have one; the metrics of further answers have the names of their columns."""
        several = several_of(self.spec, device)
        sets = self.rows.sets if isinstance(self.rows.sets, Together) else Together((self.rows.sets,))
        known = several.known(sets) if self.spec.others else [np.ones(len(sets), bool)]
        specs = []
        for number, spec in enumerate(several.answers):
            own = [(batch[has := known[number][batch]], several.split(found)[number][has]) for batch, found in kept]
            fit = _Fit(spec, sets.parts[number], own, self.world, device)
            specs.append(replace(spec, temperature=fit.temperature()))
        heads = [head_of(spec, device) for spec in specs]
        judged: list[list[Arrays]] = [[] for _ in specs]
        for batch, found in logits():
            everything, sensible = several.split(found), several.sensible(found)
            for number, head in enumerate(heads):
                has = known[number][batch]
                of_rows = sets.parts[number].take(batch[has])
                arrays = head.judge(sensible[number][has], of_rows)
                if number in several.allowed:
                    # Of all names: one that a row's category does not have would cost without end.
                    losses = head.losses(everything[number][has], head.targets(of_rows))
                    arrays |= {"loss": losses.cpu().numpy()}
                judged[number].append(arrays)
        metrics: dict[str, float] = {}
        for number, head in enumerate(heads):
            own_metrics, specs[number] = head.fit(self._gather(judged[number]), self.config.target_precision)
            before = specs[number].prefix if number else ""
            metrics |= {before + name: value for name, value in own_metrics.items()}
            for name in ("weighted_f1", "loss") if len(specs) > 1 else ():
                mean = f"val_{ALL_ANSWERS}{name}"
                metrics[mean] = metrics.get(mean, 0.0) + own_metrics[f"val_{name}"] / len(specs)
        return metrics, self.spec.with_answers(specs)

    def _with_words(
        self, heard: Heard, fit: "_Fit", logits: Callable[[], Logits], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        words, temperature = fit.joining(heard), fit.temperature()
        helps = fit.shown_to_help(heard, words)
        if not helps:
            words = replace(words, network_temperature=fit.temperature(rows=heard.distinct), weight=0.0)
        spec = replace(self.spec, words=words)
        head, network = head_of(spec, device), head_of(replace(spec, temperature=temperature), device)
        tiers = self.config.tiers == "auto" and spec.head == ONE_CATEGORY
        # Of either half of the rows, how both are joined by what was fitted on the other: as rows that nothing has seen.
        others = [fit.joining(heard, heard.half == half) if helps else words for half in (1, 0)] if tiers else []
        judged, of_network, unseen = [], [], []
        for batch, found in logits():
            ranked, sets = heard.ranked.take(batch), self.rows.sets.take(batch)
            distinct = {"distinct": heard.distinct[batch]}
            judged.append(head.judge(joining(head).with_words(found, ranked, words), sets) | distinct)
            of_network.append(network.judge(found, sets))
            labels = [joining(head).with_words(found, ranked, other).argmax(dim=1).cpu().numpy() for other in others]
            unseen.append(
                {"row": batch, "label": np.where(heard.half[batch], labels[1], labels[0]) if tiers else batch}
            )
        everything, target = self._gather(judged), self.config.target_precision
        alone = network.fit(self._gather(of_network), target)[0], head.fit(heard.judged, target)[0]
        metrics, fitted = head.fit(everything, target)
        metrics["val_alone_fraction"] = 0.0
        if tiers:
            seen = self._gather(unseen)
            certificate = self._certify(everything, heard, seen["row"], seen["label"])
            words = replace(words, agreement=certificate.agreement, certificate=certificate.said)
            fitted = replace(fitted, words=words)
            if certificate.threshold is not None:
                words = replace(words, alone_from=certificate.threshold, thresholds=fitted.thresholds)
                without = {"val_coverage_without_tiers": metrics["val_coverage"]}
                metrics, fitted = self._tiers(heard, fit, logits, replace(self.spec, words=words), device)
                metrics |= {"val_alone_fraction": certificate.share, **without}
        metrics["val_network_loss"] = alone[0]["val_loss"]
        for name, theirs in zip(("network", "words"), alone, strict=True):
            metrics |= {f"val_{name}_{of}": theirs[f"val_{of}"] for of in ("accuracy", "weighted_f1", "macro_f1")}
        return metrics | {"val_temperature": temperature, "val_words_weight": words.weight}, fitted

    def _certify(self, by_both: Arrays, heard: Heard, rows: IntArray, unseen: IntArray) -> Certificate:
        """For what words answer alone of all ranks' rows, of which these are joined, `unseen` as rows that nothing has seen."""
        true, given, once = by_both["true"], heard.judged["given"][rows], by_both["distinct"]
        confidence = self._confidence(heard)[rows]
        return certify(
            confidence[once],
            (given == true)[once],
            (unseen == true)[once],
            (given == unseen)[once],
            self.config.tier_risk,
            self.config.tier_agreement,
        )

    def _confidence(self, heard: Heard) -> npt.NDArray[np.float32]:
        """The probability of each row's category by words."""
        given, certainty = heard.judged["given"], heard.judged["certainty"]
        confidence: npt.NDArray[np.float32] = certainty[
            np.arange(len(given)), Taxonomy(self.spec.categories).depths[given] - 1
        ]
        return confidence

    def _tiers(
        self, heard: Heard, fit: "_Fit", logits: Callable[[], Logits], spec: Spec, device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """The rows as tiers answer them. Those that words leave have a temperature of their own: both are too sure of them."""
        assert spec.words
        words, alone = spec.words, self._confidence(heard) >= np.float32(spec.words.alone_from)

        def joined_logits(batch: IntArray, found: torch.Tensor) -> torch.Tensor:
            return joining(fit.head).with_words(found, heard.ranked.take(batch), words)

        head = head_of(replace(spec, temperature=fit.temperature(joined_logits, ~alone)), device)
        mixed = []
        for batch, found in logits():
            by_both = head.judge(joined_logits(batch, found), self.rows.sets.take(batch))
            by_words, here = {name: heard.judged[name][batch] for name in by_both}, alone[batch]
            both = {
                name: np.where(here if array.ndim == 1 else here[:, None], by_words[name], array)
                for name, array in by_both.items()
            }
            mixed.append(both | {"distinct": heard.distinct[batch]})
        return head.fit(self._gather(mixed), self.config.target_precision)

    def _gather(self, mine: list[Arrays]) -> Arrays:
        """Of all ranks; a rank may have no batch."""
        everyone: list[list[Arrays]] = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, mine)
        return joined([part for parts in everyone for part in parts])


class _Fit:
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
