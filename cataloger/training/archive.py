"""The tokens of a training's rows, in files on the node's disk that all of its workers map into memory.

What a worker itself holds of a row is its labels and its place in the order of an epoch, however long its text is: the pages of the
files belong to the node, which gives them up where memory is short, and reads them again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from cataloger.data.batching import Ragged, Tokens
from cataloger.infra.node_cache import once_per_node

# Until all workers of a node have them. What is mapped stays, and for a worker that is replaced later they are written again.
KEPT_SECONDS = 15 * 60


def tokens_of(blocks: Sequence[Any], rows: npt.NDArray[np.int8], uses: Sequence[int], pad_id: int) -> dict[int, Tokens]:
    """The tokens of the ingest's tables, whose rows are of these uses, by use, in the order of the tables.

    Raises StorageError where the disk has no room for them.
    """
    # With the uses: references alone are the same in another session of Ray.
    named = repr([block.hex() for block in blocks]).encode() + rows.tobytes()
    key = hashlib.sha256(named).hexdigest()[:16]
    folder = once_per_node("tokens", key, lambda aside: _write(blocks, uses, aside), KEPT_SECONDS)
    return {
        use: Tokens(_mapped(folder / f"{use}.tokens", np.int32), _mapped(folder / f"{use}.offsets", np.int64), pad_id)
        for use in uses
    }


def _write(blocks: Sequence[Any], uses: Sequence[int], folder: Path) -> None:
    """One of the ingest's tables after the other: no more than one is in memory."""
    written = dict.fromkeys(uses, 0)
    for use in uses:
        # Not by numpy's own `tofile`: a disk that is full then goes unnoticed.
        (folder / f"{use}.offsets").write_bytes(np.zeros(1, np.int64).tobytes())
        (folder / f"{use}.tokens").touch()
    for block in blocks:
        table = ray.get(block)
        rows = table.column("use").to_numpy()
        for use in uses:
            chosen = np.flatnonzero(rows == use)
            if len(chosen):
                tokens = Ragged.from_arrow(table.column("tokens").take(chosen))
                own = tokens.flat[tokens.offsets[0] : tokens.offsets[-1]]
                with open(folder / f"{use}.tokens", "ab") as file:
                    file.write(np.ascontiguousarray(own).data)
                with open(folder / f"{use}.offsets", "ab") as file:
                    file.write((tokens.offsets[1:] - tokens.offsets[0] + written[use]).data)
                written[use] += len(own)


def _mapped(file: Path, kind: type[np.generic]) -> npt.NDArray[Any]:
    """What is mapped stays, even if somebody removes the file."""
    if not file.stat().st_size:
        return np.empty(0, kind)
    mapped: npt.NDArray[Any] = np.memmap(file, kind, "r").view(np.ndarray)
    return mapped
