"""Which products people are asked about."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from cataloger.curation import candidates
from cataloger.curation.candidates import find, unsure
from cataloger.curation.choosing import choose
from cataloger.errors import CatalogError


def test_those_that_stand_for_many_come_first_and_none_twice() -> None:
    texts = [f"red apple {i % 3}" for i in range(30)] + [f"blue pear {i % 2}" for i in range(10)] + ["quite alone"]
    chosen = choose(pa.array(texts), np.ones(len(texts)), 2)
    assert [texts[place].split()[0] for place in chosen] == ["red", "blue"]
    many = choose(pa.array(texts), np.ones(len(texts)), 100)
    assert len({texts[place] for place in many}) == len(many) == 6, "one of each text, and nothing is left to tell"


def test_what_is_worth_more_comes_first() -> None:
    texts = pa.array(["red apple", "blue pear", "green plum"])
    assert choose(texts, np.array([1.0, 3.0, 2.0]), 3).tolist() == [1, 2, 0]
    assert choose(texts, np.array([1.0, 0.0, 2.0]), 3).tolist() == [2, 0]


def test_the_lazy_choice_is_the_greedy_one() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "apple", "pear", "tin", "box", "tea", "cup", "big", "old"])
    texts = pa.array([" ".join(rng.choice(words, 3)) for _ in range(60)])
    worth = rng.random(60)
    from cataloger.data.ngrams import ngrams
    from cataloger.model.words import Vocabulary

    counts = ngrams(texts)
    matrix = Vocabulary.of(counts, 2).weigh(counts).toarray()
    likeness = (matrix @ matrix.T) ** 2
    np.fill_diagonal(likeness, 1.0)
    covered, expected = np.zeros(60), []
    for _ in range(10):
        gains = (worth * np.maximum(0, likeness - covered)).sum(axis=1)
        expected.append(int(gains.argmax()))
        covered = np.maximum(covered, likeness[expected[-1]])
    assert choose(texts, worth, 10).tolist() == expected


def labels_of(confidence: list[float], second: list[float | None], source: list[str] | None = None) -> pa.Table:
    others = [[] if one is None else [{"category": "B", "confidence": one}] for one in second]
    table = pa.table(
        {
            "id": [f"p{number}" for number in range(len(confidence))],
            "category": ["A"] * len(confidence),
            "confidence": pa.array(confidence, pa.float32()),
            "alternatives": pa.array(
                others, pa.list_(pa.struct([("category", pa.string()), ("confidence", pa.float32())]))
            ),
            "needs_review": [True] * len(confidence),
            "text_hash": [f"t{number // 2}" for number in range(len(confidence))],
        }
    )
    return table.append_column("source", pa.array(source)) if source else table


def test_how_unsure_a_label_is() -> None:
    found = unsure(labels_of([0.5, 0.9, 0.4, 1.0], [0.5, None, 0.1, 0.0]))
    assert found == pytest.approx([1.0, 0.1, 0.7, 0.0], abs=1e-6)


def pairs(labels: pa.Table, **columns: list[object]) -> Iterator[tuple[pa.Table, pa.Table]]:
    yield labels, pa.table({"id": labels.column("id"), **columns})


def test_one_candidate_for_each_text_with_the_weight_of_all() -> None:
    labels = labels_of([0.5, 0.5, 0.75, 0.75], [0.5, 0.5, 0.25, 0.25])
    found = find(pairs(labels, title=list("abcd"), views=[1, 2, 10, None]), ["title"], "views", 10)
    rows = {row["id"]: row for row in found.rows.to_pylist()}
    assert found.seen == 4
    assert {name: (row["worth"], row["weight"], row["alike"]) for name, row in rows.items()} == {
        "p0": (3.0, 3.0, 2),
        "p2": (5.0, 10.0, 1),
    }
    assert list(rows) == ["p2", "p0"]


def test_what_a_person_decided_is_not_asked_again() -> None:
    labels = labels_of([0.5, 0.5, 0.5], [0.4, 0.4, 0.4], ["pin", "model", "rule:x"])
    assert find(pairs(labels, title=list("abc")), ["title"], None, 10).rows.column("id").to_pylist() == ["p1", "p2"]


def test_of_many_the_most_worthy_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "LEAST", 3)
    monkeypatch.setattr(candidates, "PER_QUESTION", 1)
    confidence = [0.5 + number / 40 for number in range(20)]

    def parts() -> Iterator[tuple[pa.Table, pa.Table]]:
        labels = labels_of(confidence, [None] * 20)
        labels = labels.set_column(labels.column_names.index("text_hash"), "text_hash", labels.column("id"))
        for start in range(0, 20, 4):
            yield labels.slice(start, 4), pa.table({"id": labels.column("id").slice(start, 4)})

    assert find(parts(), [], None, 1).rows.column("id").to_pylist() == ["p0", "p1", "p2"]


def test_a_weight_below_nothing_is_refused() -> None:
    with pytest.raises(CatalogError, match="--weight-column views: has values below 0"):
        find(pairs(labels_of([0.5], [0.4]), views=[-1.0]), [], "views", 1)


def test_labels_of_several_categories_are_asked_about_as_lists() -> None:
    from cataloger.curation.queue import questions

    pairs_of = pa.list_(pa.struct([("category", pa.string()), ("confidence", pa.float32())]))
    labels = pa.table(
        {
            "id": [7, 8],
            "categories": [["A", "B"], []],
            "confidences": pa.array([[0.9, 0.7], []], pa.list_(pa.float32())),
            "confidence": pa.array([0.6, 0.5], pa.float32()),
            "alternatives": pa.array([[{"category": "C", "confidence": 0.2}], []], pairs_of),
            "needs_review": [True, True],
            "text_hash": ["x", "y"],
        }
    )
    found = find(pairs(labels, title=["red lamp", "a pot"]), ["title"], None, 10)
    asked = {one.id: one for one in questions(found.rows, ["title"], None)}
    assert [path for path, _ in asked["7"].categories] == ["A", "B"]
    assert asked["8"].categories == ()
    assert asked["7"].text == "title: red lamp"


def test_products_without_an_id_are_not_asked_about_and_others_once() -> None:
    labels = labels_of([0.5] * 4, [0.4] * 4)
    labels = labels.set_column(0, "id", pa.array([None, "a", "a", "b"]))
    labels = labels.set_column(labels.column_names.index("text_hash"), "text_hash", pa.array(list("wxyz")))
    assert sorted(find(pairs(labels, title=list("abcd")), ["title"], None, 10).rows.column("id").to_pylist()) == [
        "a",
        "b",
    ]


def test_columns_of_the_catalog_may_be_called_as_those_of_labels() -> None:
    from cataloger.curation.candidates import products_of

    labels = labels_of([0.5], [0.4])
    found = find(pairs(labels, category=["theirs"], weight=["1 kg"]), ["category", "weight"], None, 1)
    assert products_of(found.rows).to_pylist() == [{"id": "p0", "category": "theirs", "weight": "1 kg"}]


def test_how_large_weights_are_does_not_matter() -> None:
    texts = pa.array(["red desk lamp", "red  desk lamp", "blue pot", "green pan"])
    chosen = [choose(texts, np.array([0.9, 0.8, 0.7, 0.6]) * scale, 4).tolist() for scale in (1e-8, 1.0, 1e6)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(chosen[0]) == 3
