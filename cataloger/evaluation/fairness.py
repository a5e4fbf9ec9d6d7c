"""Whether some groups of products get worse answers than others: by brand, by language, by seller.

Every figure has a 95% interval. A group is compared with all other products, and p-values are corrected for how many groups are
looked at (Benjamini & Hochberg 1995), for each figure by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.stats

from cataloger.errors import ConfigError
from cataloger.evaluation.predictions import SLICE, Predictions, sides
from cataloger.evaluation.significance import Array, Mask, coverage_spread
from cataloger.evaluation.slices import Slice, slice_of
from cataloger.heads.metrics import coverage_at
from cataloger.heads.sets import Sets, exact

# A group of fewer products is not judged: its intervals would be wider than any difference of interest.
LEAST_ROWS = 50
# Of more groups the largest are judged.
MOST_GROUPS = 200
SIGNIFICANT = 0.05
Z = float(scipy.stats.norm.isf(0.025))
NONE = "none"
# The last is the mean confidence less the accuracy: the expected calibration error of few rows is mostly noise (Kumar et al. 2019).
ACCURACY, REVIEW, COVERAGE, CALIBRATION = "accuracy", "needs review", "coverage at 95%", "calibration error"
FIGURES = (ACCURACY, REVIEW, COVERAGE, CALIBRATION)


@dataclass(frozen=True)
class Figure:
    """Of a group: its value, the interval that it lies in with 95% confidence, that of all other products, and how probable so large a
    difference is by chance."""

    value: float
    low: float
    high: float
    others: float
    p_value: float

    @property
    def differs(self) -> bool:
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Misjudged:
    """A category that a group is given too often, or too rarely: on so many of its products, and so many have it; `p_value` is
    McNemar's, corrected."""

    category: str
    true: int
    given: int
    p_value: float


@dataclass(frozen=True)
class Group:
    """The products that have the same value in a column.

    `within` is by how much their accuracy differs from that of other products of the same true category; None where no other products
    have those categories. `adjusted` is by how much it differs from what the rates of all products of those categories would give.
    """

    name: str
    rows: int
    figures: dict[str, Figure]
    within: Figure | None
    adjusted: float = 0.0
    misjudged: tuple[Misjudged, ...] = ()

    @property
    def verdict(self) -> str:
        """On its accuracy, for people."""
        accuracy = self.figures[ACCURACY]
        if not accuracy.differs:
            return "no clear difference"
        how = "worse" if accuracy.value < accuracy.others else "better"
        if self.within is None:
            return f"{how}; no other products have its categories"
        # Simpson: what the categories are may be all that differs.
        if self.within.differs and (self.within.value < 0) == (how == "worse"):
            return f"{how}, also within the same categories"
        return f"{how}, but not clearly within the same categories"


@dataclass(frozen=True)
class Fairness:
    """The groups of a column, the largest first; `unjudged` are (groups, products) that are too small to judge, or too many."""

    column: str
    groups: tuple[Group, ...]
    unjudged: tuple[int, int]
    names: tuple[str, ...] = field(default=())
    """Some of those, the largest first."""

    @property
    def clearly_worse(self) -> int:
        """Groups whose accuracy is clearly below that of all other products."""
        return sum(group.verdict.startswith("worse") for group in self.groups)

    @property
    def worst(self) -> Group | None:
        """That with the lowest accuracy."""
        return min(self.groups, key=lambda group: group.figures[ACCURACY].value, default=None)

    @property
    def gap(self) -> float | None:
        """The equal-opportunity gap (Hardt, Price and Srebro 2016), for many categories: between the best and the worst group, of the
        accuracy among products of the same true category."""
        adjusted = [group.adjusted for group in self.groups if group.within]
        return max(adjusted) - min(adjusted) if len(adjusted) > 1 else None


def judge(predictions: Predictions, columns: Sequence[str]) -> list[Fairness]:
    """For each of the columns, which the predictions have."""
    true, given = sides(predictions)
    found = _Answers(
        true,
        given,
        exact(true, given),
        predictions.confidence,
        np.asarray(predictions.table.column("needs_review").to_numpy(), bool),
        _strata(true),
    )
    return [_judged(column, found, *values(predictions.table.column(SLICE + column))) for column in columns]


def values(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """(the values of a column, which of them each row has)"""
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode(null_encoding="encode")
    names = [NONE if name is None else name for name in encoded.dictionary.to_pylist()]
    return names, np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def between(first: Predictions, second: Predictions, columns: Sequence[str]) -> list[Slice]:
    """Both models' accuracy on each group of these columns that is large enough to judge; p-values are McNemar's, corrected.

    Of the same rows. Raises ConfigError where neither was evaluated with a column.
    """
    true, *answers = sides(first, second)
    right = [exact(true, given) for given in answers]
    found = []
    for column in columns:
        table = next((one.table for one in (second, first) if SLICE + column in one.slices), None)
        if table is None:
            raise ConfigError(
                f"--protect {column}: the models were evaluated without it; add --evaluate CATALOG, or evaluate with --group-columns {column}"
            )
        names, places = values(table.column(SLICE + column))
        counts = np.bincount(places, minlength=len(names))
        for number in np.argsort(-counts, kind="stable").tolist():
            if counts[number] >= LEAST_ROWS:
                rows = places == number
                found.append(slice_of(column, names[number], right[0][rows], right[1][rows]))
    corrected = _false_discovery([one.p_value for one in found])
    return [replace(one, p_value=p_value) for one, p_value in zip(found, corrected, strict=True)]


@dataclass(frozen=True)
class _Answers:
    true: Sets
    given: Sets
    right: Mask
    confidence: Array
    review: Mask
    strata: npt.NDArray[np.int64]

    @cached_property
    def expected(self) -> Array:
        """[N] the accuracy among all products of the same true category."""
        rows, right = np.bincount(self.strata), np.bincount(self.strata, self.right)
        return np.asarray((right / np.maximum(rows, 1))[self.strata])


def _judged(column: str, found: _Answers, names: Sequence[str], places: npt.NDArray[np.int64]) -> Fairness:
    counts = np.bincount(places, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    there = [number for number in order.tolist() if counts[number]]
    judged = [number for number in there if counts[number] >= LEAST_ROWS][:MOST_GROUPS]
    chosen = set(judged)
    left = [number for number in there if number not in chosen]
    groups = [_group(names[number], found, places == number) for number in judged]
    groups = _corrected(groups) if groups else groups
    unjudged = len(left), int(counts[left].sum())
    return Fairness(column, tuple(groups), unjudged, tuple(names[number] for number in left[:5]))


def _group(name: str, found: _Answers, inside: Mask) -> Group:
    rows = np.flatnonzero(inside)
    others = coverage_at(found.confidence[~inside], found.right[~inside], 0.95)[0] if not inside.all() else np.nan
    figures = {
        ACCURACY: _share(found.right, inside),
        REVIEW: _share(found.review, inside),
        COVERAGE: _resampled(
            *coverage_spread(found.confidence[rows], found.right[rows], 0.95), len(rows), len(inside), others
        ),
        CALIBRATION: _mean(found.confidence - found.right, inside),
    }
    # Indirect standardisation: right answers less those to expect.
    adjusted = float((found.right[rows] - found.expected[rows]).mean())
    return Group(name, len(rows), figures, _within(found, inside), adjusted, _misjudged(found, rows))


def _share(holds: Mask, inside: Mask) -> Figure:
    """Wilson's interval; against the others by Fisher's exact test."""
    rows, count = int(inside.sum()), int(holds[inside].sum())
    other_rows, other_count = int((~inside).sum()), int(holds[~inside].sum())
    found = scipy.stats.binomtest(count, rows).proportion_ci(method="wilson")
    table = [[count, rows - count], [other_count, other_rows - other_count]]
    p_value = float(scipy.stats.fisher_exact(table)[1]) if other_rows else 1.0
    others = other_count / other_rows if other_rows else np.nan
    return Figure(count / rows, float(found.low), float(found.high), others, p_value)


def _mean(numbers: Array, inside: Mask) -> Figure:
    """By the normal distribution; against the others by Welch's test."""
    own, others = numbers[inside], numbers[~inside]
    deviation = float(own.std(ddof=1) / np.sqrt(len(own)))
    p_value = float(scipy.stats.ttest_ind(own, others, equal_var=False).pvalue) if len(others) > 1 else 1.0
    value, of_others = float(own.mean()), float(others.mean()) if len(others) else np.nan
    return Figure(value, value - Z * deviation, value + Z * deviation, of_others, 1.0 if np.isnan(p_value) else p_value)


def _resampled(value: float, low: float, high: float, deviation: float, rows: int, total: int, others: float) -> Figure:
    """By the spread of bootstrap samples of the group; that of the others is taken to be as much smaller as they are more."""
    apart = abs(value - others)
    # Where all samples are alike, as of a group without a right answer, one row more or less is what is not known.
    deviation = max(deviation, 1 / rows)
    deviation *= float(np.sqrt(1 + rows / max(1, total - rows)))
    p_value = float(2 * scipy.stats.norm.sf(apart / deviation)) if deviation and not np.isnan(others) else 1.0
    return Figure(value, low, high, others, p_value)


def _within(found: _Answers, inside: Mask) -> Figure | None:
    """The difference in accuracy from other products of the same true category: Mantel and Haenszel's, with Sato's variance (Sato 1989),
    tested as Cochran, Mantel and Haenszel do."""
    size = int(found.strata.max(initial=-1)) + 1
    own, others = (np.bincount(found.strata[side], minlength=size).astype(float) for side in (inside, ~inside))
    right, right_others = (
        np.bincount(found.strata[side & found.right], minlength=size).astype(float) for side in (inside, ~inside)
    )
    both = (own > 0) & (others > 0)
    n, m, a, b = own[both], others[both], right[both], right_others[both]
    total = n + m
    weight = float((n * m / total).sum()) if both.any() else 0.0
    if not weight:
        return None
    difference = float(((a * m - b * n) / total).sum() / weight)
    p = ((n * n * b - m * m * a + n * m * (m - n) / 2) / total**2).sum()
    q = ((a * (m - b) + b * (n - a)) / (2 * total)).sum()
    deviation = float(np.sqrt(max(0.0, difference * p + q)) / weight)
    hits = a + b
    variance = float((n * m * hits * (total - hits) / (total**2 * np.maximum(total - 1, 1))).sum())
    apart = float((a - n * hits / total).sum())
    p_value = float(scipy.stats.chi2.sf(apart * apart / variance, 1)) if variance else 1.0
    return Figure(difference, difference - Z * deviation, difference + Z * deviation, 0.0, p_value)


def _misjudged(found: _Answers, rows: npt.NDArray[np.int64]) -> tuple[Misjudged, ...]:
    """All categories that the group's products have or were given, with the p-value of each by itself."""
    true, given = found.true.rows[rows], found.given.rows[rows]
    both = true.multiply(given)
    counts = [np.asarray(matrix.sum(axis=0)).ravel().astype(int) for matrix in (true, given, both)]
    missed, wrong = counts[0] - counts[2], counts[1] - counts[2]
    return tuple(
        Misjudged(
            found.true.names[place],
            int(counts[0][place]),
            int(counts[1][place]),
            float(scipy.stats.binomtest(int(wrong[place]), int(missed[place] + wrong[place])).pvalue),
        )
        for place in np.flatnonzero(missed + wrong).tolist()
    )


def _corrected(groups: Sequence[Group]) -> list[Group]:
    """With p-values corrected over all groups; of categories only those that are clearly misjudged, the surest first."""
    for title in FIGURES:
        own = [group.figures[title] for group in groups]
        groups = [
            replace(group, figures=group.figures | {title: replace(figure, p_value=p_value)})
            for group, figure, p_value in zip(groups, own, _false_discovery([one.p_value for one in own]), strict=True)
        ]
    within = [group.within.p_value for group in groups if group.within]
    corrected = iter(_false_discovery(within))
    groups = [
        replace(group, within=replace(group.within, p_value=next(corrected))) if group.within else group
        for group in groups
    ]
    p_values = iter(_false_discovery([one.p_value for group in groups for one in group.misjudged]))
    found = []
    for group in groups:
        misjudged = [replace(one, p_value=next(p_values)) for one in group.misjudged]
        clear = sorted((one for one in misjudged if one.p_value < SIGNIFICANT), key=lambda one: one.p_value)
        found.append(replace(group, misjudged=tuple(clear)))
    return found


def _false_discovery(p_values: Sequence[float]) -> list[float]:
    return scipy.stats.false_discovery_control(p_values).tolist() if len(p_values) else []


def _strata(true: Sets) -> npt.NDArray[np.int64]:
    """[N] a number for the true category of each row, or for the set of them."""
    rows = true.rows
    if (np.diff(rows.indptr) == 1).all():
        return np.asarray(rows.indices, np.int64)
    numbers: dict[bytes, int] = {}
    sets = (rows.indices[start:stop].tobytes() for start, stop in zip(rows.indptr, rows.indptr[1:], strict=False))
    return np.array([numbers.setdefault(own, len(numbers)) for own in sets], np.int64)
