"""Pin before rule before model: held to a plain function of one product, whatever rules and pins there are."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cataloger.curation.conditions import Contains
from cataloger.curation.decisions import Decisions
from cataloger.curation.outcome import MATCHED, ORDER, PIN
from cataloger.curation.rules import Rule
from cataloger.heads.columns import by_the_model, columns_of
from cataloger.spec import MANY_CATEGORIES, Spec

CATEGORIES = ("A", "B > C", "B > D > E", "F")
NODES = (*CATEGORIES, "B", "B > D")
ONE = Spec(CATEGORIES, ("title",), 12, "mean", "none", thresholds=(0.4, 0.4, 0.4))
MANY = Spec(CATEGORIES, ("title",), 12, "mean", "none", head=MANY_CATEGORIES, thresholds=(0.4,))

rules = st.lists(
    st.tuples(
        st.sampled_from(["category", "forbid", "review", "reject"]), st.sampled_from(NODES), st.sampled_from("abc")
    ),
    max_size=5,
).map(
    lambda said: tuple(
        Rule(
            f"r{number}",
            Contains("title", letter),
            action,
            (path,) if action in ("category", "forbid") else (),
            "why" if action == "reject" else "",
        )  # type: ignore[arg-type]
        for number, (action, path, letter) in enumerate(said)
    )
)
products = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "ab", "abc", "x", "bc"]),  # the title
        st.one_of(st.none(), st.sampled_from(NODES)),  # a pin
        st.one_of(st.none(), st.permutations(range(4))),  # the model's order of categories, or a reject
    ),
    min_size=1,
    max_size=8,
)
SCORES = (0.5, 0.25, 0.125, 0.0625)


def labels_of(rows: list[tuple[str, str | None, list[int] | None]]) -> tuple[pa.Table, pa.Table, pa.Table]:
    """(labels, rejects, all rows) as reading and the model leave them."""
    good = [row for row in rows if row[2] is not None]
    levels = []
    for _, _, order in good:
        path = CATEGORIES[order[0]]  # type: ignore[index]
        levels.append([0.5 + 0.1 * (2 - depth) if depth <= path.count(">") else float("nan") for depth in range(3)])
    answers = pa.table(
        {
            "label": pa.array([order[0] for _, _, order in good], pa.int32()),  # type: ignore[index]
            "confidence": pa.array([SCORES[0]] * len(good), pa.float32()),
            "levels": pa.array(levels, pa.list_(pa.float32())),
            "alternatives": pa.array([order[1:3] for _, _, order in good], pa.list_(pa.int32())),  # type: ignore[index]
            "alternative_confidence": pa.array([list(SCORES[1:3])] * len(good), pa.list_(pa.float32())),
        }
    )
    labels = pa.table({"id": pa.array([number for number, row in enumerate(rows) if row[2] is not None], pa.int64())})
    for name, column in columns_of(ONE).to_labels(answers).items():
        labels = labels.append_column(name, column)
    labels = labels.append_column("text_hash", pa.array([row[0] for row in good], pa.string()))
    missing = [number for number, row in enumerate(rows) if row[2] is None]
    rejects = pa.table(
        {"id": pa.array(missing, pa.int64()), "reason": pa.array(["no text"] * len(missing), pa.string())}
    )
    return labels, rejects, pa.table({"title": pa.array([row[0] for row in rows], pa.string())})


def decide(decisions: Decisions, rows: Any, spec: Spec = ONE) -> tuple[pa.Table, pa.Table, Any]:
    labels, rejects, table = labels_of(rows)
    marks = pa.table(decisions.mark(table, pa.array(np.arange(len(rows)))))
    marks = marks.append_column(PIN, pa.array([row[1] for row in rows], pa.string()))
    for name in (ORDER, PIN, MATCHED):
        column = marks.column(name)
        labels = labels.append_column(name, column.take(labels.column("id")))
        rejects = rejects.append_column(name, column.take(rejects.column("id")))
    return decisions.decide(labels, rejects, columns_of(spec))


def expected(rule: tuple[Rule, ...], title: str, pin: str | None, order: list[int] | None) -> dict[str, Any]:
    """Of one product, as docs/rules.md says it."""
    if pin:
        return {"category": pin, "source": "pin", "needs_review": False}
    matching = [one for one in rule if one.when.text in title]  # type: ignore[attr-defined]
    forbids = [one for one in matching if one.action == "forbid"]

    def forbidden(path: str) -> bool:
        return any(one.covers(path) for one in forbids)

    review = [one for one in matching if one.action == "review"]
    for one in matching:
        if one.action == "reject":
            return {"reason": f"rule {one.name}: why"}
        if one.action == "category" and not forbidden(one.paths[0]):
            return {"category": one.paths[0], "source": f"rule:{one.name}", "needs_review": bool(review)}
    if order is None:
        return {"reason": "no text"}
    names = [CATEGORIES[number] for number in order[:3]]
    if forbidden(names[0]):
        first = next(one for one in forbids if one.covers(names[0]))
        free = [name for name in names[1:] if not forbidden(name)]
        if not free:
            return {"reason": f"rule {first.name}: forbids all that the model has for this product"}
        return {"category": free[0], "source": f"rule:{first.name}", "needs_review": True}
    return {
        "category": names[0],
        "source": f"rule:{review[0].name}" if review else "model",
        "needs_review": bool(review),
    }


@settings(max_examples=300)
@given(rules, products)
def test_every_product_is_decided_as_it_would_be_alone(rule: tuple[Rule, ...], rows: Any) -> None:
    decisions = Decisions(rule, None)
    labels, rejects, counts = decide(decisions, rows)
    assert len(labels) + len(rejects) == len(rows)
    found = {label["id"]: label for label in labels.to_pylist()} | {row["id"]: row for row in rejects.to_pylist()}
    for number, row in enumerate(rows):
        wanted = expected(rule, *row)
        assert {name: found[number][name] for name in wanted} == wanted
    assert labels.column("id").to_pylist() == sorted(labels.column("id").to_pylist()), "in the order of the rows"
    # Nothing that the model said is lost: what is carried over is what it would publish alone.
    own, _, _ = labels_of(rows)
    kept = [number in set(labels.column("id").to_pylist()) for number in own.column("id").to_pylist()]
    assert (
        by_the_model(labels).select(own.column_names).to_pylist() == own.filter(pa.array(kept, pa.bool_())).to_pylist()
    )
    said = [label["source"] for label in labels.to_pylist()]
    said += [row["reason"].split(":")[0].replace(" ", ":") for row in rejects.to_pylist()]
    for one in rule:
        if one.action != "review":
            assert counts[f"rule:{one.name}"].get("decided", 0) == said.count(f"rule:{one.name}")


def test_what_a_decision_publishes() -> None:
    rule = (
        Rule("b", Contains("title", "b"), "category", ("B",)),
        Rule("no-b", Contains("title", "c"), "forbid", ("B",)),
        Rule("look", Contains("title", "x"), "review"),
    )
    rows = [("", "F", [0, 1, 2, 3]), ("b", None, [1, 0, 2, 3]), ("c", None, [1, 2, 0, 3]), ("x", None, [0, 1, 2, 3])]
    labels, rejects, counts = decide(Decisions(rule, None), rows)
    assert not len(rejects)
    pinned, ruled, forbidden, marked = labels.to_pylist()
    assert pinned["model"]["category"] == "A"
    assert {name: pinned[name] for name in list(pinned)[1:7]} == {
        "category": "F",
        "confidence": 1.0,
        "level_confidences": [1.0],
        "alternatives": [],
        "trusted_category": "F",
        "needs_review": False,
    }
    assert (ruled["category"], ruled["model"]["category"], ruled["level_confidences"]) == ("B", "B > C", [1.0])
    # B > C and all that is below B is out of the question: .7 of the model's belief, and A has .125 of the rest.
    assert forbidden["category"] == "A"
    assert forbidden["confidence"] == pytest.approx(0.125 / (1 - 0.75))
    assert (forbidden["trusted_category"], forbidden["alternatives"]) == (None, [])
    assert (marked["category"], marked["trusted_category"], marked["source"]) == ("A", "A", "rule:look")
    assert not marked["model"]["needs_review"]
    assert counts["pin"] == {"decided": 1, "agreed": 0, "conflicts": 1}
    assert counts["rule:b"] == {"matched": 1, "decided": 1, "agreed": 0, "conflicts": 1}
    assert counts["rule:no-b"] == {"matched": 1, "decided": 1, "conflicts": 1, "rejected": 0}
    assert counts["rule:look"] == {"matched": 1, "decided": 1}


def test_of_several_categories_what_is_forbidden_is_left_out() -> None:
    answers = pa.table(
        {
            "labels": pa.array([[0, 1], [1], [2], []], pa.list_(pa.int32())),
            "probabilities": pa.array([[0.9, 0.8], [0.7], [0.6], []], pa.list_(pa.float32())),
            "confidence": pa.array([0.8, 0.7, 0.6, 0.5], pa.float32()),
            "alternatives": pa.array([[2], [0, 2], [3], [1]], pa.list_(pa.int32())),
            "alternative_confidence": pa.array([[0.1], [0.2, 0.1], [0.1], [0.2]], pa.list_(pa.float32())),
        }
    )
    labels = pa.table({"id": [0, 1, 2, 3]})
    for name, column in columns_of(MANY).to_labels(answers).items():
        labels = labels.append_column(name, column)
    labels = labels.append_column("text_hash", pa.array(list("abcd")))
    rule = (
        Rule("no-b", Contains("title", "n"), "forbid", ("B",)),
        Rule("two", Contains("title", "t"), "category", ("F", "A")),
    )
    decisions = Decisions(rule, None)
    marks = decisions.mark(pa.table({"title": ["n", "n", "", "t"]}), pa.array([0, 1, 2, 3]))
    pins = pa.array([None, None, ["A", "F"], None], pa.list_(pa.string()))
    for name, column in {**marks, PIN: pins}.items():
        labels = labels.append_column(name, column)
    rejects = labels.slice(0, 0).select(["id", ORDER, PIN, MATCHED]).append_column("reason", pa.array([], pa.string()))
    found, rejects, counts = decisions.decide(labels, rejects, columns_of(MANY))
    rows = found.to_pylist()
    assert [row["categories"] for row in rows] == [["A"], ["A", "F"], ["F", "A"]]
    assert [row["confidence"] for row in rows] == pytest.approx([0.8, 1.0, 1.0])
    assert [row["needs_review"] for row in rows] == [True, False, False]
    assert [row["source"] for row in rows] == ["rule:no-b", "pin", "rule:two"]
    assert rejects.to_pylist() == [{"id": 1, "reason": "rule no-b: forbids all that the model has for this product"}]
    assert rows[0]["model"]["categories"] == ["A", "B > C"]
    assert counts["pin"]["conflicts"] == counts["rule:two"]["conflicts"] == 1
    assert by_the_model(found).column("categories").to_pylist() == [["A", "B > C"], ["B > D > E"], []]
