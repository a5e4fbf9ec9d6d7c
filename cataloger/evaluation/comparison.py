"""Two models and more, side by side and on the same rows: the figures that the terminal, the page and MLflow show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cataloger.errors import ConfigError
from cataloger.evaluation.contenders import Contender
from cataloger.evaluation.fairness import between
from cataloger.evaluation.impact import Effect
from cataloger.evaluation.predictions import Predictions, sides
from cataloger.evaluation.significance import Difference, McNemar, Scored, differences, f1_difference, mcnemar
from cataloger.evaluation.slices import CategoryChange, Slice, by_category, frequency_groups, slices
from cataloger.heads.sets import Sets
from cataloger.taxonomy import SEPARATOR

# Of two evaluations of a whole catalog this share of rows must be in both: a few may lack the text columns of one model. Of
# the rows that each training left out, those that both did are the fair ones, be they few.
LEAST_IN_COMMON, LEAST_HELD_OUT = 0.9, 100
# Of the scores of categories, those that mean something of tags: a mean over all of their values does not.
OF_TAGS = ("accuracy", "calibration error", "coverage at 95%", "tail macro F1")


@dataclass(frozen=True)
class Row:
    """One parameter or metric of every contender; one that lacks it has an empty string."""

    kind: str
    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Check:
    """One condition of a promotion, and how it came out."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Pair:
    """The second model against the first, on the same rows; categories begin with the one that the second gained most in."""

    first: str
    second: str
    rows: int
    left_out: tuple[str, ...]
    """Sentences on what is not compared."""
    differences: tuple[Difference, ...]
    mcnemar: McNemar
    slices: tuple[Slice, ...]
    categories: tuple[CategoryChange, ...]
    slowdown: float | None = None
    """How many times as long the second takes for a text, where that was measured."""
    effect: Effect | None = None
    checks: tuple[Check, ...] = ()
    others: tuple["Pair", ...] = ()
    """The same of further answers that both have, `answer` being their column."""
    answer: str = ""
    protect: tuple[str, ...] = ()
    """Columns whose groups of products may not get worse answers."""
    protected: tuple[Slice, ...] = ()
    """Those groups that are large enough to judge; their p-values are corrected for how many there are."""

    @property
    def winners(self) -> list[CategoryChange]:
        return [change for change in self.categories if change.by > 0]

    @property
    def losers(self) -> list[CategoryChange]:
        """The worst first."""
        return [change for change in reversed(self.categories) if change.by < 0]


@dataclass(frozen=True)
class Decision:
    """`promoted` is the version that the alias `champion` was given to, None where it stayed."""

    promoted: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Rows hold parameters first, then metrics; the pairs are all others against the first contender."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...] = ()
    decision: Decision | None = None
    mlflow_run: str | None = None


def side_by_side(found: Sequence[Contender]) -> tuple[Row, ...]:
    """Parameters of the trainings, or of the runs that were named, and metrics of training and latest evaluation."""
    runs = [one.training or one.run for one in found]
    evaluated = [one.evaluations[0] if one.evaluations else None for one in found]
    tables: list[tuple[str, list[dict[str, object]]]] = [
        ("model", [{"uri": one.model} for one in found]),
        ("parameter", [dict(run.data.params) if run else {} for run in runs]),
        (
            "metric of training",
            [dict(run.data.metrics) if run and run.data.tags.get("job") == "train" else {} for run in runs],
        ),
        ("metric of evaluation", [dict(run.data.metrics) if run else {} for run in evaluated]),
    ]
    rows = [
        Row(kind, name, tuple(_text(values.get(name)) for values in columns))
        for kind, columns in tables
        for name in sorted({name for values in columns for name in values})
        if not name.startswith("system/")
    ]
    return tuple(row for row in rows if any(row.values))


def compare_predictions(
    first: Predictions, second: Predictions, names: tuple[str, str], protect: Sequence[str] = ()
) -> Pair:
    """Both models on the rows that both answered and whose categories both know.

    Raises ConfigError when they have too few in common, or one gives a product one category and the other any number.
    """
    if first.answer != second.answer:
        raise ConfigError(
            f"{names[0]} and {names[1]}: one gives a product {first.answer}, the other {second.answer}; these cannot be compared"
        )
    others, apart_from = [], []
    for column in [column for column in first.others if column in second.others]:
        try:
            found = compare_predictions(first.others[column], second.others[column], names)
            others.append(replace(found, answer=column))
        except ConfigError as problem:  # of a further answer: the first one decides
            apart_from.append(f"{column}: {problem}")
    total = max(len(first.table), len(second.table))
    _, left, right = np.intersect1d(first.table.column("row"), second.table.column("row"), return_indices=True)
    whole = "all" in (first.about.split, second.about.split)
    if len(left) < (LEAST_IN_COMMON * total if whole else min(total, LEAST_HELD_OUT)):
        raise ConfigError(
            f"{names[0]} was evaluated on {len(first.table):,} rows, {names[1]} on {len(second.table):,}, and {len(left):,} are the "
            "same; evaluate both with --evaluate on a catalog that neither was trained on"
        )
    alone = len(first.table) + len(second.table) - 2 * len(left)
    left_out = [f"{alone:,} rows have an answer of one model only"] if alone else []
    left_out += [
        f"{name} was trained on {one.about.seen:.0%} of these rows: its scores are too good"
        for name, one in zip(names, (first, second), strict=True)
        if one.about.knows_the_answers
    ]
    first, second = first.take(left), second.take(right)
    first, second, unknown = _common_categories(first, second, names)
    true, *answers = sides(first, second)
    tail = [path for path, group in frequency_groups(true).items() if group == "tail"]
    one, other = (
        Scored(true, given, model.confidence, tail) for model, given in zip((first, second), answers, strict=True)
    )
    apart = differences(one, other)
    if first.places:
        apart = _of_tags(first, second, apart)
    return Pair(
        *names,
        rows=len(first.table),
        left_out=(*left_out, *unknown, *apart_from),
        differences=tuple(apart),
        mcnemar=mcnemar(one.correct, other.correct),
        slices=tuple(slices(first, second)),
        protect=tuple(protect),
        protected=tuple(between(first, second, protect)),
        categories=tuple(by_category(first, second)),
        others=tuple(others),
    )


def _of_tags(first: Predictions, second: Predictions, found: Sequence[Difference]) -> list[Difference]:
    """Of tags, also how well values are found, and their places; what of the scores of categories means nothing here is left out."""
    values = f1_difference("value F1", first.pairs, second.pairs)
    places = f1_difference("span F1", _counts(first.places), _counts(second.places))
    return [values, places, *(one for one in found if one.name in OF_TAGS)]


def _counts(places: Sequence[Sets]) -> npt.NDArray[np.int64]:
    """[rows, 3] tags that are right, that are given, that there are."""
    true, given = (side.rows for side in places)
    both = true.multiply(given).tocsr()
    return np.stack([np.diff(side.indptr) for side in (both, given, true)], axis=1).astype(np.int64)


def _common_categories(
    first: Predictions, second: Predictions, names: tuple[str, str]
) -> tuple[Predictions, Predictions, list[str]]:
    """Without the rows whose category only one of the models knows; what that leaves out, in words."""
    one, other = set(first.about.categories), set(second.about.categories)
    only = one ^ other
    if not only:
        return first, second, []
    (true,) = Sets.of(first.table.column(f"true_{first.answer}"))
    names_of = [name.split(SEPARATOR)[0] for name in true.names] if first.places else true.names
    kept = np.flatnonzero(true.rows @ np.isin(names_of, list(only)).astype(int) == 0)
    if not len(kept):
        raise ConfigError(f"{names[0]} and {names[1]} have no category of these rows in common")
    told = (
        f"{len(one - other):,} categories are known to {names[0]} only, {len(other - one):,} to {names[1]} only: "
        f"{len(first.table) - len(kept):,} rows of these are left out"
    )
    return first.take(kept), second.take(kept), [told]


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
