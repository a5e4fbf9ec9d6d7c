"""Scores of numbers are those of names, by the plain way that needs a Python object for every row."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cataloger.evaluation.predictions import About, Predictions
from cataloger.evaluation.report import _confused, classification_report
from cataloger.heads import metrics
from cataloger.heads.sets import Sets, exact
from cataloger.taxonomy import SEPARATOR, prefix

PATHS = ["A", "A > x", "A > y", "B > z", "B > z > w", "C"]
Rows = list[list[str]]
LISTS = pa.list_(pa.string())


def with_ancestors(paths: list[str]) -> set[str]:
    return {prefix(path, depth) for path in paths for depth in range(1, path.count(SEPARATOR) + 2)}


def plain_scores(true: Rows, answered: Rows) -> tuple[float, ...]:
    """As `metrics.Scores` has them."""
    pairs = [(set(a), set(b)) for a, b in zip(true, answered, strict=True)]
    counts = {
        path: [sum(path in side for side in sides) for sides in ((a for a, _ in pairs), (b for _, b in pairs))]
        + [sum(path in a & b for a, b in pairs)]
        for path in sorted({path for a, b in pairs for path in a | b})
    }
    left, right, both = np.array(list(counts.values())).T
    f1 = 2 * both / (left + right)
    by_row = [2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs]
    return (
        np.mean([a == b for a, b in pairs]),
        (left * f1).sum() / max(1, left.sum()),
        f1.mean(),
        2 * both.sum() / max(1, left.sum() + right.sum()),
        np.mean(by_row),
    )


@st.composite
def pairs_of_rows(draw: st.DrawFn) -> tuple[Rows, Rows]:
    row = st.lists(st.sampled_from(PATHS), max_size=3, unique=True) if draw(st.booleans()) else st.sampled_from(PATHS)
    pairs = draw(st.lists(st.tuples(row, row), min_size=1, max_size=30))
    true, answered = ([one if isinstance(one, list) else [one] for one in side] for side in zip(*pairs, strict=True))
    true[0] = true[0] or ["A > x"]
    return true, answered


@settings(max_examples=150, deadline=None)
@given(pairs_of_rows())
def test_scores_are_those_of_plain_sets(rows: tuple[Rows, Rows]) -> None:
    true, answered = rows
    sides = Sets.of(pa.array(true, LISTS), pa.array(answered, LISTS))
    assert [sides[0].of_row(i) for i in range(len(true))] == [sorted(row) for row in true]
    assert exact(*sides).tolist() == [set(a) == set(b) for a, b in zip(true, answered, strict=True)]
    found = metrics.set_scores(*sides)
    assert tuple(vars(found).values()) == plain_scores(true, answered), "to the last bit"
    depth = max(path.count(SEPARATOR) + 1 for row in (*true, *answered) for path in row)
    by_level = metrics.level_scores(*sides)
    assert len(by_level) == depth
    for level, scores in enumerate(by_level, 1):
        above = [[list({prefix(path, level) for path in row}) for row in side] for side in rows]
        assert tuple(vars(scores).values()) == plain_scores(*above)
    steps = [(with_ancestors(a), with_ancestors(b)) for a, b in zip(true, answered, strict=True)]
    shared, total = sum(len(a & b) for a, b in steps), sum(len(a) + len(b) for a, b in steps)
    assert metrics.hierarchical_f1(*sides) == 2 * shared / total
    confused = Counter(
        (missed, wrong)
        for a, b in zip(true, answered, strict=True)
        for missed in set(a) - set(b)
        for wrong in set(b) - set(a)
    )
    assert {(missed, wrong): count for missed, wrong, count in _confused(*sides)} == dict(confused.most_common(99))
    report = classification_report(*sides)
    assert dict(zip(report["category"], report["rows"], strict=True)) == {
        path: sum(path in row for row in true) for row in (*true, *answered) for path in row
    }


@pytest.mark.parametrize("encode", [False, True])
def test_columns_in_many_pieces_have_one_list_of_names(encode: bool) -> None:
    column = pa.chunked_array([["B", "A"], ["C"], ["A", "B"]])
    column = pa.chunked_array([chunk.dictionary_encode() for chunk in column.chunks]) if encode else column
    one, other = Sets.of(column, pa.array(["D"] * 5))
    assert one.names == other.names == ["A", "B", "C", "D"]
    assert one.rows.indices.tolist() == [1, 0, 2, 0, 1]


def test_categories_as_written_become_normalised_ones_of_the_rows_that_have_any() -> None:
    about = About("m", "c", "f", "id", "category_path", "all", ("A", "B"), 1.0)
    names = {" A": "A", "A": "A", "B": "B"}
    rows = {name: np.arange(5) for name in ("row", "id", "confidence")} | {"text": list("abcde")}
    others = {"needs_review": [False] * 5, "seen": pa.nulls(5, pa.bool_())}
    one = {"written": [" A", "", None, "B", "A"], "category": ["A"] * 5}
    found = Predictions.of(pa.table(rows | one | others), names, about).table
    assert found.column("row").to_pylist() == [0, 3, 4]
    assert found.column("true_category").to_pylist() == ["A", "B", "A"]
    written = pa.array([["B", " A", "A", None], [], None, [""], ["B"]], LISTS)
    many = {"written": written, "categories": pa.array([["A"]] * 5, LISTS)}
    found = Predictions.of(pa.table(rows | many | others), names, about)
    assert found.table.column("row").to_pylist() == [0, 4]
    assert found.table.column("true_categories").to_pylist() == [["A", "B"], ["B"]]
    assert Predictions.from_parquet(found.to_parquet()).table.equals(found.table.combine_chunks())
