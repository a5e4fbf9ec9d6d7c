"""What holds for every head: what is fitted on validation rows is what is published."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cataloger.data.batching import Ragged
from cataloger.heads.base import HEADS, head_of, joined
from cataloger.heads.columns import COLUMNS, columns_of, head_for, published_in
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec

CATEGORIES = ("A", "A > x", "A > y", "B > z > w", "C")
ONE = Spec(CATEGORIES, ("title",), 64, "mean", "", temperature=1.7, thresholds=(0.9, 0.5, 0.4))
MANY = replace(ONE, head=MANY_CATEGORIES, thresholds=(0.3,), category_thresholds=(0.5, 0.9, 0.2, 0.5, 0.03))
TAGGED = replace(ONE, categories=("A", "B"), head=TAGS, label_column="tags", thresholds=())  # five classes as well
SPECS = [ONE, MANY, TAGGED]  # one of every head
LOGITS = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=st.floats(-30, 30, width=32))


def sets(rows: int) -> Ragged:
    return Ragged(np.arange(rows, dtype=np.int32) % 5, np.arange(rows + 1))


def answers(spec: Spec, logits: np.ndarray, alternatives: int) -> pa.Table:
    head = head_of(spec, "cpu")
    return head.join([head.read(torch.from_numpy(logits), alternatives)], np.arange(len(logits)))


def test_every_head_has_its_columns() -> None:
    assert HEADS.keys() == COLUMNS.keys() == {spec.head for spec in SPECS}
    assert head_for(pa.field("label", pa.string())) == ONE_CATEGORY
    assert head_for(pa.field("label", pa.list_(pa.string()))) == MANY_CATEGORIES
    assert head_for(pa.field("label", pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())])))) == TAGS
    with pytest.raises(ValueError, match="no column category or categories, nor one of tags"):
        published_in(pa.schema([("id", pa.int64()), ("colour", pa.string())]))


@given(LOGITS)
@settings(max_examples=200)
def test_a_confidence_is_the_same_in_validation_and_in_labels(logits: np.ndarray) -> None:
    judged = head_of(ONE, "cpu").judge(torch.from_numpy(logits), sets(len(logits)))
    found = answers(ONE, logits, 2)
    label = found.column("label").to_numpy()
    depth = np.array([path.count(" > ") for path in CATEGORIES])[label]
    assert judged["given"].tolist() == label.tolist()
    assert judged["certainty"][np.arange(len(label)), depth].tolist() == found.column("confidence").to_pylist()


@given(LOGITS)
@settings(max_examples=200)
def test_so_is_that_of_a_set(logits: np.ndarray) -> None:
    from cataloger.heads.arrays import set_confidence

    judged = head_of(MANY, "cpu").judge(torch.from_numpy(logits), sets(len(logits)))
    thresholds = np.array(MANY.category_thresholds, np.float32)
    chosen = judged["probability"] >= thresholds[judged["label"]]
    counts = np.bincount(np.repeat(np.arange(len(logits)), judged["pairs"])[chosen], minlength=len(logits))
    found = answers(MANY, logits, 2)
    assert set_confidence(judged["none"], counts, judged["logit"][chosen]).tolist() == found["confidence"].to_pylist()
    assert counts.tolist() == [len(labels) for labels in found.column("labels").to_pylist()]


@given(LOGITS, st.integers(0, 6), st.sampled_from([ONE, MANY]))  # of tags: `test_published_tags_and_back`
@settings(max_examples=200)
def test_labels_are_read_back_as_the_answers_they_were_made_from(
    logits: np.ndarray, alternatives: int, spec: Spec
) -> None:
    found, columns = answers(spec, logits, alternatives), columns_of(spec)
    labels = pa.table(columns.to_labels(found))
    again = columns.from_labels(labels.select(columns.kept), alternatives)
    assert again.schema.equals(found.schema)
    assert again.equals(found) or str(again.to_pydict()) == str(found.to_pydict()), "NaN is not equal to itself"


def test_batches_are_judged_as_one() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for spec in SPECS:
        head = head_of(spec, "cpu")
        whole = head.fit(head.judge(logits, sets(7)), 0.9)
        parts = joined(
            [head.judge(logits[:3], sets(7).take(np.arange(3))), head.judge(logits[3:], sets(7).slice(3, 7))]
        )
        assert head.fit(parts, 0.9) == (pytest.approx(whole[0]), whole[1])
