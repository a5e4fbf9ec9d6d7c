"""Fit the linear model of words and characters as Ray tasks over blocks of categories, and what it takes to judge it.

It learns from validation rows too, where that is cheap: what it says of these comes from further fits, each of which leaves a
fold of the rows out (cross-fitting; Stone 1974).
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import safetensors.numpy
from scipy import sparse

from cataloger.bundle import WORDS, Spec, Words, write_spec
from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.batching import IntArray, Ragged
from cataloger.data.ngrams import ngrams
from cataloger.data.seen import Seen
from cataloger.infra import runtime
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.words import Vocabulary, WordModel
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.hearing import FittedWords, fold_of
from cataloger.training.linear import fit_categories
from cataloger.training.texts import Texts, characters

log = logging.getLogger(__name__)
# What fewer training texts have is learnt by nobody.
LEAST_TEXTS = 2
# Of more training texts, so many are learnt from, spread over all of them: each task holds their n-grams in memory.
MOST_CHARACTERS = 1 << 24
# Rows times categories up to which further fits are cheap; larger catalogs have validation rows enough.
MOST_FOLDED = 1 << 28
# Fits that leave a fold out: of all rows, or of the --eval-catalog's, which are few beside those that stay.
FOLDS, FOLDS_OF_VALIDATION = 5, 2
# A fit is saved in parts of so many categories; one that is killed goes on behind them.
CATEGORIES = 256
# In no fold: rows that all fits learn from.
IN_EACH = -1
SECONDS_PER_LOG = 30.0
DONE = "fitted.json"
# Also from within a trial of a sweep, whose own placement has no CPU.
ANYWHERE: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


@dataclass(frozen=True)
class Learnt:
    """What all fits share: the n-grams by their weight [N, F], label ids and the fold of each row."""

    vocabulary: Vocabulary
    matrix: sparse.csr_matrix
    sets: Ragged
    fold: IntArray


def fit(blocks: Sequence[Any], spec: Spec, folder: Location, config: TrainConfig) -> FittedWords:
    """Of the labelled rows in the ingest's tables; lies in `folder` afterwards, and is not fitted twice. Needs a running Ray."""
    shared, started = list(blocks), time.monotonic()
    with runtime.errors_of_tasks():
        rows, size = ray.get(ray.remote(characters).options(**ANYWHERE).remote(shared, (TRAINING, VALIDATION)))
        if (folder / DONE).exists():
            return _read(folder)
        folds, why = _folds(rows, size, len(spec.categories), config)
        _fit_models(shared, folder, folds, len(spec.categories), min(1.0, MOST_CHARACTERS / max(1, size)), config)
        fitted = FittedWords(folder, Words(), folds, of_all=config.eval_catalog is None)
        task = ray.remote(FittedWords.calibrated).options(**ANYWHERE)
        fitted = ray.get(task.remote(fitted, shared, spec, rows))
    found = {"words": asdict(fitted.words), "folds": folds, "of_all": fitted.of_all}
    (folder / DONE).write(json.dumps(found).encode())
    (folder / "parts").delete()
    log.info(
        "fitted a linear model of words and characters in %.0f s; it learnt from %s", time.monotonic() - started, why
    )
    return fitted


def _read(folder: Location) -> FittedWords:
    found = json.loads((folder / DONE).read())
    return FittedWords(folder, Words(**found["words"]), found["folds"], found["of_all"])


def _folds(rows: int, size: int, categories: int, config: TrainConfig) -> tuple[int, str]:
    """(into how many the rows are cut, what is learnt from, in words)"""
    if size > MOST_CHARACTERS:
        return 0, f"{MOST_CHARACTERS / size:.0%} of the training rows: about {MOST_CHARACTERS:,} characters"
    if rows * categories > MOST_FOLDED:
        return 0, "the training rows"
    folds = FOLDS if config.eval_catalog is None else FOLDS_OF_VALIDATION
    return folds, f"validation rows too, and was judged by {folds} further fits that each left some rows out"


def _fit_models(
    blocks: list[Any], folder: Location, folds: int, categories: int, share: float, config: TrainConfig
) -> None:
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    parts = min(categories, max(cores, math.ceil(categories / CATEGORIES)))
    learnt = ray.remote(_learn).options(**ANYWHERE).remote(blocks, folds, share, config.eval_catalog is None)
    one, whole = ray.remote(_fit_part).options(**ANYWHERE), ray.remote(_join).options(**ANYWHERE)
    jobs = []
    for left_out in [IN_EACH, *range(folds)]:
        target = folder / WORDS if left_out == IN_EACH else fold_of(folder, left_out)
        if not target.exists():
            places = [folder / "parts" / f"{left_out}-{part}-of-{parts}" for part in range(parts)]
            # The large and the small ones spread over all parts: a path's neighbours are often as large as it.
            of_parts = [np.arange(categories)[part::parts] for part in range(parts)]
            fitted = [
                one.remote(learnt, which, categories, left_out, place)
                for which, place in zip(of_parts, places, strict=True)
            ]
            jobs += [*fitted, whole.remote(learnt, places, target, *fitted)]
    waiting, every = jobs, len(jobs)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=SECONDS_PER_LOG)
        ray.get(done)
        if waiting:
            log.info("fitting words: %s of %s parts are done", f"{every - len(waiting):,}", f"{every:,}")


def _learn(blocks: Sequence[Any], folds: int, share: float, of_all: bool) -> Learnt:
    rows = Texts.of(blocks, (TRAINING, VALIDATION) if folds else (TRAINING,), share)
    fold = rows.fold(folds) if folds else np.full(len(rows), IN_EACH)
    if not of_all:
        fold = np.where(rows.uses == VALIDATION, fold, IN_EACH)
    counts = ngrams(rows.texts)
    # What occurs, and how often, is known of all rows; what it means, of those that a fit learns from.
    vocabulary = Vocabulary.of(counts, LEAST_TEXTS)
    return Learnt(vocabulary, vocabulary.weigh(counts), rows.sets, fold)


def _fit_part(learnt: Learnt, which: IntArray, categories: int, left_out: int, place: Location) -> None:
    """Fit these categories on all rows but a fold, and save them."""
    if place.exists():
        return
    rows = np.arange(len(learnt.sets)) if left_out == IN_EACH else np.flatnonzero(learnt.fold != left_out)
    weights, bias = fit_categories(learnt.matrix, learnt.sets, rows, which, categories)
    arrays = {"rows": weights.indices, "starts": weights.indptr, "weights": weights.data, "bias": bias, "which": which}
    place.write(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _join(learnt: Learnt, places: Sequence[Location], target: Location, *_: None) -> None:
    """Put the parts' categories in their order and write the model."""
    parts = [safetensors.numpy.load(place.read()) for place in places]
    size = len(learnt.vocabulary.buckets)
    weights = [
        sparse.csc_matrix((part["weights"], part["rows"], part["starts"]), shape=(size, len(part["bias"])))
        for part in parts
    ]
    order = np.argsort(np.concatenate([part["which"] for part in parts]))
    bias = np.concatenate([part["bias"] for part in parts])[order]
    model = WordModel(learnt.vocabulary, sparse.hstack(weights, "csc")[:, order].tocsr(), bias)
    with working_folder("words") as here:
        model.save(here)
        target.write((here / WORDS).read_bytes())


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

    head = head_of(spec, "cpu")
    metrics, _ = head.fit(fitted.hear(blocks, spec).judged, config.target_precision)
    rows, _ = characters(blocks, (TRAINING, VALIDATION))
    # More rows show more, of what is trusted.
    more, spec = head.fit(fitted.hear_more(blocks, spec, rows).judged, config.target_precision)
    with working_folder("bundle") as folder:
        write_spec(folder, replace(spec, words=fitted.words))
        seen.write(folder, saw)
        fitted.write(folder)
        for file in folder.iterdir():
            (fitted.folder / "bundle" / file.name).write(file.read_bytes())
    return metrics | {"val_coverage": more["val_coverage"]}
