"""Tags out of logits, by hand; what holds for every head is in test_base.py."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.data.batching import Ragged
from cataloger.heads.base import head_of
from cataloger.heads.tag_columns import FOUND, PUBLISHED, PublishedTags, Tagged
from cataloger.heads.tags import Tags
from cataloger.spec import TAGS, Spec

SPEC = Spec(("Brand", "Size"), ("title", "brand"), 64, "mean", "", head=TAGS, label_column="tags")
O, B, I, B2, I2 = range(5)  # noqa: E741  # as the literature has them


def logits_of(*rows: list[int], sure: float = 5.0) -> torch.Tensor:
    """Each row as classes of its words."""
    found = torch.zeros(len(rows), max(map(len, rows)), 5)
    for row, classes in enumerate(rows):
        for word, label in enumerate(classes):
            found[row, word, label] = sure
    return found.flatten(1)


def stretches(*rows: list[int]) -> list[list[tuple[int, int, int]]]:
    head = Tags(SPEC, "cpu")
    table = head.join([head.read(logits_of(*rows), 0)], np.arange(len(rows)))
    return [[(tag["name"], tag["first"], tag["last"]) for tag in row] for row in table.column("tags").to_pylist()]


def test_a_tag_goes_on_until_another_one_begins_or_there_is_none() -> None:
    assert stretches([B, I, O, B2, B2, I2]) == [[(0, 0, 1), (1, 3, 3), (1, 4, 5)]]
    assert stretches([I, I, I2, O]) == [[(0, 0, 1), (1, 2, 2)]], "one that only goes on begins as well"
    assert stretches([O, B], [I, O]) == [[(0, 1, 1)], [(0, 0, 0)]], "none goes on in the next row"
    assert stretches([O, O]) == [[]]


def test_a_name_has_the_weight_of_both_of_its_classes() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.3, 0.0, 0.0]]))
    name, begins, probability = Tags(SPEC, "cpu").read(logits, 0)
    assert (name.item(), begins.item()) == (0, False)
    assert probability.exp().item() == pytest.approx(0.6)


def test_rows_come_back_in_their_order_from_batches_of_any_width() -> None:
    head = Tags(SPEC, "cpu")
    batches = [head.read(logits_of([B, I, O]), 0), head.read(logits_of([O], [B2]), 0)]
    table = head.join(batches, np.array([2, 0, 1]))
    assert [[tag["name"] for tag in row] for row in table.column("tags").to_pylist()] == [[1], [0], []]


def test_confidence_is_the_geometric_mean_of_the_words() -> None:
    logits = torch.log(torch.tensor([[[0.1, 0.9, 0, 0, 0], [0.6, 0, 0.4, 0, 0]]]) + 1e-30)
    logits[0, 1, O] = -9.0  # so that the tag goes on: 0.4 of what is left
    head = Tags(SPEC, "cpu")
    (tag,) = head.join([head.read(logits.flatten(1), 0)], np.arange(1)).column("tags")[0].as_py()
    second = 0.4 / (0.4 + np.exp(-9.0))
    assert tag["confidence"] == pytest.approx((0.9 * second) ** 0.5, rel=1e-5)


def test_what_nobody_knows_counts_on_neither_side() -> None:
    head = head_of(SPEC, "cpu")
    true = Ragged(np.array([B, I, -1, -1, O, B2], np.int32), np.array([0, 6]))
    judged = head.judge(logits_of([B, I, B2, O, B, O]), true)
    assert judged["given"].tolist() == [0, 0], "the tag at the third word is not judged"
    assert judged["right"].tolist() == [True, False]
    assert judged["true"].tolist() == [0, 1]
    metrics, _ = head.fit(judged, 0.9)
    assert metrics["val_micro_f1"] == pytest.approx(2 * 1 / 4)
    assert metrics["val_accuracy"] == 0.0


def test_loss_leaves_out_what_nobody_knows_and_what_is_not_there() -> None:
    head = head_of(SPEC, "cpu")
    logits = logits_of([B, O, O], [O])
    known = head.targets(Ragged(np.array([B, -1, O, O], np.int32), np.array([0, 3, 4])))
    one = float(-torch.log_softmax(torch.tensor([5.0, 0, 0, 0, 0]), 0)[0])
    assert head.losses(logits, known).tolist() == pytest.approx([2 * one, one])


def test_every_name_with_enough_tags_has_a_threshold_of_its_own() -> None:
    size = 400
    given = np.repeat([0, 1], size)
    right = np.concatenate([np.ones(size, bool), np.arange(size) % 2 == 0])
    judged = {
        "loss": np.zeros(2 * size),
        "rows": np.ones(2 * size, np.int64),
        "given_rows": np.ones(2 * size, np.int64),
        "given": given,
        "confidence": np.tile(np.linspace(0.5, 1, size, dtype=np.float32), 2),
        "right": right,
        "true": given,
    }
    _, spec = head_of(SPEC, "cpu").fit(judged, 0.9)
    assert spec.category_thresholds[0] < 0.6 < 1 < spec.category_thresholds[1]
    # Variants of ten products tell what ten do.
    _, spec = head_of(SPEC, "cpu").fit({**judged, "distinct": np.arange(2 * size) % 40 == 0}, 0.9)
    assert min(spec.category_thresholds) > 1


def test_a_name_with_few_tags_is_trusted_as_all_names_are() -> None:
    """Sixty right ones could not show 95% by themselves."""
    given = np.repeat([0, 1], [1_000, 60])
    judged = {
        "loss": np.zeros(1_060),
        "rows": np.ones(1_060, np.int64),
        "given_rows": np.ones(1_060, np.int64),
        "given": given,
        "confidence": np.full(1_060, 0.9, np.float32),
        "right": np.ones(1_060, bool),
        "true": given,
    }
    _, spec = head_of(SPEC, "cpu").fit(judged, 0.95)
    assert max(spec.category_thresholds) <= 0.9


def answers() -> pa.Table:
    tags = [
        {"name": 1, "value": "36", "field": 0, "start": 4, "end": 6, "confidence": 0.75},
        {"name": 0, "value": "Acme", "field": 1, "start": 0, "end": 4, "confidence": 0.5},
    ]
    return pa.table({"tags": pa.array([tags, [], tags[:1]], pa.list_(FOUND))})


def test_published_tags_and_back() -> None:
    columns = Tagged(replace(SPEC, category_thresholds=(0.6, 0.7)))
    labels = pa.table(columns.to_labels(answers()))
    assert labels.column_names == ["tags", "needs_review"]
    assert labels.column("tags").type == pa.list_(PUBLISHED)
    assert labels.column("tags")[0].as_py()[1] == {
        "name": "Brand",
        "value": "Acme",
        "field": "brand",
        "start": 0,
        "end": 4,
        "confidence": 0.5,
    }
    assert labels.column("needs_review").to_pylist() == [True, False, False]
    assert columns.from_labels(labels, 0).equals(answers())


def test_labels_of_tags_are_known_by_their_type() -> None:
    labels = pa.table(Tagged(replace(SPEC, label_column="attributes")).to_labels(answers()))
    assert PublishedTags.column_in(labels.schema) == "attributes"
    found = PublishedTags("attributes")
    assert found.each(labels).to_pylist() == ["Size", "Brand", "Size"]
    assert found.whole(labels) == ["Brand: Acme + Size: 36", "none", "Size: 36"]
    assert found.scored(labels)[0] == [("Size: 36", 0.75), ("Brand: Acme", 0.5)]
    assert found.empty(labels) == 1
    assert found.confidence(labels).to_pylist() == [0.5, 1.0, 0.75]
