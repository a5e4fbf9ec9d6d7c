"""The tokens and labels of a training's rows, in files on the node's disk that all of its workers map into memory.

However many rows there are and however long their texts, a worker holds none of them: the pages of the files belong to the node,
which gives them up where memory is short, and reads them again.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from cataloger.data.batching import Ragged
from cataloger.infra.node_cache import once_per_node

# Until all workers of a node have them. What is mapped stays, and for a worker that is replaced later they are written again.
KEPT_SECONDS = 15 * 60
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Stored:
    """The columns of the rows of one use, in the order of the ingest's tables."""

    lists: Mapping[str, Ragged]
    numbers: Mapping[str, npt.NDArray[Any]]


def stored(
    blocks: Sequence[Any],
    key: str,
    lists: Sequence[str],
    numbers: Mapping[str, Any],
    together: Sequence[Sequence[int]],
) -> dict[int, Stored]:
    """By use, columns of int32 lists and of `numbers` of a type each, of the ingest's tables. `key` is that of the training.

    The lists of uses that are `together` lie end to end in one array, so that they can be joined without a copy.
    Raises StorageError where the disk has no room for them.
    """
    # The columns of two attempts may differ.
    named = hashlib.sha256(repr((tuple(lists), tuple(numbers))).encode()).hexdigest()[:8]
    folder = once_per_node(
        "rows", f"{key}-{named}", lambda aside: _write(blocks, lists, numbers, together, aside), KEPT_SECONDS
    )

    def mapped(file: str, kind: Any) -> npt.NDArray[Any]:
        if not (folder / file).stat().st_size:
            return np.empty(0, kind)
        found: npt.NDArray[Any] = np.memmap(folder / file, kind, "r").view(np.ndarray)
        return found

    found = {}
    for uses in together:
        flat = {name: mapped(f"{uses[0]}.{name}", np.int32) for name in lists}
        for use in uses:
            found[use] = Stored(
                {name: Ragged(flat[name], mapped(f"{use}.{name}.offsets", np.int64)) for name in lists},
                {name: mapped(f"{use}.{name}", kind) for name, kind in numbers.items()},
            )
    return found


def _write(
    blocks: Sequence[Any],
    lists: Sequence[str],
    numbers: Mapping[str, Any],
    together: Sequence[Sequence[int]],
    folder: Path,
) -> None:
    """One of the ingest's tables after the other: no more than one is in memory."""

    def append(name: str, array: npt.NDArray[Any]) -> None:
        # Not by numpy's own `tofile`: a disk that is full then goes unnoticed.
        with open(folder / name, "ab") as file:
            file.write(np.ascontiguousarray(array).data)

    uses = [use for some in together for use in some]
    written = {f"{use}.{name}": 0 for use in uses for name in lists}
    for name in [*written, *(f"{use}.{column}" for use in uses for column in numbers)]:
        append(name, np.empty(0, np.int32))
    for name in written:
        append(f"{name}.offsets", np.zeros(1, np.int64))
    for block in blocks:
        table = ray.get(block)
        rows = table.column("use").to_numpy()
        for use in uses:
            chosen = table.select([*lists, *numbers]).take(np.flatnonzero(rows == use))
            for column, kind in numbers.items():
                append(f"{use}.{column}", chosen.column(column).fill_null(0).to_numpy().astype(kind))
            for column in lists:
                name, own = f"{use}.{column}", Ragged.from_arrow(chosen.column(column))
                append(name, own.flat[own.offsets[0] : own.offsets[-1]])
                append(f"{name}.offsets", own.offsets[1:] - own.offsets[0] + written[name])
                written[name] += int(own.offsets[-1] - own.offsets[0])
    for first, *others in together:
        for column in lists:
            for use in others:
                _move_behind(folder, f"{first}.{column}", f"{use}.{column}")


def _move_behind(folder: Path, first: str, other: str) -> None:
    """The numbers of the other lists to the end of the first ones; their offsets stay, and go by their new place."""
    before = (folder / first).stat().st_size // np.dtype(np.int32).itemsize
    with open(folder / other, "rb") as source, open(folder / first, "ab") as target:
        shutil.copyfileobj(source, target)
    (folder / other).unlink()
    offsets = np.memmap(folder / f"{other}.offsets", np.int64, "r+")
    for start in range(0, len(offsets), AT_ONCE):
        offsets[start : start + AT_ONCE] += before
    offsets.flush()
