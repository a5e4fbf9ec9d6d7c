"""What a fitted model of words says of rows that it has not learnt from, and how its scores become probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.bundle import ONE_CATEGORY, WORDS, Spec, Words
from cataloger.heads.arrays import FloatArray, as_judged, reader_of
from cataloger.heads.ranked import Ranked
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.words import SCORES, WordModel
from cataloger.taxonomy import Taxonomy
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.texts import Texts

# Two numbers are fitted on as many rows as have so many scores.
SCORES_KEPT = 1 << 22
FIRST_GUESS = 0.2
# Thresholds of words alone are fitted on about so many rows at most.
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
    """The model in a folder, which learnt from all rows; and one for each fold, which learnt from all rows but these.

    Without folds, the model has not learnt from validation rows.
    """

    folder: Location
    words: Words
    folds: int
    """Into which the rows are cut that are judged."""
    of_all: bool
    """Whether training rows are cut as well: where validation rows are of the same kind."""

    def write(self, folder: Path) -> None:
        """Into a bundle."""
        (folder / WORDS).write_bytes((self.folder / WORDS).read())

    def hear(self, blocks: Sequence[Any], spec: Spec) -> Heard:
        """What is said of the validation rows, in their order."""
        return self._hear(Texts.of(blocks, (VALIDATION,)), spec)

    def hear_more(self, blocks: Sequence[Any], spec: Spec, rows: int) -> Heard:
        """What is said of all rows that are judged, of so many in all; of a share of them where there are very many."""
        if not (self.folds and self.of_all):
            return self.hear(blocks, spec)
        return self._hear(Texts.of(blocks, (TRAINING, VALIDATION), min(1.0, MOST_JUDGED / max(1, rows))), spec)

    def calibrated(self, blocks: Sequence[Any], spec: Spec, rows: int) -> "FittedWords":
        """With the scale and shift of a sigmoid (Platt 1999) that have the least loss on rows that are judged."""
        from scipy.optimize import minimize

        uses = (TRAINING, VALIDATION) if self.folds and self.of_all else (VALIDATION,)
        texts = Texts.of(blocks, uses, min(1.0, MOST_JUDGED / max(1, rows)))
        some = np.random.default_rng(0).permutation(len(texts))[: max(1, SCORES_KEPT // len(spec.categories))]
        texts = texts.take(np.sort(some))
        known = texts.sets.flat >= 0
        if not known.any():  # nothing to go by
            return replace(self, words=Words(temperature=FIRST_GUESS))
        scores = np.concatenate([*self._scores(texts, len(spec.categories))])
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

    def _hear(self, texts: Texts, spec: Spec) -> Heard:
        # Imported here: the driver has no use for torch.
        import torch

        from cataloger.heads.base import head_of, joined

        spec = replace(spec, words=self.words, temperature=1.0)
        head, reader, taxonomy = head_of(spec, "cpu"), reader_of(spec), Taxonomy(spec.categories)
        judged, ranked, start = [], [], 0
        for scores in self._scores(texts, len(spec.categories)):
            logits = reader.logits(scores, self.words)
            judged.append(head.judge(torch.from_numpy(logits), texts.sets.slice(start, start + len(scores))))
            if spec.head == ONE_CATEGORY:
                # By the arithmetic of the reading tasks, to the last bit.
                judged[-1] |= as_judged(reader.answers(logits, 0), taxonomy)
            ranked.append(Ranked.of(reader.probabilities(logits)))
            start += len(scores)
        return Heard(self.words, joined(judged) | {"distinct": texts.distinct}, Ranked.joined(ranked), texts.half)

    def _scores(self, texts: Texts, categories: int) -> Iterator[FloatArray]:
        """Scores [rows, categories] of some rows after the other, each row's by a model that has not learnt from it."""
        folds = [fold_of(self.folder, number) for number in range(self.folds)] or [self.folder / WORDS]
        models, fold, rows = [_load(one) for one in folds], texts.fold(len(folds)), max(1, SCORES // categories)
        for start in range(0, len(texts), rows):
            some = fold[start : start + rows]
            scores = np.empty((len(some), categories), np.float32)
            for number in np.unique(some).tolist():
                mine = np.flatnonzero(some == number)
                scores[mine] = np.concatenate([*models[number].scores(texts.texts.take(pa.array(start + mine)))])
            yield scores


def _load(place: Location) -> WordModel:
    with working_folder("words") as folder:
        (folder / WORDS).write_bytes(place.read())
        return WordModel.load(folder)


def fold_of(folder: Location, number: int) -> Location:
    """The model that has not learnt from this fold."""
    return folder / f"fold-{number}.safetensors"
