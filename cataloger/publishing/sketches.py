"""Where the texts of a run lie: of each part the smallest hashes of its texts, which are a sample that anybody else would draw as well.

OUTPUT/run=<id>/_sketches.arrow     the hashes in their order, and the unit that each is of

A sample by smallest hashes shows what two sets have in common (bottom-k sketch: Cohen and Kaplan, 2007). So the next night finds
the parts that have the rows of a unit without reading any. Of 10^9 rows they are 24 MB.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.text import hash_words
from cataloger.errors import StorageError
from cataloger.infra.storage import Location
from cataloger.publishing.parts import Part

SKETCHES = "_sketches.arrow"
# Where a unit shares a hundredth of a part's rows, one of these is among them; a part's sketch is 1 KiB.
SMALLEST = 128
# A part is read for so many of the sampled texts that a unit shares with the run, or where it stands beside one that is read. Single
# products that came from elsewhere are not worth a part: they are asked again.
LEAST_SHARE = 0.02
# A unit of the most rows meets nine of the fewest, where it lies across their ends.
MOST_PARTS = 10
NO_END = np.iinfo(np.uint64).max

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Sketches:
    """Those of all parts of a run: `hashes` in their order, and the unit of each; where a unit's sketch ends, by its number.

    Of a hash beyond its end, a sketch does not say whether the part has it.
    """

    hashes: Words
    units: npt.NDArray[np.int64]
    ends: Words

    def parts_with(self, words: Words) -> tuple[list[int], float]:
        """(the units whose parts are worth reading for texts of these hashes, by their first words, what share of the texts that the run
        has, as far as the sketches tell, lies in them)

        The part that has most of what is left comes first. Without any text in common the share is 1.
        """
        wanted = np.unique(words)
        first, last = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        times = last - first
        text = np.repeat(wanted, times)
        unit = self.units[np.repeat(first - np.cumsum(times) + times, times) + np.arange(len(text))]
        asked = wanted[times > 0]
        chosen: list[int] = []
        while len(chosen) < MOST_PARTS:
            found, counts = np.unique(unit, return_counts=True)
            beside = np.isin(found, [one + step for one in chosen for step in (-1, 1)])
            worth = np.where((counts >= LEAST_SHARE * len(asked)) | beside, counts, 0)
            if not worth.any():
                break
            best = int(found[np.argmax(worth)])
            chosen.append(best)
            # What lies beyond its end may be in it as well: nothing can be told of that.
            asked = asked[asked <= self.ends[best]]
            left = (text <= self.ends[best]) & ~np.isin(text, text[unit == best])
            text, unit = text[left], unit[left]
        return chosen, 1 - len(np.unique(text)) / max(1, len(asked))


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


def read(folder: Location, count: int) -> Sketches | None:
    """Those of a run of so many units; None where it has none. Raises StorageError where they are damaged."""
    file = folder / SKETCHES
    if not file.exists():
        return None
    try:
        table = pa.ipc.open_file(pa.py_buffer(file.read())).read_all()
        hashes, units = (table.column(name).to_numpy() for name in ("hash", "unit"))
        sorted_ = bool((hashes[1:] >= hashes[:-1]).all())
        units = units.astype(np.int64)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StorageError(f"{file}: is damaged: {error}") from error
    if not sorted_ or hashes.dtype != np.uint64 or units.max(initial=-1) >= count:
        raise StorageError(f"{file}: is damaged: its hashes are not in their order, or of no unit")
    ends = np.zeros(count, np.uint64)
    np.maximum.at(ends, units, hashes)
    ends[np.bincount(units, minlength=count) < SMALLEST] = NO_END
    return Sketches(hashes, units, ends)
