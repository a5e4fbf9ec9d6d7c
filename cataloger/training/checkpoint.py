"""What may go wrong with a training's state: is it the state's fault, or the machine's?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cataloger.errors import CheckpointError


@contextmanager
def restoring(checkpoint: str) -> Iterator[None]:
    """What does not fit this code in a state that another one wrote is a CheckpointError; a disk or a GPU that fails is not."""
    try:
        yield
    except Exception as error:
        failed = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if failed or isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"checkpoint {checkpoint}: cannot be restored: {type(error).__name__}: {why}") from error


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class for GPUs' allocators only; its one for CPUs says so in words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
