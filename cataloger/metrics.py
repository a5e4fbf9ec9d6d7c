"""Scores of predicted category paths: flat, per level, hierarchical, and how far confidences can be trusted.

A product's categories are a collection of paths, usually of one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from cataloger.taxonomy import SEPARATOR, prefix

CALIBRATION_BINS = 15
TEMPERATURES = np.geomspace(0.25, 4.0, 61)

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
    accuracy = float(accuracy_score(true, predicted))
    weighted, macro = (
        float(f1_score(true, predicted, average=average, zero_division=0)) for average in ("weighted", "macro")
    )
    return Scores(accuracy, weighted, macro, accuracy, accuracy)


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


def count_sets(true: Sequence[Collection[str]], given: Sequence[Collection[str]]) -> Counts:
    """Counts over N rows with any number of categories each."""
    return _count(*_indicators(true, given))


def set_scores(true: Sequence[Collection[Any]], given: Sequence[Collection[Any]]) -> Scores:
    """Scores of N rows with any number of categories each; macro F1 is over the categories that occur in either."""
    categories, left, right = _indicators(true, given)
    counts = _count(categories, left, right)
    sizes = np.asarray(left.sum(axis=1) + right.sum(axis=1)).ravel()
    shared = np.asarray(left.multiply(right).sum(axis=1)).ravel()
    by_row = np.where(sizes > 0, 2 * shared / np.maximum(sizes, 1), 1.0)
    return Scores(
        accuracy=float((2 * shared == sizes).mean()),
        weighted_f1=float((counts.true * counts.f1).sum() / max(1, counts.true.sum())),
        macro_f1=float(counts.f1.mean()) if categories else 1.0,
        micro_f1=float(2 * counts.both.sum() / max(1, counts.true.sum() + counts.given.sum())),
        example_f1=float(by_row.mean()),
    )


def _indicators(true: Sequence[Collection[Any]], given: Sequence[Collection[Any]]) -> tuple[list[Any], Any, Any]:
    """(the categories that occur, sorted; for `true` and for `given` a sparse matrix [N, categories] of ones)."""
    binarizer = MultiLabelBinarizer(sparse_output=True).fit([*true, *given])
    return list(binarizer.classes_), binarizer.transform(true), binarizer.transform(given)


def _count(categories: list[Any], left: Any, right: Any) -> Counts:
    sums = (np.asarray(matrix.sum(axis=0), float).ravel() for matrix in (left, right, left.multiply(right)))
    return Counts(categories, *sums)


def level_scores(true: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> list[Scores]:
    """Scores of each level's ancestors, top level first; a path that ends above a level stands for itself there."""
    paths = {path for row in (*true, *predicted) for path in row}
    scores = []
    for depth in range(1, max(path.count(SEPARATOR) + 1 for path in paths) + 1):
        ancestor = {path: prefix(path, depth) for path in paths}
        scores.append(set_scores(*([{ancestor[path] for path in row} for row in rows] for rows in (true, predicted))))
    return scores


def hierarchical_f1(true: Sequence[Collection[str]], predicted: Sequence[Collection[str]]) -> float:
    """Micro-averaged F1 over categories augmented with their ancestors (Kiritchenko et al. 2006, section 3)."""
    shared = total = 0
    for left, right in zip(true, predicted, strict=True):
        a, b = with_ancestors(left), with_ancestors(right)
        total += len(a) + len(b)
        shared += len(a & b)
    return 2 * shared / total if total else 0.0


def with_ancestors(paths: Collection[str]) -> set[str]:
    """The categories and all that they lie in."""
    return {prefix(path, depth) for path in paths for depth in range(1, path.count(SEPARATOR) + 2)}


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
