from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch.nn import functional as F

from cataloger.data.text import hash_texts
from cataloger.infra.storage import locate
from cataloger.spec import MANY_CATEGORIES, Spec
from cataloger.training.distilling import TEMPERATURE, softened
from cataloger.training.examples import TRAINING, UNLABELLED
from cataloger.training.lessons import HASH, Lessons, keys, keys_of


def lessons(rows: dict[int, list[tuple[int, float]]]) -> Lessons:
    """Of each key, (label, probability), as many for all."""
    order = sorted(rows)
    labels = np.array([[label for label, _ in rows[key]] for key in order], np.int64)
    shares = np.array([[share for _, share in rows[key]] for key in order], np.float32)
    return Lessons(np.array(order, np.uint64), labels, shares)


def test_rows_find_their_answer_by_key() -> None:
    found = lessons({5: [(2, 0.9), (0, 0.1)], 7: [(1, 0.6), (2, 0.3)]})
    labels, shares = found.of(np.array([7, 6, 5, 99], np.uint64))
    assert labels[0].tolist() == [1, 2]
    np.testing.assert_allclose(shares, [[0.6, 0.3], [0, 0], [0.9, 0.1], [0, 0]])
    assert Lessons.of(lessons({5: [(0, 1.0)]}), np.array([], np.uint64))[0].shape == (0, 1)


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    written, place = (
        lessons({5: [(2, 0.9), (0, 0.1)], 7: [(1, 0.6), (2, 0.3)]}),
        locate(str(tmp_path / "lessons.parquet")),
    )
    written.write(place)
    found = Lessons.read(place)
    for name in ("keys", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))


def test_several_teachers_say_the_mean_of_what_each_says() -> None:
    one = lessons({1: [(0, 0.8), (1, 0.2)], 2: [(3, 1.0), (0, 0.0)]})
    other = lessons({1: [(1, 0.6), (2, 0.4)], 3: [(0, 1.0), (1, 0.0)]})
    found = Lessons.mean([one, other])
    assert found.keys.tolist() == [1]  # what one of them has not answered teaches nothing
    said = {int(label): float(share) for label, share in zip(found.labels[0], found.probabilities[0], strict=True)}
    # The two most probable of (0: .4, 1: .4, 2: .2).
    assert said.keys() == {0, 1}
    np.testing.assert_allclose(list(said.values()), [0.4, 0.4], atol=1e-6)


def test_keys_are_those_of_the_published_hashes() -> None:
    hashes = hash_texts(pa.array(["a", None, "b", "a"]))
    found = keys(hashes)
    assert found[0] == found[3] != found[2]
    assert found[1] == 0
    assert found[0] == np.frombuffer(bytes.fromhex(hashes[0].as_py()), "<u8")[0]


@pytest.mark.usefixtures("ray_session")
def test_rows_that_are_left_out_have_no_key_and_the_others_keep_theirs() -> None:
    own = [(1 << 63) + 1, (1 << 63) + 2, (1 << 63) + 3]  # too large for floating-point numbers
    uses = np.array([TRAINING, UNLABELLED, TRAINING, -1], np.int8)
    block = ray.put(pa.table({HASH: pa.array([*own, None], pa.uint64()), "use": uses}))
    assert keys_of([block, block], TRAINING).tolist() == [own[0], own[2]] * 2
    assert keys_of([block], UNLABELLED).tolist() == [own[1]]


def test_a_student_that_says_what_its_teacher_says_learns_nothing() -> None:
    """The gradient of the loss is zero there, and nowhere near."""
    spec, logits = Spec(("a", "b", "c"), ("t",), 8, "mean", ""), torch.tensor([[2.0, 0.5, -1.0]], requires_grad=True)
    labels, shares = torch.tensor([[0, 1, 2]]), F.softmax(logits.detach(), dim=1)
    softened(spec, logits, labels, shares).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    other = torch.tensor([[0.5, 2.0, -1.0]], requires_grad=True)
    softened(spec, other, labels, shares).sum().backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0.1


def test_each_of_many_categories_is_a_question_of_its_own() -> None:
    spec = Spec(("a", "b", "c"), ("t",), 8, "mean", "", head=MANY_CATEGORIES)
    logits = torch.tensor([[3.0, -2.0, -14.0]], requires_grad=True)
    # A label that stands there twice counts by the larger share: behind the given ones, rows are filled up.
    softened(
        spec,
        logits,
        torch.tensor([[0, 1, 0]]),
        torch.cat([torch.sigmoid(logits.detach()[:, :2]), torch.zeros(1, 1)], 1),
    ).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-3
    assert TEMPERATURE > 1
