"""The parts of a run: what is written of each unit, once.

A unit is finished when its part is there: rejects are written before it, and its footer says how many there are.
The first part of a unit stands: whoever comes second, be it a retry or what is left of a killed driver, adopts it. Only one that
could reach fewer pictures gives way.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.data.units import Unit
from cataloger.errors import ConflictError, StorageError
from cataloger.infra.storage import Location

REJECTS = "_rejects"
MANIFEST = "_manifest.json"
_COUNTS, _REJECTS = b"cataloger.counts", b"cataloger.rejects"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a run as it was written; `name` is below the run's folder."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """A finished unit. Of its distinct texts, `forwarded` went through the network and `alone` were answered by words alone; of
    these the network was asked as well about `checked`, and it said the same about `agreed`."""

    unit: int
    rows: int
    rejects: int
    forwarded: int
    files: tuple[File, ...]
    alone: int = 0
    checked: int = 0
    agreed: int = 0
    images: Mapping[str, int] = field(default_factory=dict)
    """Labels by what became of the row's picture, where the model sees."""
    unreachable: int = 0
    """Rows, labelled or rejected, whose picture could not be reached."""
    decisions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What pins and each rule did, as labels name them in `source`: matched, decided, agreed, conflicts and rejected, in rows."""
    sketch: str = ""
    """Which texts are labelled here (`sketches`)."""

    @classmethod
    def from_dict(cls, part: Mapping[str, Any]) -> "Part":
        return cls(**{**part, "files": tuple(File(**file) for file in part["files"])})


def part_name(unit: int) -> str:
    return f"part-{unit:05d}.parquet"


def write_part(
    folder: Location,
    unit: int,
    labels: pa.Table,
    rejects: pa.Table,
    answered: Mapping[str, Any],
    about: Mapping[str, str],
) -> Part:
    """Write rejects, then labels, unless the unit is finished already; each file appears whole or not at all.

    Finished is a part that lacks no more pictures than this one. `answered` are the counts of `Part` by their name. `about` goes to
    the Parquet metadata: a function of the run id, so that a part's bytes are one too. Raises StorageError.
    """
    name, rows = part_name(unit), len(labels) + len(rejects)
    if standing := _standing(folder, unit, rows, answered):
        return standing
    metadata = {f"cataloger.{key}".encode(): value.encode() for key, value in about.items()}
    counts = {"unit": unit, "rows": len(labels), "rejects": len(rejects), **answered}
    metadata[_COUNTS] = json.dumps(counts).encode()
    files = []
    if len(rejects):
        data = _parquet(rejects, metadata)
        (folder / REJECTS / name).write(data)
        files.append(_describe(f"{REJECTS}/{name}", data))
        # Another process may write other rejects of this unit meanwhile: labels go with their own.
        metadata[_REJECTS] = files[0].sha256.encode()
    elif (stale := folder / REJECTS / name).exists():
        stale.delete()  # of a part that this one replaces
    data = _parquet(labels, metadata)
    try:
        (folder / name).replace(data, None)
    except ConflictError:
        if standing := _standing(folder, unit, rows, answered):
            if len(rejects) and not standing.rejects:
                (folder / REJECTS / name).delete()  # nobody else's
            return standing
        (folder / name).write(data)  # what lies there is damaged, or lacks pictures
    return Part(**counts, files=(_describe(name, data), *files))


def finished_parts(
    folder: Location, units: Sequence[Unit], every: int, unreachable: float = 0.0
) -> dict[int, tuple[Part, ids.Hashes]]:
    """The parts of earlier attempts at this run that are whole and have as many rows as their unit, with a sample of their ids.

    They are read in full, once. `every` samples the ids; `unreachable` is the share of rows whose picture may be out of reach.
    """
    planned = {unit.index: unit.rows for unit in units}
    names = [info.base_name for info in folder.files(recursive=False)]
    there = [int(match.group(1)) for name in names if (match := re.fullmatch(r"part-(\d+)\.parquet", name))]
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda unit: _read_part(folder, unit, every), [unit for unit in there if unit in planned])
        found = [pair for pair in read if pair]
    return {
        part.unit: (part, hashes)
        for part, hashes in found
        if part.rows + part.rejects == planned[part.unit] and part.unreachable <= unreachable * planned[part.unit]
    }


def read_file(folder: Location, name: str) -> tuple[File, pq.ParquetFile]:
    """A file of a run as it lies there now. Raises StorageError, pyarrow.ArrowException."""
    data = pa.py_buffer((folder / name).read())
    return _describe(name, data), pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def _standing(folder: Location, unit: int, rows: int, answered: Mapping[str, Any]) -> Part | None:
    """The part of this unit where it is there and whole, and lacks no more pictures than the one with these counts; of a run that has its
    manifest already, as readers have it, in any case."""
    found = _read_part(folder, unit, every=1) if (folder / part_name(unit)).exists() else None
    part = found[0] if found else None
    if part is None or part.rows + part.rejects != rows:
        return None
    if part.unreachable > answered.get("unreachable", 0) and not (folder / MANIFEST).exists():
        return None
    return part


def _read_part(folder: Location, unit: int, every: int) -> tuple[Part, ids.Hashes] | None:
    """A finished unit and a sample of its ids, or None: not a whole part of ours, the unit is done again."""
    name = part_name(unit)
    try:
        labels, parquet = read_file(folder, name)
        counts = json.loads((parquet.metadata.metadata or {})[_COUNTS])
        read = [(labels, parquet), *([read_file(folder, f"{REJECTS}/{name}")] if counts["rejects"] else [])]
        part = Part(**counts, files=tuple(file for file, _ in read))
        own = (parquet.metadata.metadata or {}).get(_REJECTS, b"").decode()
        hashes = [ids.sample(parquet.read(columns=["id"]).column(0), every) for _, parquet in read]
    except (pa.ArrowException, StorageError, OSError, KeyError, ValueError, TypeError):
        return None
    total = sum(file.rows for file in part.files)
    whole = part.unit == unit and labels.rows == part.rows and total == part.rows + part.rejects
    if own and own != part.files[1].sha256:  # those of somebody else's labels
        return None
    return (part, np.concatenate(hashes)) if whole else None


def _parquet(table: pa.Table, metadata: Mapping[bytes, bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(dict(metadata))
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _describe(name: str, data: pa.Buffer) -> File:
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    return File(name, rows, data.size, hashlib.sha256(data).hexdigest())
