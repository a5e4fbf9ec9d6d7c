"""What is chosen by the size of a catalog, and that what somebody asks for is left alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cataloger.config import TrainConfig
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY
from cataloger.training.answers import Learnt
from cataloger.training.continuing import Begun
from cataloger.training.defaults import MOST_EPOCHS, batch_size_for, epochs_for, held_out_of, settled
from cataloger.training.plan import _held_out


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"), [(1, 12, 32), (1_300, 10, 32), (7_200, 8, 32), (34_900, 6, 128), (10**9, 1, 256)]
)
def test_more_rows_take_fewer_epochs_and_larger_batches(rows: int, epochs: int, batch: int) -> None:
    assert (epochs_for(rows), batch_size_for(rows)) == (epochs, batch)
    chosen, said = settled(TrainConfig(), rows, ONE_CATEGORY)
    assert (chosen.epochs, chosen.batch_size, chosen.adversarial, chosen.level_weights) == (epochs, batch, 1.0, (0.5,))
    assert f"--epochs {epochs} --batch-size {batch} --adversarial 1.0 --level-weights 0.5" in said


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_they_never_rise_or_fall_the_other_way(few: int, many: int) -> None:
    few, many = sorted((few, many))
    assert MOST_EPOCHS >= epochs_for(few) >= epochs_for(many) >= 1
    assert batch_size_for(few) <= batch_size_for(many)


@pytest.mark.parametrize(
    ("rows", "share"), [(0, 0.1), (1_000, 0.1), (1_999_999, 0.1), (2_000_000, 0.05), (10_000_000, 0.01), (10**9, 0.001)]
)
def test_of_a_large_catalog_a_smaller_share_is_held_out(rows: int, share: float) -> None:
    assert held_out_of(rows) == pytest.approx(share)


def test_what_was_asked_for_is_left_alone() -> None:
    asked = TrainConfig(epochs=2, batch_size=7, adversarial=0.0, level_weights=())
    assert settled(asked, 1_000, ONE_CATEGORY) == (asked, "")


def test_what_cannot_be_is_not_chosen() -> None:
    chosen, said = settled(TrainConfig(), 1_000, MANY_CATEGORIES)
    assert chosen.level_weights is None
    assert "level-weights" not in said
    assert settled(TrainConfig(fine_tune="head"), 1_000, ONE_CATEGORY)[0].adversarial == 0.0


def test_what_is_held_out_of_many_rows() -> None:
    one, lists = (Learnt("category_path", head, ("A", "B"), (), 20_000_000) for head in (ONE_CATEGORY, MANY_CATEGORIES))
    alone, grouped = TrainConfig(), TrainConfig(group_column="supplier")
    assert _held_out(alone, [one], None) == 0.005
    assert _held_out(grouped, [one], None) == 0.1, "of groups there may be few"
    assert _held_out(alone, [lists], None) == _held_out(alone, [one, one], None) == 0.1, (
        "how many rows have some is not known"
    )
    begun = Begun("shop/1", frozenset(), 0.002)
    assert _held_out(alone, [one], begun) == 0.002, "what the model has learnt does not tell how well it does"
    assert (
        _held_out(alone, [one], replace(begun, held_out=0.1))
        == _held_out(alone, [one], replace(begun, held_out=None))
        == 0.005
    )
