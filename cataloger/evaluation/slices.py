"""Where two models differ: by level of the tree, by how common a category is, by language, by category."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.stats

from cataloger.evaluation.predictions import SLICE, Predictions, sides
from cataloger.evaluation.significance import Array, Difference, Mask, McNemar, accuracy_difference, mcnemar
from cataloger.heads.sets import Sets, exact, levels

# Categories by rows, the largest first: half of all rows is the head, what comes after nine tenths the tail.
HEAD, TORSO = 0.5, 0.9
FREQUENCIES = ("head", "torso", "tail")
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
    """Category that a row has → head, torso or tail."""
    rows = {name: count for name, count in zip(true.names, true.counts.tolist(), strict=True) if count}
    total, before, groups = sum(rows.values()), 0, {}
    for path, count in sorted(rows.items(), key=lambda pair: (-pair[1], pair[0])):
        groups[path] = "head" if before < HEAD * total else "torso" if before < TORSO * total else "tail"
        before += count
    return groups


def scripts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The writing system of each text."""
    names = ["Latin", *dict.fromkeys(_system(script) for script in SCRIPTS)]
    chunks = []
    for chunk in texts.chunks:
        found, strings = np.zeros(len(chunk), np.int8), chunk.cast(pa.large_string())
        for script in reversed(SCRIPTS):
            has = pc.fill_null(pc.match_substring_regex(strings, rf"\p{{{script}}}"), False)
            found[has.to_numpy(zero_copy_only=False)] = names.index(_system(script))
        chunks.append(pa.DictionaryArray.from_arrays(pa.array(found), pa.array(names)))
    return pa.chunked_array(chunks, pa.dictionary(pa.int8(), pa.string()))


def _system(script: str) -> str:
    return "Japanese" if script in ("Hiragana", "Katakana") else script


def slices(first: Predictions, second: Predictions) -> list[Slice]:
    """Both models' accuracy at every level, on head, torso and tail, by writing system, by what became of the picture where one of
    them sees, and by each slice column."""
    true, *answers = sides(first, second)
    found = []
    for depth in range(1, max(map(levels, true.names), default=1)):
        right = [exact(true.at_level(depth), given.at_level(depth)) for given in answers]
        found.append(slice_of("level", f"level {depth}", *right))
    right = [exact(true, given) for given in answers]
    found.append(slice_of("level", "whole category", *right))
    groups = frequency_groups(true)
    ranks = np.array([FREQUENCIES.index(groups.get(name, "head")) for name in true.names], np.int8)
    rarest = np.zeros(len(true), np.int8)
    np.maximum.at(rarest, np.repeat(np.arange(len(true)), np.diff(true.rows.indptr)), ranks[true.rows.indices])
    frequency = pa.DictionaryArray.from_arrays(pa.array(rarest), pa.array(FREQUENCIES))
    found += _by_value("frequency", pa.chunked_array([frequency]), *right)
    found += _by_value("writing system", scripts(first.table.column("text")), *right)
    of_either = {name: one.table.column(name) for one in (second, first) for name in one.slices}
    for name, values in of_either.items():
        found += _by_value(name.removeprefix(SLICE), values, *right)
    return found


def _by_value(group: str, values: pa.ChunkedArray, first: Mask, second: Mask) -> Iterator[Slice]:
    """The commonest values; nothing where there is just one."""
    values = values if pa.types.is_dictionary(values.type) else values.dictionary_encode(null_encoding="encode")
    encoded = values.unify_dictionaries().combine_chunks()
    names = ["none" if name is None else name for name in encoded.dictionary.to_pylist()]
    places = encoded.indices.to_numpy()
    counts = np.bincount(places, minlength=len(names))
    if np.count_nonzero(counts) < 2:
        return
    order = range(len(names)) if group == "frequency" else np.argsort(-counts, kind="stable")[:MOST_VALUES].tolist()
    for place in order:
        if counts[place]:
            rows = places == place
            yield slice_of(group, names[place], first[rows], second[rows])


def slice_of(group: str, name: str, first: Mask, second: Mask) -> Slice:
    return Slice(group, len(first), accuracy_difference(name, first, second), mcnemar(first, second).p_value)


def by_category(first: Predictions, second: Predictions) -> list[CategoryChange]:
    """Every true category, the one that the second model gained most in first."""
    true, one, other = sides(first, second)
    by_one, by_other = (true.rows.multiply(given.rows) for given in (one, other))
    by_both = by_one.multiply(by_other)
    # By category: whose rows only one of them won, in the order of the rows.
    lost, won = (by_one - by_both).tocsc(), (by_other - by_both).tocsc()
    counts = [np.bincount(matrix.indices, minlength=len(true.names)) for matrix in (by_one, by_other)]
    rows_of = true.counts
    present = np.flatnonzero(rows_of)
    changed = [np.diff(matrix.indptr) for matrix in (lost, won)]
    p_values: Array = np.array([McNemar(int(changed[0][i]), int(changed[1][i])).p_value for i in present])
    corrected = scipy.stats.false_discovery_control(p_values)
    texts = first.table.column("text")

    def example(row: int) -> Example:
        return Example(texts[row].as_py(), *(" + ".join(rows.of_row(row)) for rows in (true, one, other)))

    changes = []
    for place, p_value in zip(present.tolist(), corrected.tolist(), strict=True):
        before, after = (int(count[place]) for count in counts)
        # Of what changed, that which shows the direction.
        shown = won if after >= before else lost
        rows = np.sort(shown.indices[shown.indptr[place] : shown.indptr[place + 1]])[:EXAMPLES]
        examples = tuple(example(row) for row in rows.tolist())
        changes.append(CategoryChange(true.names[place], int(rows_of[place]), before, after, p_value, examples))
    return sorted(changes, key=lambda change: (-change.by, change.category))
