import numpy as np
import pyarrow as pa
import pytest

from cataloger.evaluation.comparison import compare_predictions
from cataloger.evaluation.predictions import About, Predictions
from cataloger.evaluation.slices import by_category, frequency_groups, scripts, slices
from cataloger.heads.sets import Sets

TRUE = ["A > x"] * 50 + ["A > y"] * 35 + ["B > z"] * 10 + ["C"] * 5
ABOUT = About("m", "c", "f", "id", "category_path", "all", ("A > x", "A > y", "B > z", "C"), 1.0)


def said(given: list[str], about: About = ABOUT) -> Predictions:
    rows = len(given)
    columns = {
        "row": np.arange(rows),
        "id": np.arange(rows),
        "text": [("茶" if i % 2 else "tea") + f" {i}" for i in range(rows)],
        "slice.language": pa.array(["zh" if i % 2 else None for i in range(rows)]),
        "true_category": TRUE[:rows],
        "category": given,
        "confidence": np.linspace(0.5, 1, rows),
        "needs_review": [False] * rows,
    }
    return Predictions(pa.table(columns), about)


def test_head_torso_and_tail_by_hand() -> None:
    assert frequency_groups(*Sets.of(pa.array(TRUE))) == {
        "A > x": "head",
        "A > y": "torso",
        "B > z": "torso",
        "C": "tail",
    }


def test_slices_by_hand() -> None:
    first = said(["A > y"] * 50 + TRUE[50:])  # wrong below the top level for all of x
    second = said(TRUE[:95] + ["A > x"] * 5)  # wrong on all of the tail
    found = {(one.group, one.accuracy.name): one for one in slices(first, second)}
    accuracies = {name: (one.rows, one.accuracy.first, one.accuracy.second) for name, one in found.items()}
    assert accuracies == {
        ("level", "level 1"): (100, 1.0, 0.95),
        ("level", "whole category"): (100, 0.5, 0.95),
        ("frequency", "head"): (50, 0.0, 1.0),
        ("frequency", "torso"): (45, 1.0, 1.0),
        ("frequency", "tail"): (5, 1.0, 0.0),
        ("writing system", "Latin"): (50, 0.5, pytest.approx(0.96)),
        ("writing system", "Han"): (50, 0.5, pytest.approx(0.94)),
        ("language", "none"): (50, 0.5, pytest.approx(0.96)),
        ("language", "zh"): (50, 0.5, pytest.approx(0.94)),
    }
    assert found["frequency", "head"].accuracy.better
    assert found["frequency", "tail"].accuracy.worse
    assert found["frequency", "head"].p_value < 1e-9


def test_what_one_of_the_models_saw_is_a_slice_whichever_it_is() -> None:
    reads, sees = said(["A > y"] * 50 + TRUE[50:]), said(TRUE)
    status = pa.array(["ok"] * 60 + ["missing"] * 40)
    sees = Predictions(sees.table.append_column("slice.image_status", status), sees.about)
    for pair in ((reads, sees), (sees, reads)):
        found = {one.accuracy.name: one for one in slices(*pair) if one.group == "image_status"}
        assert {name: one.rows for name, one in found.items()} == {"ok": 60, "missing": 40}
        assert abs(found["ok"].accuracy.by) == pytest.approx(50 / 60)
        assert found["missing"].accuracy.by == 0


def test_categories_that_won_and_lost_with_examples() -> None:
    changes = by_category(said(["A > y"] * 50 + TRUE[50:]), said(TRUE[:95] + ["A > x"] * 5))
    assert [(one.category, one.by) for one in changes] == [("A > x", 50), ("A > y", 0), ("B > z", 0), ("C", -5)]
    assert changes[0].p_value < 1e-9
    assert changes[1].p_value == 1.0
    (example, *_) = changes[-1].examples
    assert (example.true, example.first, example.second) == ("C", "C", "A > x")


def test_writing_systems() -> None:
    texts = pa.chunked_array([["tea", "茶", "чай", "お茶", "차", None, "τσάι 12", "Tee 茶"]])
    assert scripts(texts).to_pylist() == ["Latin", "Han", "Cyrillic", "Japanese", "Hangul", "Latin", "Greek", "Han"]


def test_only_what_both_models_know_is_compared() -> None:
    other = About("n", "c", "f", "id", "category_path", "all", ("A > x", "A > y", "C", "D"), 1.0)
    pair = compare_predictions(said(TRUE), said(TRUE, other), ("one", "two"))
    assert pair.rows == 90
    assert pair.left_out == ("1 categories are known to one only, 1 to two only: 10 rows of these are left out",)
    short = said(TRUE[:95])
    pair = compare_predictions(said(TRUE), short, ("one", "two"))
    assert (pair.rows, pair.left_out) == (95, ("5 rows have an answer of one model only",))
