"""Two models on the same rows: how far apart their scores are, and how sure that is.

Every score is a function of sums over rows. A bootstrap sample weighs the rows, so that one sparse product gives the sums of
many samples; both models get the same samples, and what they have in common cancels (Efron & Tibshirani 1993, chapter 13).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.stats

from cataloger.heads.metrics import CALIBRATION_BINS as BINS
from cataloger.heads.sets import Sets, exact

SAMPLES, LEAST_SAMPLES = 1_000, 200
# Of more rows than a thousandth of this, fewer samples are drawn: the interval narrows, and a sample of 10^7 rows takes seconds.
ROWS_DRAWN = 100_000_000
CONFIDENCE = 0.95
# Weights held at once, as 64-bit numbers; what is made of them is six times as large, and faster made in small pieces.
MOST_WEIGHTS = 2_000_000
LOWER_IS_BETTER = ("calibration error",)

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """A score of both models, and the interval that `second - first` lies in with 95% confidence."""

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def title(self) -> str:
        """The name, and which way is up where that is not the usual one."""
        return f"{self.name} (lower is better)" if self.name in LOWER_IS_BETTER else self.name

    @property
    def key(self) -> str:
        """The name as flags have it."""
        return self.name.lower().replace(" ", "-").replace("%", "")

    @property
    def by(self) -> float:
        return self.second - self.first

    @property
    def better(self) -> bool:
        """The second model is better, and the interval leaves out that it isn't."""
        return self.high < 0 if self.name in LOWER_IS_BETTER else self.low > 0

    @property
    def worse(self) -> bool:
        """The second model is worse, and the interval leaves out that it isn't."""
        return self.low > 0 if self.name in LOWER_IS_BETTER else self.high < 0

    @property
    def verdict(self) -> str:
        return "better" if self.better else "worse" if self.worse else "no clear difference"


@dataclass(frozen=True)
class McNemar:
    """Rows that only one of two models got right, and how probable so uneven a split is among equals (McNemar 1947, exact)."""

    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        discordant = self.only_first + self.only_second
        return float(scipy.stats.binomtest(self.only_second, discordant).pvalue) if discordant else 1.0


def mcnemar(first: Mask, second: Mask) -> McNemar:
    """Of [rows] that each model got right."""
    return McNemar(int((first & ~second).sum()), int((second & ~first).sum()))


class Scored:
    """One model's answers to N rows, ready to be scored under any weights of the rows."""

    def __init__(self, true: Sets, given: Sets, confidence: Array, tail: Collection[str]) -> None:
        """The names of `true` and `given` are all that occur in any model that this one is compared with."""
        own, answered = (side.rows.astype(float) for side in (true, given))
        self.correct = exact(true, given)
        left, right = (side.with_ancestors().rows for side in (true, given))
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        rows, size = np.arange(len(place)), (len(place), BINS)
        columns = [
            own,
            answered,
            own.multiply(answered),
            scipy.sparse.csr_matrix((self.correct.astype(float), (rows, place)), size),
            scipy.sparse.csr_matrix((confidence, (rows, place)), size),
            _column(2 * np.diff(left.multiply(right).indptr)),
            _column(np.diff(left.indptr) + np.diff(right.indptr)),
        ]
        self._sums = scipy.sparse.hstack(columns, format="csc").T
        self._parts = np.cumsum([column.shape[1] for column in columns])[:-1]
        self._tail = np.isin(true.names, list(tail))
        self._order = np.argsort(-confidence, kind="stable")
        sure = confidence[self._order]
        self._last = np.append(sure[1:] != sure[:-1], True)  # rows of equal confidence are trusted together

    def scores(self, weights: Array) -> dict[str, Array]:
        """By name, [samples]; `weights` is [N, samples], how often a sample has each row."""
        own, given, both, right, sure, shared, steps = np.split(self._sums @ weights, self._parts)
        total = weights.sum(axis=0)
        f1 = 2 * both / np.maximum(own + given, 1e-12)
        occurs = own + given > 0
        tail = occurs & self._tail[:, None]
        return {
            "accuracy": right.sum(axis=0) / total,
            "weighted F1": (own * f1).sum(axis=0) / np.maximum(own.sum(axis=0), 1e-12),
            "macro F1": f1.sum(axis=0) / np.maximum(occurs.sum(axis=0), 1),
            "tail macro F1": (f1 * tail).sum(axis=0) / np.maximum(tail.sum(axis=0), 1),
            "hierarchical F1": shared[0] / np.maximum(steps[0], 1),
            "calibration error": np.abs(right - sure).sum(axis=0) / total,
            "coverage at 95%": self._coverage(weights, total, 0.95),
        }

    def _coverage(self, weights: Array, total: Array, precision: float) -> Array:
        """The largest share of rows, the most confident first, of which that share is right."""
        sorted_weights = weights[self._order]
        trusted = np.cumsum(sorted_weights, axis=0)
        right = np.cumsum(sorted_weights * self.correct[self._order, None], axis=0)
        good = (right >= precision * trusted - 1e-9) & self._last[:, None]
        return np.asarray(np.where(good, trusted, 0).max(axis=0) / total)


def enough_samples(rows: int) -> int:
    """How many resamplings of so many rows give an interval in minutes."""
    return min(SAMPLES, max(LEAST_SAMPLES, ROWS_DRAWN // max(1, rows)))


def differences(first: Scored, second: Scored, samples: int | None = None, seed: int = 0) -> list[Difference]:
    """Every score of both models with the percentile interval of the difference, from `samples` resamplings of the rows."""
    samples = samples or enough_samples(len(first.correct))
    ones = np.ones((len(first.correct), 1))
    left, right = first.scores(ones), second.scores(ones)
    apart: dict[str, list[Array]] = {name: [] for name in left}
    for weights in _samples(len(ones), samples, seed):
        one, other = first.scores(weights), second.scores(weights)
        for name, values in apart.items():
            values.append(other[name] - one[name])
    return [
        Difference(name, float(left[name][0]), float(right[name][0]), *_interval(np.concatenate(values)))
        for name, values in apart.items()
    ]


def coverage_spread(
    confidence: Array, right: Mask, precision: float, seed: int = 0
) -> tuple[float, float, float, float]:
    """(value, low, high, standard deviation) of the share of rows that can be trusted at a precision, by resamplings of the rows."""
    order = np.argsort(-confidence, kind="stable")
    sure, correct = confidence[order], right[order].astype(float)
    last = np.append(sure[1:] != sure[:-1], True)  # rows of equal confidence are trusted together

    def coverage(weights: Array) -> Array:
        trusted = np.cumsum(weights, axis=0)
        good = (np.cumsum(weights * correct[:, None], axis=0) >= precision * trusted - 1e-9) & last[:, None]
        return np.asarray(np.where(good, trusted, 0).max(axis=0) / len(correct))

    value = float(coverage(np.ones((len(correct), 1)))[0])
    drawn = np.concatenate(
        [coverage(weights) for weights in _samples(len(correct), enough_samples(len(correct)), seed)]
    )
    return value, *_interval(drawn), float(drawn.std(ddof=1))


def accuracy_difference(name: str, first: Mask, second: Mask, samples: int = SAMPLES, seed: int = 0) -> Difference:
    """The same for nothing but the share of rows that are right."""
    rows, lost, won = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    # A row changes the sum by -1, 0 or 1: how often a sample has each kind is all that matters of it.
    chances = np.array([lost, won, rows - lost - won]) / rows
    drawn = np.random.default_rng(seed).multinomial(rows, chances, samples)
    apart = (drawn[:, 1] - drawn[:, 0]) / rows
    return Difference(name, float(first.mean()), float(second.mean()), *_interval(apart))


def f1_difference(
    name: str, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], samples: int | None = None, seed: int = 0
) -> Difference:
    """The same for an F1 of counts [rows, 3]: what is right, what is given, what there is."""

    def f1(counts: npt.NDArray[np.int64], weights: Array) -> Array:
        right, given, true = counts.T @ weights
        return np.asarray(2 * right / np.maximum(given + true, 1e-12))

    ones = np.ones((len(first), 1))
    drawn = _samples(len(first), samples or enough_samples(len(first)), seed)
    apart = np.concatenate([f1(second, weights) - f1(first, weights) for weights in drawn])
    return Difference(name, float(f1(first, ones)[0]), float(f1(second, ones)[0]), *_interval(apart))


def _samples(rows: int, samples: int, seed: int) -> Iterator[Array]:
    """[rows, some samples] at a time: how often each row is drawn in `rows` draws with replacement."""
    random = np.random.default_rng(seed)
    at_once = max(1, min(samples, MOST_WEIGHTS // rows))
    for start in range(0, samples, at_once):
        drawn = [
            np.bincount(random.integers(0, rows, rows), minlength=rows)
            for _ in range(start, min(start + at_once, samples))
        ]
        yield np.stack(drawn, axis=1).astype(float)


def _interval(values: Array) -> tuple[float, float]:
    beyond = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [beyond, 1 - beyond])
    return float(low), float(high)


def _column(values: npt.NDArray[np.integer[Any]]) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(values.astype(float)[:, None])
