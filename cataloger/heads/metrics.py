"""Scores of predicted category paths: flat, per level, hierarchical, and how far confidences can be trusted.

A product's categories are a set of paths, usually of one; both sides of a score are over one list of names.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from cataloger.heads.sets import Sets, levels

CALIBRATION_BINS = 15
# What is trusted: the chance that the promise is broken, the shares of the rows from which lower confidences are tried, and how
# many steps there are. Of one, three, five and ten sequences, three trusted most rows of three catalogs (docs/quality.md).
TRUST_ERROR, TRUST_STARTS, TRUST_STEPS = 0.1, (0.1, 0.3, 0.6), 40

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Shares between 0 and 1 over the same N rows. With one category per row the last two are the accuracy."""

    accuracy: float  # of rows whose categories are all right, and no more
    weighted_f1: float
    macro_f1: float
    micro_f1: float
    example_f1: float  # mean over the rows of the F1 of their own categories


def flat_scores(true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Scores:
    """Scores of label ids, shape [N]; macro F1 is over the labels that occur in either."""
    names, ids = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    left, right = ids[: len(true)], ids[len(true) :]
    rows, given, both = (np.bincount(ids, minlength=len(names)) for ids in (left, right, left[left == right]))
    f1 = 2 * both / (rows + given)
    accuracy = float((left == right).mean())
    return Scores(accuracy, float((rows * f1).sum() / len(true)), float(f1.mean()), accuracy, accuracy)


@dataclass(frozen=True)
class Counts:
    """Of each category that occurs, by name: the rows that have it, that were given it, and both."""

    categories: list[str]
    true: Array
    given: Array
    both: Array

    @property
    def f1(self) -> Array:
        return 2 * self.both / (self.true + self.given)


def count_sets(true: Sets, given: Sets) -> Counts:
    """Counts over N rows with any number of categories each."""
    return _count(true, given, true.rows.multiply(given.rows))


def set_scores(true: Sets, given: Sets) -> Scores:
    """Scores of N rows with any number of categories each; macro F1 is over the categories that occur in either."""
    both = true.rows.multiply(given.rows)
    counts = _count(true, given, both)
    sizes, shared = np.diff(true.rows.indptr) + np.diff(given.rows.indptr), np.diff(both.indptr)
    by_row = np.where(sizes > 0, 2 * shared / np.maximum(sizes, 1), 1.0)
    return Scores(
        accuracy=float((2 * shared == sizes).mean()),
        weighted_f1=float((counts.true * counts.f1).sum() / max(1, counts.true.sum())),
        macro_f1=float(counts.f1.mean()) if counts.categories else 1.0,
        micro_f1=float(2 * counts.both.sum() / max(1, counts.true.sum() + counts.given.sum())),
        example_f1=float(by_row.mean()),
    )


def _count(true: Sets, given: Sets, both: Any) -> Counts:
    numbers = true.counts, given.counts, np.bincount(both.indices, minlength=len(true.names))
    occurs = np.flatnonzero(numbers[0] + numbers[1])
    return Counts([true.names[place] for place in occurs], *(one[occurs].astype(float) for one in numbers))


def level_scores(true: Sets, given: Sets) -> list[Scores]:
    """Scores of each level's ancestors, top level first; a path that ends above a level stands for itself there."""
    deepest = max((levels(true.names[place]) for place in np.flatnonzero(true.counts + given.counts)), default=1)
    return [set_scores(true.at_level(depth), given.at_level(depth)) for depth in range(1, deepest + 1)]


def hierarchical_f1(true: Sets, given: Sets) -> float:
    """Micro-averaged F1 over categories augmented with their ancestors (Kiritchenko et al. 2006, section 3)."""
    left, right = true.with_ancestors().rows, given.with_ancestors().rows
    total = left.nnz + right.nnz
    return 2 * left.multiply(right).nnz / total if total else 0.0


def expected_calibration_error(
    confidence: Array, correct: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Mean |accuracy - confidence| over equal-width bins, weighted by their rows (Guo et al. 2017, equation 3)."""
    if not len(confidence):
        return 0.0
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, correct, bins) - np.bincount(place, confidence, bins))
    return float(gaps[rows > 0].sum() / len(confidence))


def precision_by_coverage(confidence: Array, correct: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """(coverage, precision, threshold) when the most confident 1, 2, … N rows are trusted; rows of equal confidence go together."""
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    rows = np.arange(1, len(order) + 1)
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    return (rows / len(order))[last], (np.cumsum(correct[order]) / rows)[last], sorted_confidence[last]


def coverage_at(confidence: Array, correct: npt.NDArray[np.bool_], target_precision: float) -> tuple[float, float]:
    """(largest share of rows that can be trusted at the target precision, confidence from which on); (0, inf) when none."""
    if not len(confidence):
        return 0.0, float("inf")
    coverage, precision, threshold = precision_by_coverage(confidence, correct)
    good = np.flatnonzero(precision >= target_precision)
    return (float(coverage[good[-1]]), float(threshold[good[-1]])) if len(good) else (0.0, float("inf"))


def least_trusted(target_precision: float) -> int:
    """Of fewer rows not even all being right would show this precision, which is below 1."""
    return math.ceil(math.log(TRUST_ERROR / len(TRUST_STARTS)) / math.log(max(target_precision, 1e-9)))


def trusted_from(confidence: Array, correct: npt.NDArray[np.bool_], target_precision: float) -> float:
    """The confidence from which on answers have the target precision; inf where N such rows do not show it.

    In at most one of ten catalogs the answers from there on are right less often, whatever the rows are like: learn then test
    (Angelopoulos et al. 2021), with exact binomial tests along three sequences of ever lower confidences.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], np.cumsum(~correct[order])
    if target_precision >= 1:
        return math.inf
    rows = np.unique(np.ceil(np.arange(1, TRUST_STEPS + 1) / TRUST_STEPS * len(ranked)).astype(int))
    rows = rows[rows >= least_trusted(target_precision)]
    if not len(rows):
        return math.inf
    # Rows of equal confidence go together.
    rows = np.searchsorted(-ranked, -ranked[rows - 1], side="right")
    passed = binom.cdf(wrong[rows - 1], rows, 1 - target_precision) <= TRUST_ERROR / len(TRUST_STARTS)
    last = 0
    for start in TRUST_STARTS:
        first = int(np.searchsorted(rows, start * len(ranked)))
        if first < len(rows) and (stretch := int(np.argmin(np.append(passed[first:], False)))):
            last = max(last, int(rows[first + stretch - 1]))
    return float(ranked[last - 1]) if last else math.inf
