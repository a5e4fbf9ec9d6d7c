import errno
from pickle import UnpicklingError

import pytest
import torch

from cataloger.errors import CheckpointError
from cataloger.training.checkpoint import ALL_ANSWERS, LEAST, NETWORK, rank, rank_of, restoring


@pytest.mark.parametrize(
    "error",
    [KeyError("average"), RuntimeError("size mismatch"), UnpicklingError("no"), ValueError("a parameter group")],
)
def test_a_state_of_another_version_is_told_from_failures(error: Exception) -> None:
    with (
        pytest.raises(CheckpointError, match=f"checkpoint here: cannot be restored: {type(error).__name__}: "),
        restoring("here"),
    ):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "the disk"), torch.OutOfMemoryError("full")])
def test_a_failure_while_a_state_is_read_is_not_the_states(error: Exception) -> None:
    with pytest.raises(type(error)), restoring("here"):
        raise error


def test_of_equal_scores_the_lower_loss_is_better() -> None:
    """On a few validation rows all are right after some epochs, and the network is still learning."""
    assert rank(0.9, 0.3) + LEAST < rank(0.9, 0.2) < rank(0.9001, 5.0)
    assert rank(0.9, float("nan")) < rank(0.9, 100.0)


def test_of_several_answers_the_mean_decides_which_epoch_is_kept() -> None:
    """An easy first answer, which is learnt soon, must not stop what the others still learn."""
    early = {"val_weighted_f1": 0.95, "val_loss": 0.2, "val_mean_weighted_f1": 0.6, "val_mean_loss": 2.0}
    late = {"val_weighted_f1": 0.94, "val_loss": 0.3, "val_mean_weighted_f1": 0.8, "val_mean_loss": 1.0}
    assert rank_of(early, NETWORK, ALL_ANSWERS) < rank_of(late, NETWORK, ALL_ANSWERS)
    assert rank_of(early, NETWORK) > rank_of(late, NETWORK), "without them, the first answer is all there is"
