"""Where two models differ: by level of the tree, by how common a category is, by language, by category."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.stats

from cataloger.paired import Array, Difference, Mask, accuracy_difference, at_level, mcnemar
from cataloger.predictions import SLICE, Predictions, Sets, exact
from cataloger.taxonomy import SEPARATOR

# Categories by rows, the largest first: half of all rows is the head, what comes after nine tenths the tail.
HEAD, TORSO = 0.5, 0.9
MOST_VALUES = 12
EXAMPLES = 3
# Unicode scripts, as RE2 names them, that tell languages apart; what has none of them is taken as Latin.
SCRIPTS = ("Hiragana", "Katakana", "Hangul", "Han", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai")


@dataclass(frozen=True)
class Slice:
    """Accuracy on a part of the rows; `p_value` is McNemar's."""

    group: str
    rows: int
    accuracy: Difference
    p_value: float


@dataclass(frozen=True)
class Example:
    """A product that one of the two models got right."""

    text: str
    true: str
    first: str
    second: str


@dataclass(frozen=True)
class CategoryChange:
    """Of the `rows` that have the category, those that each model gave it; `p_value` is McNemar's, corrected for how many
    categories there are (Benjamini & Hochberg 1995)."""

    category: str
    rows: int
    first: int
    second: int
    p_value: float
    examples: tuple[Example, ...]

    @property
    def by(self) -> int:
        """Rows that the second model won."""
        return self.second - self.first


def frequency_groups(true: Sets) -> dict[str, str]:
    """Category → head, torso or tail."""
    rows = Counter(path for row in true for path in row)
    total, before, groups = sum(rows.values()), 0, {}
    for path, count in sorted(rows.items(), key=lambda pair: (-pair[1], pair[0])):
        groups[path] = "head" if before < HEAD * total else "torso" if before < TORSO * total else "tail"
        before += count
    return groups


def scripts(texts: pa.ChunkedArray) -> list[str]:
    """The writing system of each text."""
    found = pa.array(["Latin"] * len(texts))
    for script in reversed(SCRIPTS):
        name = "Japanese" if script in ("Hiragana", "Katakana") else script
        has = pc.match_substring_regex(texts.cast(pa.large_string()), rf"\p{{{script}}}").combine_chunks()
        found = pc.if_else(pc.fill_null(has, False), name, found)
    return list(found.to_pylist())


def slices(first: Predictions, second: Predictions) -> list[Slice]:
    """Both models' accuracy at every level, on head, torso and tail, by writing system and by each slice column."""
    true, answers = first.true, (first.given, second.given)
    found = []
    for depth in range(1, _depth([*true, *answers[0], *answers[1]])):
        right = [exact(at_level(true, depth), at_level(given, depth)) for given in answers]
        found.append(_slice("level", f"level {depth}", *right))
    right = [exact(true, given) for given in answers]
    found.append(_slice("level", "whole category", *right))
    groups = frequency_groups(true)
    rarest = [max((groups[path] for path in row), key=("head", "torso", "tail").index) for row in true]
    for name, values in {"frequency": rarest, "writing system": scripts(first.table.column("text"))}.items():
        found += _by_value(name, values, *right)
    for column in first.slices:
        values = first.table.column(column).to_pylist()
        found += _by_value(column.removeprefix(SLICE), ["none" if value is None else value for value in values], *right)
    return found


def _by_value(group: str, values: Sequence[str], first: Mask, second: Mask) -> Iterator[Slice]:
    """The commonest values; nothing where there is just one."""
    counts = Counter(values)
    if len(counts) < 2:
        return
    order = (
        ("head", "torso", "tail") if group == "frequency" else [value for value, _ in counts.most_common(MOST_VALUES)]
    )
    column = np.array(values, object)
    for value in order:
        rows = column == value
        if rows.any():
            yield _slice(group, value, first[rows], second[rows])


def _slice(group: str, name: str, first: Mask, second: Mask) -> Slice:
    return Slice(group, len(first), accuracy_difference(name, first, second), mcnemar(first, second).p_value)


def by_category(first: Predictions, second: Predictions) -> list[CategoryChange]:
    """Every true category, the one that the second model gained most in first."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(first.true):
        for path in row:
            places.setdefault(path, []).append(place)
    answers = [list(map(set, one.given)) for one in (first, second)]
    right = {path: [np.array([path in given[i] for i in rows]) for given in answers] for path, rows in places.items()}
    p_values: Array = np.array([mcnemar(*pair).p_value for pair in right.values()])
    corrected = dict(zip(right, scipy.stats.false_discovery_control(p_values), strict=True))
    texts = first.table.column("text").to_pylist()
    true = first.true

    def example(row: int) -> Example:
        return Example(texts[row], *(" + ".join(sorted(rows[row])) for rows in (true, *answers)))

    changes = []
    for path, (one, other) in right.items():
        # Of what changed, that which shows the direction.
        shown = (other & ~one) if other.sum() >= one.sum() else (one & ~other)
        examples = tuple(example(row) for row in np.array(places[path])[shown][:EXAMPLES])
        changes.append(
            CategoryChange(path, len(one), int(one.sum()), int(other.sum()), float(corrected[path]), examples)
        )
    return sorted(changes, key=lambda change: (-change.by, change.category))


def _depth(rows: Sequence[Sequence[str]] | Sequence[object]) -> int:
    return max((path.count(SEPARATOR) + 1 for row in rows for path in row), default=1)  # type: ignore[attr-defined]
