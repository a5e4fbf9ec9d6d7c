"""Where the texts of a run lie: of each part the smallest hashes of its texts, which are a sample that anybody else would draw as well.

OUTPUT/run=<id>/_sketches.arrow     the hashes in their order, and the unit that each is of

A sample by smallest hashes shows what two sets have in common (bottom-k sketch: Cohen and Kaplan, 2007). So the next night finds
the parts that have the rows of a unit without reading any. Of 10^9 rows they are 24 MB.
"""

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.text import hash_words
from cataloger.infra.storage import Location
from cataloger.publishing.parts import Part

SKETCHES = "_sketches.arrow"
# Where a unit shares a hundredth of a part's rows, one of these is among them; a part's sketch is 1 KiB.
SMALLEST = 128
# Of the sampled texts that a unit shares with the run, so many must lie in few parts.
ENOUGH = 0.95
# A part is read for so many of them, or where it stands beside one that is read. Single products that came from elsewhere are not
# worth a part: they are asked again.
LEAST_SHARE = 0.02
# A unit of the most rows meets nine of the fewest, where it lies across their ends.
MOST_PARTS = 10

Words = npt.NDArray[np.uint64]


def of(hashes: pa.ChunkedArray) -> str:
    """The sketch of a part with these text hashes, as its footer has it."""
    smallest = np.unique(hash_words(hashes.drop_null())[:, 0])[:SMALLEST]
    return base64.b64encode(smallest.tobytes()).decode()


def keep(folder: Location, parts: Mapping[int, Part]) -> None:
    """Write the sketches of all parts into the run's folder. Raises StorageError."""
    samples = [np.frombuffer(base64.b64decode(part.sketch), np.uint64) for part in parts.values()]
    hashes = np.concatenate([np.empty(0, np.uint64), *samples])
    units = np.repeat(np.array(list(parts), np.uint32), [len(sample) for sample in samples])
    order = np.argsort(hashes, kind="stable")
    table = pa.table({"hash": hashes[order], "unit": units[order]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    (folder / SKETCHES).write(sink.getvalue())


def read(file: Path) -> tuple[Words, npt.NDArray[np.uint32]]:
    """(hashes in their order, the unit of each) of a copy on this disk, mapped into memory."""
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all().combine_chunks()
    return table.column("hash").to_numpy(), table.column("unit").to_numpy()


def parts_with(words: Words, hashes: Words, units: npt.NDArray[np.uint32]) -> list[int] | None:
    """The units of the run whose parts have these texts, by their hashes' first words; None where they lie all over the run.

    The part that has most of what is left comes first.
    """
    wanted = np.unique(words)
    first, last = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
    times = last - first
    text = np.repeat(np.arange(len(wanted)), times)
    unit = units[np.repeat(first - np.cumsum(times) + times, times) + np.arange(len(text))].astype(np.int64)
    shared = np.count_nonzero(times)
    chosen: list[int] = []
    while len(chosen) < MOST_PARTS:
        found, counts = np.unique(unit, return_counts=True)
        beside = np.isin(found, [chosen_one + step for chosen_one in chosen for step in (-1, 1)])
        worth = np.where((counts >= LEAST_SHARE * shared) | beside, counts, 0)
        if not worth.any():
            break
        best = int(found[np.argmax(worth)])
        chosen.append(best)
        left = ~np.isin(text, text[unit == best])
        text, unit = text[left], unit[left]
    return chosen if len(np.unique(text)) <= (1 - ENOUGH) * shared else None
