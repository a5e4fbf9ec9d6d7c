from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.bundle import Spec
from cataloger.heads import answers
from cataloger.heads.heads import SetPredictions, head_of

SPEC = Spec(
    ("A > x", "A > y", "B", "C"), ("title",), 64, "mean", "", multi_label=True,
    category_thresholds=(0.5, 0.9, 0.2, 0.5), thresholds=(0.3,), temperature=2.0,
)  # fmt: skip


def logit(probability: float) -> float:
    return float(SPEC.temperature * np.log(probability / (1 - probability)))


PROBABILITIES = [[0.6, 0.8, 0.3, 0.1], [0.1, 0.2, 0.1, 0.2], [0.7, 0.95, 0.9, 0.6]]
LOGITS = torch.tensor([[logit(p) for p in row] for row in PROBABILITIES])


def predictions(alternatives: int, splits: list[int]) -> SetPredictions:
    head = head_of(SPEC, "cpu")
    batches = [head.read(part, alternatives) for part in LOGITS.split(splits)]
    found = head.join(batches, np.arange(3))
    assert isinstance(found, SetPredictions)
    return found


@pytest.mark.parametrize("splits", [[3], [1, 2], [2, 1]])
def test_a_row_has_the_categories_that_reach_their_own_thresholds(splits: list[int]) -> None:
    found = predictions(2, splits)
    lists = [
        found.sets.flat[a:b].tolist() for a, b in zip(found.sets.offsets[:-1], found.sets.offsets[1:], strict=True)
    ]
    # A > y is the most probable of the first row, and below its threshold.
    assert lists == [[0, 2], [], [1, 2, 0, 3]]
    np.testing.assert_allclose(found.probabilities, [0.6, 0.3, 0.95, 0.9, 0.7, 0.6], rtol=1e-5)
    np.testing.assert_allclose(found.confidence[0], 0.6 * 0.2 * 0.3 * 0.9, rtol=1e-5)
    np.testing.assert_allclose(found.confidence[1], 0.9 * 0.8 * 0.9 * 0.8, rtol=1e-5)
    table = found.table()
    assert table.column("alternatives").to_pylist()[0] == [1, 3]
    assert len(table.column("alternatives").to_pylist()[1]) == 2
    assert table.column("alternatives").to_pylist()[2] == []


def test_nothing_waits_for_the_numbers_of_a_batch() -> None:
    """Tensors of the device "meta" have none: whatever would need one raises."""
    one = replace(SPEC, categories=("A > x", "A > y", "B"), multi_label=False, thresholds=(), category_thresholds=())
    labels, scores, levels = head_of(one, "meta").read(torch.empty(5, 3, device="meta"), 1)
    assert (labels.shape, scores.shape, levels.shape) == ((5, 2), (5, 2), (5, 2))


def test_answers_become_labels_and_labels_the_same_answers_again() -> None:
    found = predictions(2, [3]).table().append_column("error", pa.nulls(3, pa.string()))
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "text_hash": ["0", "1", "2", "0"],
            "place": pa.array([0, 1, 2, None], pa.int64()),
            "reason": pa.array([None, None, None, "no text"], pa.string()),
        }
    )
    labels, rejects = answers.assemble(rows, found, SPEC)
    assert labels.column_names == [
        "id", "categories", "confidences", "confidence", "alternatives", "needs_review", "text_hash"
    ]  # fmt: skip
    assert labels.column("categories").to_pylist() == [["A > x", "B"], [], ["A > y", "B", "A > x", "C"]]
    assert labels.column("needs_review").to_pylist() == [True, False, False]
    assert rejects.column("id").to_pylist() == ["d"]
    again = answers.from_labels(labels.select(answers.label_columns(SPEC)), SPEC, 2)
    assert again.to_pylist() == found.drop_columns("error").to_pylist()
    relabelled, _ = answers.assemble(rows.slice(0, 3), again.append_column("error", pa.nulls(3, pa.string())), SPEC)
    assert relabelled.equals(labels)


def test_no_rows_have_no_answers() -> None:
    for spec in (SPEC, Spec(SPEC.categories, ("title",), 64, "mean", "")):
        head = head_of(spec, "cpu")
        found = head.join([head.read(torch.empty(0, 4), 2)], np.empty(0, np.int64))
        assert len(found.table()) == 0
