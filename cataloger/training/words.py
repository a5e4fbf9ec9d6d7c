"""Fit the linear model of words and characters as Ray tasks over blocks of categories, and what it takes to judge it.

Beside a network it learns from training rows, as the network does. Alone it learns from validation rows as well: what it says
of a row as if it were new then comes from a further fit, which left a fold of the rows out (cross-fitting; Stone 1974).
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

from cataloger.bundle import WORDS, write_spec
from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.batching import IntArray, Ragged
from cataloger.data.ngrams import ngrams
from cataloger.data.seen import Seen
from cataloger.infra import spread
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.tiers import blank
from cataloger.model.words import Vocabulary, WordModel
from cataloger.spec import NO_NETWORK, Spec, Words
from cataloger.training.census import LEARNT, Census
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.hearing import FittedWords, fold_of
from cataloger.training.linear import fit_categories
from cataloger.training.texts import Texts

log = logging.getLogger(__name__)
# What fewer training texts have is learnt by nobody.
LEAST_TEXTS = 2
# Of more text, so much is learnt from, spread over all rows: each task holds its n-grams in memory.
MOST_CHARACTERS = 1 << 24
# Rows times categories up to which further fits are cheap.
MOST_FOLDED = 1 << 28
# Fits that leave a fold out: of all rows, or of the --eval-catalog's, which are few beside those that stay.
FOLDS, FOLDS_OF_VALIDATION = 5, 2
# A fit is saved part by part; one that is killed goes on behind them. Enough parts for many cores, of so many categories at most.
PARTS, CATEGORIES = 32, 256
# In no fold: rows that all fits learn from.
IN_EACH = -1
SECONDS_PER_LOG = 30.0
DONE = "fitted.json"
# Also from within a trial of a sweep, whose own placement has no CPU.
ANYWHERE: dict[str, Any] = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


@dataclass(frozen=True)
class Counted:
    """What all fits share: n-grams [N, buckets], label ids and the fold of each row."""

    counts: sparse.csr_matrix
    sets: Ragged
    fold: IntArray


@dataclass(frozen=True)
class Learnt:
    """What one fit learns from: its vocabulary, the weight of each n-gram of it [N, F], and label ids."""

    vocabulary: Vocabulary
    matrix: sparse.csr_matrix
    sets: Ragged


def fit(blocks: Sequence[Any], found: Census, spec: Spec, folder: Location, config: TrainConfig) -> FittedWords:
    """Of the labelled rows in the ingest's tables, and what those come to; lies in `folder` afterwards, and is not fitted twice.

    Needs a running Ray.
    """
    shared, started, apart = list(blocks), time.monotonic(), folder / "apart"
    if not (folder / DONE).exists():
        with spread.errors_of_tasks():
            folds, uses, why = _folds(found, len(spec.categories), config)
            learnt_from = sum(found.characters[use] for use in (LEARNT if folds else (TRAINING,)))
            share = min(1.0, MOST_CHARACTERS / max(1, learnt_from))
            counted = (
                ray.remote(_count)
                .options(**ANYWHERE)
                .remote(shared, folds, share, config.eval_catalog is not None or folds == 1)
            )
            for left_out in [*range(folds), IN_EACH]:
                _fit_model(counted, left_out, len(spec.categories), folder)
            task = ray.remote(FittedWords.calibrated).options(**ANYWHERE)
            fitted = ray.get(task.remote(FittedWords(folder, Words(), folds, uses), shared, spec))
        (folder / DONE).write(json.dumps({"words": asdict(fitted.words), "folds": folds, "uses": uses}).encode())
        log.info("fitted words in %.0f s: %s", time.monotonic() - started, why)
    (apart / "parts").delete()
    done = json.loads((folder / DONE).read())
    return FittedWords(folder, Words(**done["words"]), done["folds"], tuple(done["uses"]))


def _folds(found: Census, categories: int, config: TrainConfig) -> tuple[int, tuple[int, ...], str]:
    """(into how many folds rows are cut, the uses of rows that are judged, what is learnt from in words).

    Only words that answer alone: with a network, both are judged by rows that neither has learnt from. Where those are folded back in the
    end, they are the one fold.
    """
    rows, size = (sum(counts[use] for use in LEARNT) for counts in (found.rows, found.characters))
    if config.fold_back:
        share = min(1.0, MOST_CHARACTERS / max(1, size))
        return (
            1,
            (VALIDATION,),
            f"from {share * rows:,.0f} of {rows:,} rows, and without those of validation to judge by",
        )
    if config.base_model != NO_NETWORK or size > MOST_CHARACTERS or rows * categories > MOST_FOLDED:
        share = min(1.0, MOST_CHARACTERS / max(1, found.characters[TRAINING]))
        return 0, (VALIDATION,), f"from {share * found.rows[TRAINING]:,.0f} of {found.rows[TRAINING]:,} training rows"
    if config.eval_catalog:
        return (
            FOLDS_OF_VALIDATION,
            (VALIDATION,),
            f"from all {rows:,} rows, and for each half of the --eval-catalog without it",
        )
    return FOLDS, (TRAINING, VALIDATION), f"from all {rows:,} rows, and for each fifth of them without it"


def _fit_model(counted: Any, left_out: int, categories: int, folder: Location) -> None:
    """Fit a model without one fold, part by part."""
    target = folder / WORDS if left_out == IN_EACH else fold_of(folder, left_out)
    if target.exists():
        return
    parts = math.ceil(categories / min(CATEGORIES, math.ceil(categories / PARTS)))
    places = [folder / "apart" / "parts" / f"{left_out}-{part}" for part in range(parts)]
    learnt = ray.remote(_learn).options(**ANYWHERE).remote(counted, left_out)
    # The large and the small ones spread over all parts: a path's neighbours are often as large as it.
    fitted = [
        ray.remote(_fit_part).options(**ANYWHERE).remote(learnt, np.arange(categories)[part::parts], categories, place)
        for part, place in enumerate(places)
    ]
    waiting = [*fitted, ray.remote(_join).options(**ANYWHERE).remote(learnt, places, target, *fitted)]
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=SECONDS_PER_LOG)
        ray.get(done)
        if waiting:
            log.info("fitting words: %s of %s parts are done", f"{parts + 1 - len(waiting):,}", f"{parts:,}")


def _count(blocks: Sequence[Any], folds: int, share: float, validated: bool) -> Counted:
    """`validated`: whether a fold is of validation rows alone."""
    rows = Texts.of(blocks, (TRAINING, VALIDATION) if folds else (TRAINING,), share)
    if (nothing := blank(rows.texts)).any():  # of what has a picture alone there is nothing to learn
        rows = rows.take(np.flatnonzero(~nothing))
    fold = rows.fold(folds) if folds else np.full(len(rows), IN_EACH)
    if validated:
        # Also training rows with a text of theirs: no row is judged by a fit that knows its text.
        fold = np.where(np.isin(rows.keys, rows.keys[rows.uses == VALIDATION]), fold, IN_EACH)
    return Counted(ngrams(rows.texts), rows.sets, fold)


def _learn(counted: Counted, left_out: int) -> Learnt:
    """All rows but those of a fold."""
    if left_out == IN_EACH:
        counts, sets = counted.counts, counted.sets
    else:
        rows = np.flatnonzero(counted.fold != left_out)
        counts, sets = counted.counts[rows], counted.sets.take(rows)
    vocabulary = Vocabulary.of(counts, LEAST_TEXTS)
    return Learnt(vocabulary, vocabulary.weigh(counts), sets)


def _fit_part(learnt: Learnt, which: IntArray, categories: int, place: Location) -> None:
    """Fit these categories and save them."""
    if place.exists():
        return
    weights, bias = fit_categories(learnt.matrix, learnt.sets, which, categories)
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
    with spread.errors_of_tasks():
        metrics: dict[str, float] = ray.get(task.remote(fitted, list(blocks), spec, config, saw))
    return metrics


def _make_bundle(
    fitted: FittedWords, blocks: Sequence[Any], spec: Spec, config: TrainConfig, saw: Seen
) -> dict[str, float]:
    from cataloger.heads.base import head_of

    metrics, spec = head_of(spec, "cpu").fit(fitted.hear(blocks, spec).judged, config.target_precision)
    with working_folder("bundle") as folder:
        write_spec(folder, replace(spec, words=fitted.words))
        seen.write(folder, saw)
        fitted.write(folder)
        for file in folder.iterdir():
            (alone(fitted) / "bundle" / file.name).write(file.read_bytes())
    return metrics


def alone(fitted: FittedWords) -> Location:
    """Where `train_alone` puts the bundle, as a checkpoint has it."""
    return fitted.folder.parent / "words-alone"
