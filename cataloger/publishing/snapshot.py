"""A run's folder: parts and manifest.

    OUTPUT/run=<id>/part-00000.parquet …     one part per unit, immutable
    OUTPUT/run=<id>/_rejects/…parquet        rows that could not be labelled: id, reason
    OUTPUT/run=<id>/_report.html             a page for people
    OUTPUT/run=<id>/_manifest.json           written when every unit is complete

A unit is finished when its part is there: rejects are written before it, and its footer says how many there are.
The first part of a unit stands: whoever comes second, be it a retry or what is left of a killed driver, adopts it.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger import strict
from cataloger.data import ids
from cataloger.data.units import MAX_UNIT_ROWS, Unit
from cataloger.errors import ConflictError, PublishError, StorageError
from cataloger.infra.storage import Location

MANIFEST = "_manifest.json"
REJECTS = "_rejects"
REPORT = "_report.html"
_COUNTS = b"cataloger.counts"
AT_ONCE = 8
Read = TypeVar("Read")


@dataclass(frozen=True)
class File:
    """A file of a run as it was written; `name` is below the run's folder."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
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

    @classmethod
    def from_dict(cls, part: Mapping[str, Any]) -> "Part":
        return cls(**{**part, "files": tuple(File(**file) for file in part["files"])})


@dataclass(frozen=True)
class Settings:
    """Of the flags of a run, those that are needed to read it again."""

    id_column: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest says at least: the files are the parts of its run, and their rows add up.

    So nobody follows it out of the run's folder, or makes room for more than it lists. Raises ValueError.
    """

    run: str
    catalog: str
    catalog_fingerprint: str
    model: str
    model_digest: str
    config: Settings
    rows: int
    labelled: int
    rejects: int
    units: int
    created: str
    files: tuple[File, ...]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        parts = {part_name(unit) for unit in range(min(self.units, len(names)))}
        missing, others = parts - set(names), set(names) - parts - {f"{REJECTS}/{name}" for name in parts}
        if len(parts) != self.units or missing or others or len(names) != len(set(names)):
            raise ValueError("files: are not the parts of its units")
        if not all(0 <= file.rows <= MAX_UNIT_ROWS for file in self.files):
            raise ValueError("files: have more rows than a unit, or less than none")
        labelled = sum(file.rows for file in self.files if file.name in parts)
        rejects = sum(file.rows for file in self.files) - labelled
        for name, rows in (("labelled", labelled), ("rejects", rejects), ("rows", labelled + rejects)):
            if getattr(self, name) != rows:
                raise ValueError(f"{name}: its files have {rows:,}")


def part_name(unit: int) -> str:
    return f"part-{unit:05d}.parquet"


def run_id(*decisive: Any) -> str:
    """The id of the run that all of these decide: the same inputs resume it, any change is another run."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def run_folder(output: Location, run: str) -> Location:
    return output / f"run={run}"


def write_part(
    folder: Location,
    unit: int,
    labels: pa.Table,
    rejects: pa.Table,
    answered: Mapping[str, Any],
    about: Mapping[str, str],
) -> Part:
    """Write rejects, then labels, unless the unit is finished already; each file appears whole or not at all.

    Finished is a part that lacks no more pictures than this one. `answered` are the counts of `Part` by their name. `about` goes to the Parquet metadata: a function of the run id, so that a part's bytes are one too. Raises StorageError.
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
    elif (stale := folder / REJECTS / name).exists():
        stale.delete()  # of a part that this one replaces
    data = _parquet(labels, metadata)
    try:
        (folder / name).replace(data, None)
    except ConflictError:
        if standing := _standing(folder, unit, rows, answered):
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


def check_complete(run: str, units: Sequence[Unit], parts: Mapping[int, Part]) -> None:
    """Rows in = labels + rejects, for every unit. Raises PublishError naming the first unit that does not add up."""
    for unit in units:
        part = parts.get(unit.index)
        if part is None:
            raise PublishError(f"run {run}: unit {unit.index} has no part; run the same command again to finish it")
        if sum(file.rows for file in part.files) != unit.rows or part.rows + part.rejects != unit.rows:
            raise PublishError(
                f"run {run}: unit {unit.index} has {unit.rows} rows but {part.rows} labels and {part.rejects} rejects; "
                "not published"
            )


def write_manifest(
    output: Location, run: str, units: Sequence[Unit], parts: Mapping[int, Part], about: Mapping[str, Any]
) -> None:
    """Declare a run complete: what it was made from, and every file with its rows, size and checksum.

    Whoever comes second leaves the manifest as it is. Raises PublishError when a unit or a file is not as it should be.
    """
    check_complete(run, units, parts)
    folder = run_folder(output, run)
    files = [file for _, part in sorted(parts.items()) for file in part.files]
    sizes = {str(info.path).removeprefix(folder.path + "/"): info.size for info in folder.files()}
    for file in files:
        if sizes.get(file.name) != file.bytes:
            raise PublishError(f"run {run}: {file.name} was removed or changed meanwhile; run the same command again")
    manifest = {
        "run": run,
        **about,
        "rows": sum(unit.rows for unit in units),
        "labelled": sum(part.rows for part in parts.values()),
        "rejects": sum(part.rejects for part in parts.values()),
        "units": len(units),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [asdict(file) for file in files],
    }
    try:
        (folder / MANIFEST).replace(json.dumps(manifest, ensure_ascii=False, indent=1).encode(), None)
    except ConflictError:
        return  # another driver of the same command was first


def read_file(folder: Location, name: str) -> tuple[File, pq.ParquetFile]:
    """A file of a run as it lies there now. Raises StorageError, pyarrow.ArrowException."""
    data = pa.py_buffer((folder / name).read())
    return _describe(name, data), pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)


def label_files(folder: Location, units: int) -> list[Location]:
    """The files that readers of a complete run of so many units read."""
    return [folder / part_name(unit) for unit in range(units)]


def each(files: Sequence[Location], read: Callable[[Location], Read]) -> Iterator[Read]:
    """What `read` makes of each file, in their order; a few files are read at a time, and no more are held than these."""
    ahead: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for file in files:
            ahead.append(pool.submit(read, file))
            if len(ahead) == AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def read_manifest(output: Location, run: str) -> dict[str, Any]:
    """All that a run's manifest says, of which `Manifest` holds. Raises StorageError when it is damaged."""
    location = run_folder(output, run) / MANIFEST
    manifest = read_record(location, Manifest)
    if manifest["run"] != run:
        raise StorageError(damaged(location, "run: is not the run it lies in"))
    return manifest


def inputs_of(output: Location, run: str) -> str:
    """What decided a complete run: the id that the same command would give it again. Raises StorageError."""
    return str(read_manifest(output, run).get("inputs", run))


def is_complete(output: Location, run: str) -> bool:
    """Whether the run has its manifest, which is written last."""
    return (run_folder(output, run) / MANIFEST).exists()


def read_record(location: Location, kind: type[Any]) -> dict[str, Any]:
    """A JSON file that is a `kind` and may say more. Raises StorageError when it cannot be read, or is damaged."""
    data = location.read()
    try:
        strict.parse(kind, data)
        return strict.parse(dict[str, Any], data)
    except ValueError as error:
        raise StorageError(damaged(location, str(error))) from error


def damaged(location: Location, why: str) -> str:
    return f"{location}: {why}; remove it and publish a run again: python jobs/publish.py --run ID"


def _describe(name: str, data: pa.Buffer) -> File:
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    return File(name, rows, data.size, hashlib.sha256(data).hexdigest())


def _parquet(table: pa.Table, metadata: Mapping[bytes, bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(dict(metadata))
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _standing(folder: Location, unit: int, rows: int, answered: Mapping[str, Any]) -> Part | None:
    """The part of this unit where it is there and whole, and lacks no more pictures than the one with these counts."""
    found = _read_part(folder, unit, every=1) if (folder / part_name(unit)).exists() else None
    part = found[0] if found else None
    if part is None or part.rows + part.rejects != rows or part.unreachable > answered.get("unreachable", 0):
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
        hashes = [ids.sample(parquet.read(columns=["id"]).column(0), every) for _, parquet in read]
    except (pa.ArrowException, StorageError, OSError, KeyError, ValueError, TypeError):
        return None
    total = sum(file.rows for file in part.files)
    whole = part.unit == unit and labels.rows == part.rows and total == part.rows + part.rejects
    return (part, np.concatenate(hashes)) if whole else None
