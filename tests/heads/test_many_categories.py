from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.data.batching import Ragged
from cataloger.heads.base import head_of
from cataloger.heads.columns import assemble, columns_of
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, Spec

SPEC = Spec(
    ("A > x", "A > y", "B", "C"), ("title",), 64, "mean", "", head=MANY_CATEGORIES,
    category_thresholds=(0.5, 0.9, 0.2, 0.5), thresholds=(0.3,), temperature=2.0,
)  # fmt: skip


def logit(probability: float) -> float:
    return float(SPEC.temperature * np.log(probability / (1 - probability)))


PROBABILITIES = [[0.6, 0.8, 0.3, 0.1], [0.1, 0.2, 0.1, 0.2], [0.7, 0.95, 0.9, 0.6]]
LOGITS = torch.tensor([[logit(p) for p in row] for row in PROBABILITIES])


def answers(alternatives: int, splits: list[int]) -> pa.Table:
    head = head_of(SPEC, "cpu")
    batches = [head.read(part, alternatives) for part in LOGITS.split(splits)]
    return head.join(batches, np.arange(3))


@pytest.mark.parametrize("splits", [[3], [1, 2], [2, 1]])
def test_a_row_has_the_categories_that_reach_their_own_thresholds(splits: list[int]) -> None:
    table = answers(2, splits)
    # A > y is the most probable of the first row, and below its threshold.
    assert table.column("labels").to_pylist() == [[0, 2], [], [1, 2, 0, 3]]
    probabilities = table.column("probabilities").combine_chunks().flatten()
    np.testing.assert_allclose(probabilities, [0.6, 0.3, 0.95, 0.9, 0.7, 0.6], rtol=1e-5)
    confidence = table.column("confidence").to_numpy()
    np.testing.assert_allclose(confidence[0], 0.6 * 0.2 * 0.3 * 0.9, rtol=1e-5)
    np.testing.assert_allclose(confidence[1], 0.9 * 0.8 * 0.9 * 0.8, rtol=1e-5)
    assert table.column("alternatives").to_pylist()[0] == [1, 3]
    assert len(table.column("alternatives").to_pylist()[1]) == 2
    assert table.column("alternatives").to_pylist()[2] == []


@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(size: int) -> None:
    """To the last bit; many are equally probable, as they round to 1 or have the same logit."""
    spec = replace(SPEC, categories=tuple(f"C{n}" for n in range(61)), category_thresholds=(0.5,) * 61, temperature=1.0)
    logits = torch.randn(130, 61, generator=torch.Generator().manual_seed(0)) * 12
    logits[:, 3] = logits[:, 50]
    head = head_of(spec, "cpu")
    whole = head.join([head.read(logits, 2)], np.arange(130))
    assert head.join([head.read(part, 2) for part in logits.split(size)], np.arange(130)).equals(whole)


def test_nothing_waits_for_the_numbers_of_a_batch() -> None:
    """Tensors of the device "meta" have none: whatever would need one raises."""
    one = replace(SPEC, categories=("A > x", "A > y", "B"), head=ONE_CATEGORY, thresholds=(), category_thresholds=())
    labels, scores, levels = head_of(one, "meta").read(torch.empty(5, 3, device="meta"), 1)
    assert (labels.shape, scores.shape, levels.shape) == ((5, 2), (5, 2), (5, 2))


def test_answers_become_labels_and_labels_the_same_answers_again() -> None:
    found = answers(2, [3]).append_column("error", pa.nulls(3, pa.string()))
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "text_hash": ["0", "1", "2", "0"],
            "place": pa.array([0, 1, 2, None], pa.int64()),
            "reason": pa.array([None, None, None, "no text"], pa.string()),
        }
    )
    labels, rejects = assemble(rows, found, columns_of(SPEC))
    assert labels.column_names == [
        "id", "categories", "confidences", "confidence", "alternatives", "needs_review", "text_hash"
    ]  # fmt: skip
    assert labels.column("categories").to_pylist() == [["A > x", "B"], [], ["A > y", "B", "A > x", "C"]]
    assert labels.column("needs_review").to_pylist() == [True, False, False]
    assert rejects.column("id").to_pylist() == ["d"]
    again = columns_of(SPEC).from_labels(labels.select(columns_of(SPEC).kept), 2)
    assert again.to_pylist() == found.drop_columns("error").to_pylist()
    relabelled, _ = assemble(rows.slice(0, 3), again.append_column("error", pa.nulls(3, pa.string())), columns_of(SPEC))
    assert relabelled.equals(labels)


def test_no_rows_have_no_answers() -> None:
    for spec in (SPEC, Spec(SPEC.categories, ("title",), 64, "mean", "")):
        head = head_of(spec, "cpu")
        found = head.join([head.read(torch.empty(0, 4), 2)], np.empty(0, np.int64))
        assert len(found) == 0


def test_a_row_is_held_against_the_categories_it_has_and_the_model_knows() -> None:
    rows = Ragged(np.array([2, 0, -1, 1], np.int32), np.array([0, 2, 2, 3, 4]))
    targets = head_of(SPEC, "cpu").targets(rows.take(np.array([3, 0, 2, 1])))
    assert targets.tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("categories", "chosen"), [(5_000, 3), (1_000, 40)])
def test_the_confidence_of_a_set_is_exact_among_thousands_of_categories(categories: int, chosen: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, categories, generator=generator) - 12
    own = torch.rand(200, categories, generator=generator).topk(chosen, dim=1).indices
    logits = logits.scatter(1, own, 6 + torch.randn(200, chosen, generator=generator))
    names = tuple(f"c{number:05d}" for number in range(categories))
    head = head_of(replace(SPEC, categories=names, category_thresholds=(), temperature=1.0), "cpu")
    found = head.join([head.read(logits, 0)], np.arange(200)).column("confidence").to_numpy()
    sign = torch.full_like(logits, -1.0).scatter(1, own, 1.0).double()
    expected = torch.nn.functional.logsigmoid(sign * logits.double()).sum(dim=1).exp().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-7)
