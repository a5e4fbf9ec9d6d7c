"""Scores of predicted category paths: flat, per level, hierarchical, and how far confidences can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score

from cataloger.taxonomy import SEPARATOR, prefix

TEMPERATURES = np.geomspace(0.25, 4.0, 61)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Shares between 0 and 1 over the same N rows."""

    accuracy: float
    weighted_f1: float
    macro_f1: float


def flat_scores(true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Scores:
    """Scores of label ids, shape [N]; macro F1 is over the labels that occur in either."""
    return Scores(
        accuracy=float(accuracy_score(true, predicted)),
        weighted_f1=float(f1_score(true, predicted, average="weighted", zero_division=0)),
        macro_f1=float(f1_score(true, predicted, average="macro", zero_division=0)),
    )


def level_scores(true: Sequence[str], predicted: Sequence[str]) -> list[Scores]:
    """Scores of each level's ancestors, top level first; a path that ends above a level stands for itself there."""
    depth = max(path.count(SEPARATOR) + 1 for path in {*true, *predicted})
    return [flat_scores(*_ids(true, predicted, level + 1)) for level in range(depth)]


def hierarchical_f1(true: Sequence[str], predicted: Sequence[str]) -> float:
    """Micro-averaged F1 over categories augmented with their ancestors (Kiritchenko et al. 2006, section 3)."""
    shared = total = 0
    for left, right in zip(true, predicted, strict=True):
        a, b = left.split(SEPARATOR), right.split(SEPARATOR)
        total += len(a) + len(b)
        for x, y in zip(a, b, strict=False):
            if x != y:
                break
            shared += 1
    return 2 * shared / total if total else 0.0


def expected_calibration_error(confidence: Array, correct: npt.NDArray[np.bool_], bins: int = 15) -> float:
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


def _ids(
    true: Sequence[str], predicted: Sequence[str], depth: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    ancestors = {path: prefix(path, depth) for path in {*true, *predicted}}
    number = {name: i for i, name in enumerate(sorted(set(ancestors.values())))}
    ids = {path: number[name] for path, name in ancestors.items()}
    return np.array([ids[path] for path in true]), np.array([ids[path] for path in predicted])
