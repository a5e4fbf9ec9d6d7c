"""What a fitted model of words says of rows that it has not learnt from, and how its scores become probabilities."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cataloger.bundle import WORDS
from cataloger.heads.arrays import FloatArray, as_judged, reader_of
from cataloger.heads.ranked import Ranked
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.tiers import blank
from cataloger.model.words import WordModel
from cataloger.spec import ONE_CATEGORY, Spec, Words
from cataloger.taxonomy import Taxonomy
from cataloger.training.texts import Texts, rows_of

# Two numbers are fitted on as many rows as have so many scores.
SCORES_KEPT = 1 << 22
FIRST_GUESS = 0.2
# Words alone are judged by about so many rows at most.
MOST_JUDGED = 1 << 17


@dataclass(frozen=True)
class Heard:
    """What words say of N rows: as `Head.judge` has it, and what is joined with the network's probabilities."""

    words: Words
    judged: dict[str, npt.NDArray[Any]]
    ranked: Ranked
    half: npt.NDArray[np.int64]
    """0 or 1 for each row, the same for rows that belong together."""

    @property
    def distinct(self) -> npt.NDArray[np.bool_]:
        """One of the rows that belong together, each time."""
        distinct: npt.NDArray[np.bool_] = self.judged["distinct"]
        return distinct


@dataclass(frozen=True)
class FittedWords:
    """The model in a folder, and what it is judged by: rows that it has not learnt from.

    With folds, of which one may be all validation rows, the model has learnt from all rows; those of a fold are judged by a fit that left this one out (cross-fitting).
    """

    folder: Location
    words: Words
    folds: int
    uses: tuple[int, ...]
    """Of the ingest's rows, those that are judged."""

    def write(self, folder: Path) -> None:
        """Into a bundle."""
        (folder / WORDS).write_bytes((self.folder / WORDS).read())

    def hear(self, blocks: Sequence[Any], spec: Spec) -> Heard:
        """What is said of the rows that are judged: in their order, or with folds fold by fold and of about MOST_JUDGED at most."""
        # Imported here: the driver has no use for torch.
        import torch

        from cataloger.heads.base import head_of, joined

        spec = replace(spec, words=self.words, temperature=1.0)
        head, reader, taxonomy = head_of(spec, "cpu"), reader_of(spec), Taxonomy(spec.categories)
        # All validation rows, which a network is asked about as well; of the many that are judged with folds, enough.
        texts = self._judged(blocks, MOST_JUDGED) if self.folds > 1 else Texts.of(blocks, self.uses)
        judged, ranked, start = [], [], 0
        for scores in self._scores(texts):
            logits = reader.logits(scores, self.words)
            judged.append(head.judge(torch.from_numpy(logits), texts.sets.slice(start, start + len(scores))))
            if spec.head == ONE_CATEGORY:
                # By the arithmetic of the reading tasks, to the last bit.
                judged[-1] |= as_judged(reader.answers(logits, 0), taxonomy)
            ranked.append(Ranked.of(reader.probabilities(logits)))
            if spec.picture:
                nothing = blank(texts.texts.slice(start, len(scores)))
                ranked[-1] = ranked[-1].silent(nothing)
                if "certainty" in judged[-1]:
                    judged[-1]["certainty"] = np.where(nothing[:, None], 0, judged[-1]["certainty"]).astype(np.float32)
            start += len(scores)
        return Heard(self.words, joined(judged) | {"distinct": texts.distinct}, Ranked.joined(ranked), texts.half)

    def calibrated(self, blocks: Sequence[Any], spec: Spec) -> "FittedWords":
        """With the scale and shift of a sigmoid (Platt 1999) that have the least loss on rows that are judged."""
        from scipy.optimize import minimize

        texts = self._judged(blocks, max(1, SCORES_KEPT // len(spec.categories)))
        if spec.picture:  # of what has no text, words say nothing
            texts = texts.take(np.flatnonzero(~blank(texts.texts)))
        known = texts.sets.flat >= 0
        if not known.any():  # nothing to go by
            return replace(self, words=Words(temperature=FIRST_GUESS))
        scores = np.concatenate([*self._scores(texts)])
        targets = np.zeros(scores.shape, bool)
        targets[np.repeat(np.arange(len(texts)), texts.sets.lengths)[known], texts.sets.flat[known]] = True
        reader = reader_of(spec)

        def words(x: npt.NDArray[np.float64]) -> Words:
            return Words(temperature=float(np.exp(np.clip(x[0], -6, 6))), shift=float(np.clip(x[1], -10, 10)))

        def loss(x: npt.NDArray[np.float64]) -> float:
            return reader.loss(reader.logits(scores, words(x)), targets)

        options = {"xatol": 1e-3, "fatol": 1e-6}
        best = minimize(loss, [np.log(FIRST_GUESS), 0.0], method="Nelder-Mead", options=options).x
        return replace(self, words=words(best))

    def _judged(self, blocks: Sequence[Any], most: int) -> Texts:
        """About so many of the rows that are judged, evenly spread, at most; fold by fold."""
        rows = rows_of(blocks, self.uses)
        texts = Texts.of(blocks, self.uses, min(1.0, most / max(1, rows)))
        return texts.take(np.argsort(texts.fold(self.folds), kind="stable")) if self.folds else texts

    def _scores(self, texts: Texts) -> Iterator[FloatArray]:
        """Scores [rows, categories] of some rows after the other, which come fold by fold."""
        if not self.folds:
            yield from _load(self.folder / WORDS).scores(texts.texts)
            return
        ends = np.searchsorted(texts.fold(self.folds), np.arange(self.folds + 1))
        for number, (start, stop) in enumerate(itertools.pairwise(ends.tolist())):
            yield from _load(fold_of(self.folder, number)).scores(texts.texts.slice(start, stop - start))


def _load(place: Location) -> WordModel:
    with working_folder("words") as folder:
        (folder / WORDS).write_bytes(place.read())
        return WordModel.load(folder)


def fold_of(folder: Location, number: int) -> Location:
    """The model that has not learnt from this fold."""
    return folder / "apart" / f"fold-{number}.safetensors"
