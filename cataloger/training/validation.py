"""Validation rows → metrics, and what is fitted on them: temperatures, the weight of words, tiers and thresholds."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Together, most_rows, pack
from cataloger.data.inputs import Encoded
from cataloger.heads.base import Arrays, head_of, joined, joining, several_of
from cataloger.spec import ONE_CATEGORY, Spec, Words
from cataloger.taxonomy import Taxonomy
from cataloger.training.certificate import RISK, Certificate, certify, no_tiers
from cataloger.training.checkpoint import ALL_ANSWERS
from cataloger.training.examples import Examples
from cataloger.training.fitting import Fit, Logits
from cataloger.training.hearing import Heard

TOKENS_PER_BATCH = 8_192
# A few numbers are fitted on as many rows as have this many logits on each rank, in random batches: they need no more.
LOGITS_KEPT = 1 << 24
# Tiers keep this share of the labels that need no review without them.
LEAST_TRUST_KEPT = 0.9


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
                    self.heard, Fit(self.spec, self.rows.sets, kept, self.world, device), logits, device
                )
            return self._of_network(kept, logits, device)

    def _of_network(
        self, kept: Sequence[tuple[IntArray, torch.Tensor]], logits: Callable[[], Logits], device: torch.device
    ) -> tuple[dict[str, float], Spec]:
        """Each answer by the rows that have one; the metrics of further answers have the names of their columns."""
        several = several_of(self.spec, device)
        sets = self.rows.sets if isinstance(self.rows.sets, Together) else Together((self.rows.sets,))
        known = several.known(sets) if self.spec.others else [np.ones(len(sets), bool)]
        distinct = [self._distinct(rows) for rows in known]
        specs = []
        for number, spec in enumerate(several.answers):
            own = [(batch[has := known[number][batch]], several.split(found)[number][has]) for batch, found in kept]
            fit = Fit(spec, sets.parts[number], own, self.world, device)
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
                judged[number].append(arrays | {"distinct": distinct[number][batch[has]]})
        metrics: dict[str, float] = {}
        for number, head in enumerate(heads):
            own_metrics, specs[number] = head.fit(self._gather(judged[number]), self.config.target_precision)
            before = specs[number].prefix if number else ""
            metrics |= {before + name: value for name, value in own_metrics.items()}
            for name in ("weighted_f1", "loss") if len(specs) > 1 else ():
                mean = f"val_{ALL_ANSWERS}{name}"
                metrics[mean] = metrics.get(mean, 0.0) + own_metrics[f"val_{name}"] / len(specs)
        return metrics, self.spec.with_answers(specs)

    def _distinct(self, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[N] one of these rows for each key, each time: those that belong together tell the same thing once."""
        distinct = rows.copy()
        if self.rows.keys is not None:
            chosen = np.flatnonzero(rows)
            distinct[:] = False
            distinct[chosen[np.unique(self.rows.keys[chosen], return_index=True)[1]]] = True
        return distinct

    def _with_words(
        self, heard: Heard, fit: Fit, logits: Callable[[], Logits], device: torch.device
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
            certified = self._certified(everything, heard, seen["row"], seen["label"])
            metrics, fitted = self._with_tiers(certified, heard, fit, logits, (metrics, fitted), device)
        metrics["val_network_loss"] = alone[0]["val_loss"]
        for name, theirs in zip(("network", "words"), alone, strict=True):
            metrics |= {f"val_{name}_{of}": theirs[f"val_{of}"] for of in ("accuracy", "weighted_f1", "macro_f1")}
        return metrics | {"val_temperature": temperature, "val_words_weight": words.weight}, fitted

    def _certified(self, by_both: Arrays, heard: Heard, rows: IntArray, unseen: IntArray) -> tuple[Certificate, ...]:
        """For what words answer alone of all ranks' rows, of which these are joined, `unseen` as rows that nothing has seen."""
        true, given, once = by_both["true"], heard.judged["given"][rows], by_both["distinct"]
        confidence = self._confidence(heard)[rows]
        return certify(
            confidence[once],
            (given == true)[once],
            (unseen == true)[once],
            (given == unseen)[once],
            RISK if self.config.tier_risk is None else self.config.tier_risk,
            self.config.tier_agreement,
        )

    def _with_tiers(
        self,
        certified: tuple[Certificate, ...],
        heard: Heard,
        fit: Fit,
        logits: Callable[[], Logits],
        without: tuple[dict[str, float], Spec],
        device: torch.device,
    ) -> tuple[dict[str, float], Spec]:
        """With the most rows that words may answer alone. They are sometimes sure and wrong: where nobody has said what tiers may cost,
        they answer so many that what is trusted stays."""
        metrics, spec = without
        assert spec.words
        told = self.config.tier_risk is not None or self.config.tier_agreement is not None
        found = [
            replace(
                spec.words,
                alone_from=one.threshold,
                agreement=one.agreement,
                certificate=one.said,
                thresholds=spec.thresholds,
            )
            for one in (certified[:1] if told else certified)
        ]
        if found[0].alone_from is None:
            return metrics, replace(spec, words=replace(found[0], thresholds=()))
        trusted = metrics["val_coverage"]
        for one, (own, tiered) in zip(certified, self._tiers(heard, fit, logits, found, device), strict=False):
            if told or own["val_coverage"] >= LEAST_TRUST_KEPT * trusted:
                more = {"val_alone_fraction": one.share, "val_coverage_without_tiers": trusted}
                return metrics | own | more, tiered
        why = (
            f"words are sometimes sure and wrong, and of the labels that need no review now, {trusted:.0%} of all, fewer than "
            f"{LEAST_TRUST_KEPT:.0%} would need none"
        )
        return metrics, replace(spec, words=replace(spec.words, certificate=no_tiers(why).said))

    def _confidence(self, heard: Heard) -> npt.NDArray[np.float32]:
        """The probability of each row's category by words."""
        given, certainty = heard.judged["given"], heard.judged["certainty"]
        confidence: npt.NDArray[np.float32] = certainty[
            np.arange(len(given)), Taxonomy(self.spec.categories).depths[given] - 1
        ]
        return confidence

    def _tiers(
        self, heard: Heard, fit: Fit, logits: Callable[[], Logits], ways: Sequence[Words], device: torch.device
    ) -> list[tuple[dict[str, float], Spec]]:
        """The rows as tiers answer them, in each of some ways that differ in how many rows words answer alone.

        Those that words leave have a temperature of their own: both are too sure of them.
        """
        confidence = self._confidence(heard)

        def joined_logits(batch: IntArray, found: torch.Tensor) -> torch.Tensor:
            return joining(fit.head).with_words(found, heard.ranked.take(batch), ways[0])

        alone = [confidence >= np.float32(words.alone_from or 0) for words in ways]
        heads = [
            head_of(replace(self.spec, words=words, temperature=fit.temperature(joined_logits, ~sure)), device)
            for words, sure in zip(ways, alone, strict=True)
        ]
        mixed: list[list[Arrays]] = [[] for _ in ways]
        for batch, found in logits():
            together, sets = joined_logits(batch, found), self.rows.sets.take(batch)
            for head, sure, own in zip(heads, alone, mixed, strict=True):
                by_both = head.judge(together, sets)
                by_words, here = {name: heard.judged[name][batch] for name in by_both}, sure[batch]
                both = {
                    name: np.where(here if array.ndim == 1 else here[:, None], by_words[name], array)
                    for name, array in by_both.items()
                }
                own.append(both | {"distinct": heard.distinct[batch]})
        return [
            head.fit(self._gather(own), self.config.target_precision) for head, own in zip(heads, mixed, strict=True)
        ]

    def _gather(self, mine: list[Arrays]) -> Arrays:
        """Of all ranks; a rank may have no batch."""
        everyone: list[list[Arrays]] = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, mine)
        return joined([part for parts in everyone for part in parts])
