import errno
from pickle import UnpicklingError

import pytest
import torch

from cataloger.errors import CheckpointError
from cataloger.training.checkpoint import restoring


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
