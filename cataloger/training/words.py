"""Fit the linear model of words and characters: one classifier per category, as Ray tasks over blocks of categories.

Each is a linear support vector machine with squared hinge loss, by dual coordinate descent (Hsieh et al. 2008, liblinear). The
many weights that are next to nothing are cut (DiSMEC; Babbar and Schölkopf 2017), so that the whole stays small.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from scipy import sparse

from cataloger.bundle import ONE_CATEGORY, WORDS, Spec, Words, write_spec
from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.batching import IntArray, Ragged
from cataloger.data.ngrams import ngrams
from cataloger.data.seen import Seen
from cataloger.heads.arrays import FloatArray, as_judged, reader_of
from cataloger.heads.ranked import Ranked
from cataloger.infra import runtime
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.tiers import FirstTier
from cataloger.model.words import Vocabulary, WordModel
from cataloger.taxonomy import Taxonomy
from cataloger.training.examples import TRAINING, VALIDATION

log = logging.getLogger(__name__)
# What fewer training texts have is learnt by nobody.
LEAST_TEXTS = 2
# Weights nearer to zero are cut (Babbar and Schölkopf 2017, section 2.2).
LEAST_WEIGHT = 0.01
# Of more training texts, so many are learnt from, spread over all of them: each task holds their n-grams in memory.
MOST_CHARACTERS = 1 << 24
# Two numbers are fitted on as many validation rows as have so many scores.
SCORES_KEPT = 1 << 22
FIRST_GUESS = 0.2
# Also from within a trial of a sweep, whose own placement has no CPU.
ANYWHERE: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


@dataclass(frozen=True)
class Heard:
    """What words say of the validation rows: as `Head.judge` has it, and what is joined with the network's probabilities."""

    words: Words
    judged: dict[str, npt.NDArray[Any]]
    ranked: Ranked
    keys: npt.NDArray[np.uint64]
    """What the rows were split by: rows of one text, or one group, tell the same thing once."""

    @property
    def distinct(self) -> npt.NDArray[np.bool_]:
        """One row of each key."""
        first = np.zeros(len(self.keys), bool)
        first[np.unique(self.keys, return_index=True)[1]] = True
        return first

    @property
    def half(self) -> npt.NDArray[np.int64]:
        """0 or 1 for each row, the same for all rows of a key."""
        return (self.keys % np.uint64(2)).astype(np.int64)


@dataclass(frozen=True)
class FittedWords:
    """Where the fitted model lies, and how its scores become probabilities."""

    folder: Location
    words: Words

    def write(self, folder: Path) -> None:
        """Into a bundle."""
        (folder / WORDS).write_bytes((self.folder / WORDS).read())

    def hear(self, blocks: Sequence[Any], spec: Spec) -> Heard:
        """What the model says of the validation rows."""
        import torch

        from cataloger.heads.base import head_of, joined

        spec = replace(spec, words=self.words, temperature=1.0)
        with working_folder("words") as folder:
            self.write(folder)
            tier = FirstTier(folder, spec)
        texts, sets = texts_of(blocks, VALIDATION)
        head, judged, ranked, start = head_of(spec, "cpu"), [], [], 0
        for scores in tier.model.scores(texts):
            logits, true = tier.reader.logits(scores, self.words), sets.take(np.arange(start, start + len(scores)))
            judged.append(head.judge(torch.from_numpy(logits), true))
            if spec.head == ONE_CATEGORY:
                # By the arithmetic of the reading tasks, to the last bit.
                judged[-1] |= as_judged(tier.reader.answers(logits, 0), Taxonomy(spec.categories))
            ranked.append(Ranked.of(tier.reader.probabilities(logits)))
            start += len(scores)
        heard = Heard(self.words, joined(judged), Ranked.joined(ranked), keys_of(blocks, VALIDATION))
        return replace(heard, judged={**heard.judged, "distinct": heard.distinct})


def fit(blocks: Sequence[Any], spec: Spec, folder: Location) -> FittedWords:
    """Of the training rows in the ingest's tables; lies in `folder` afterwards, and is not fitted twice. Needs a running Ray."""
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    shared, count = list(blocks), len(spec.categories)
    if not (folder / WORDS).exists():
        parts = min(cores, count)
        task = ray.remote(_fit_categories).options(**ANYWHERE)
        with runtime.errors_of_tasks():
            # The large and the small ones spread over all tasks: a path's neighbours are often as large as it.
            learnt = ray.remote(_learn).options(**ANYWHERE).remote(shared)
            fitted = [task.remote(learnt, np.arange(count)[part::parts]) for part in range(parts)]
            ray.get(ray.remote(_save).options(**ANYWHERE).remote(fitted, learnt, folder))
    with runtime.errors_of_tasks():
        words: Words = ray.get(ray.remote(_calibrate).options(**ANYWHERE).remote(shared, spec, folder))
    return FittedWords(folder, words)


def texts_of(blocks: Sequence[Any], use: int) -> tuple[pa.Array, Ragged]:
    """(texts, label ids) of the rows of the ingest's tables that have this use."""
    tables = [block.select(["text", "labels", "use"]) for block in ray.get(list(blocks))]
    table = pa.concat_tables(tables).filter(pc.field("use") == use)
    texts = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in table.column("text").chunks])
    return texts, Ragged.from_arrow(table.column("labels"))


def keys_of(blocks: Sequence[Any], use: int) -> npt.NDArray[np.uint64]:
    """The split keys of these rows, hashed."""
    table = pa.concat_tables([block.select(["key", "use"]) for block in ray.get(list(blocks))])
    keys: npt.NDArray[np.uint64] = table.filter(pc.field("use") == use).column("key").to_numpy()
    return keys


def _learn(blocks: Sequence[Any]) -> tuple[Vocabulary, sparse.csr_matrix, Ragged]:
    """(vocabulary, n-grams by their weight [N, F], label ids) of the rows to learn from."""
    texts, sets = texts_of(blocks, TRAINING)
    characters = pc.sum(pc.utf8_length(texts)).as_py() or 0
    if characters > MOST_CHARACTERS:
        rows = np.unique(
            np.linspace(0, len(texts) - 1, int(len(texts) * MOST_CHARACTERS / characters)).astype(np.int64)
        )
        texts, sets = texts.take(pa.array(rows)), sets.take(rows)
    counts = ngrams(texts)
    vocabulary = Vocabulary.of(counts, LEAST_TEXTS)
    return vocabulary, vocabulary.weigh(counts), sets


def _fit_categories(
    learnt: tuple[Vocabulary, sparse.csr_matrix, Ragged], categories: IntArray
) -> tuple[IntArray, sparse.csr_matrix, FloatArray]:
    """(categories, weights [F, categories], bias [categories])"""
    _, matrix, sets = learnt
    row = np.repeat(np.arange(len(sets)), sets.lengths)
    label = sets.flat[sets.offsets[0] : sets.offsets[-1]]
    columns, bias = [], np.full(len(categories), -1.0, np.float32)
    for place, category in enumerate(categories):
        target = np.zeros(len(sets), bool)
        target[row[label == category]] = True
        weights, bias[place] = _fit_one(matrix, target)
        columns.append(sparse.csc_matrix(weights[:, None]))
    return categories, sparse.hstack(columns, "csr"), bias


def _fit_one(matrix: sparse.csr_matrix, target: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[FloatArray, float]:
    """(weights [F], bias) that tell rows with a category from those without it."""
    from sklearn.svm import LinearSVC

    if not matrix.shape[1] or not target.any() or target.all():  # nothing to tell apart, or by
        return np.zeros(matrix.shape[1], np.float32), 1.0 if target.any() else -1.0
    found = LinearSVC(tol=0.1, random_state=0).fit(matrix, target)
    weights = found.coef_[0].astype(np.float32)
    return np.where(np.abs(weights) < LEAST_WEIGHT, 0, weights), float(found.intercept_[0])


def _save(parts: list[Any], learnt: tuple[Vocabulary, sparse.csr_matrix, Ragged], folder: Location) -> None:
    """Put the tasks' categories in their order and write the model."""
    categories, weights, bias = zip(*ray.get(parts), strict=True)
    order = np.argsort(np.concatenate(categories))
    model = WordModel(
        learnt[0],
        sparse.hstack(weights, "csc")[:, order].tocsr(),
        np.concatenate(bias)[order],
    )
    with working_folder("words") as here:
        model.save(here)
        (folder / WORDS).write((here / WORDS).read_bytes())


def _calibrate(blocks: Sequence[Any], spec: Spec, folder: Location) -> Words:
    """How scores become probabilities: the scale and shift of a sigmoid (Platt 1999) that have the least loss on validation rows."""
    from scipy.optimize import minimize

    with working_folder("words") as here:
        (here / WORDS).write_bytes((folder / WORDS).read())
        model = WordModel.load(here)
    texts, sets = texts_of(blocks, VALIDATION)
    rows = np.random.default_rng(0).permutation(len(texts))[: max(1, SCORES_KEPT // len(spec.categories))]
    scores, sets = np.concatenate([*model.scores(texts.take(pa.array(rows)))]), sets.take(rows)
    if not (sets.flat >= 0).any():  # nothing to go by
        return Words(temperature=FIRST_GUESS)
    targets = np.zeros(scores.shape, bool)
    known = sets.flat >= 0
    targets[np.repeat(np.arange(len(sets)), sets.lengths)[known], sets.flat[known]] = True
    reader = reader_of(spec)

    def loss(found: npt.NDArray[np.float64]) -> float:
        words = Words(temperature=float(np.exp(np.clip(found[0], -6, 6))), shift=float(np.clip(found[1], -10, 10)))
        return reader.loss(reader.logits(scores, words), targets)

    found = minimize(loss, [np.log(FIRST_GUESS), 0.0], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-6}).x
    return Words(temperature=float(np.exp(np.clip(found[0], -6, 6))), shift=float(np.clip(found[1], -10, 10)))


def train_alone(
    fitted: FittedWords, blocks: Sequence[Any], spec: Spec, config: TrainConfig, saw: Seen
) -> dict[str, float]:
    """Make a bundle of words without a network, beside the fitted model; the metrics of its validation. Needs a running Ray."""
    task = ray.remote(_make_bundle).options(**ANYWHERE)
    with runtime.errors_of_tasks():
        metrics: dict[str, float] = ray.get(task.remote(fitted, list(blocks), spec, config, saw))
    return metrics


def _make_bundle(
    fitted: FittedWords, blocks: Sequence[Any], spec: Spec, config: TrainConfig, saw: Seen
) -> dict[str, float]:
    from cataloger.heads.base import head_of

    heard = fitted.hear(blocks, spec)
    metrics, spec = head_of(spec, "cpu").fit(heard.judged, config.target_precision)
    with working_folder("bundle") as folder:
        write_spec(folder, replace(spec, words=fitted.words))
        seen.write(folder, saw)
        fitted.write(folder)
        for file in folder.iterdir():
            (fitted.folder / "bundle" / file.name).write(file.read_bytes())
    return metrics
