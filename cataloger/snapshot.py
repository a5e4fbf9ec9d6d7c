"""The published layout: run folder, parts, manifest, pointer.

    OUTPUT/run=<id>/part-00000.parquet …     one part per unit, immutable
    OUTPUT/run=<id>/_rejects/…parquet        rows that could not be labelled: id, reason
    OUTPUT/run=<id>/_manifest.json           written when every unit is complete
    OUTPUT/_latest.json                      names the published run; the only thing that ever changes

A unit is finished when its part is there: rejects are written before it, and its footer says how many there are.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.catalog import Unit
from cataloger.errors import ConflictError, PublishError, StorageError
from cataloger.storage import Location

MANIFEST = "_manifest.json"
LATEST = "_latest.json"
REJECTS = "_rejects"
_COUNTS = b"cataloger.counts"


@dataclass(frozen=True)
class Part:
    """What the footer of a part says of its unit; `forwarded` counts distinct texts that went through the model."""

    unit: int
    rows: int
    rejects: int
    forwarded: int

    @property
    def name(self) -> str:
        return f"part-{self.unit:05d}.parquet"

    @property
    def files(self) -> list[str]:
        """The part, and the file of its rejects where it has any, below the run's folder."""
        return [self.name, f"{REJECTS}/{self.name}"] if self.rejects else [self.name]


def run_id(*decisive: Any) -> str:
    """The id of the run that all of these decide: the same inputs resume it, any change is another run."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def run_folder(output: Location, run: str) -> Location:
    return output / f"run={run}"


def write_part(folder: Location, part: Part, labels: pa.Table, rejects: pa.Table, about: Mapping[str, str]) -> None:
    """Write rejects, then labels; each file appears whole or not at all. Raises StorageError."""
    metadata = {f"cataloger.{key}".encode(): value.encode() for key, value in about.items()}
    metadata[_COUNTS] = json.dumps(asdict(part)).encode()
    if len(rejects):
        (folder / REJECTS / part.name).write(_parquet(rejects, metadata))
    (folder / part.name).write(_parquet(labels, metadata))


def finished_parts(folder: Location, units: Sequence[Unit]) -> dict[int, Part]:
    """The parts of earlier attempts at this run that are whole and have as many rows as their unit."""
    planned = {unit.index: unit.rows for unit in units}
    names = [info.base_name for info in folder.files(recursive=False)]
    names = [name for name in names if re.fullmatch(r"part-\d+\.parquet", name)]
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda name: _read_footer(folder / name), names))
    return {part.unit: part for part in parts if part and planned.get(part.unit) == part.rows + part.rejects}


def check_complete(run: str, units: Sequence[Unit], parts: Mapping[int, Part]) -> None:
    """Rows in = labels + rejects, for every unit. Raises PublishError naming the first unit that does not add up."""
    for unit in units:
        part = parts.get(unit.index)
        if part is None:
            raise PublishError(f"run {run}: unit {unit.index} has no part; run the same command again to finish it")
        if part.rows + part.rejects != unit.rows:
            raise PublishError(
                f"run {run}: unit {unit.index} has {unit.rows} rows but {part.rows} labels and {part.rejects} rejects; "
                "not published"
            )


def write_manifest(
    output: Location, run: str, units: Sequence[Unit], parts: Mapping[int, Part], about: Mapping[str, Any]
) -> None:
    """Declare a run complete: what it was made from, and every file with its rows, size and checksum."""
    check_complete(run, units, parts)
    folder = run_folder(output, run)
    names = [name for _, part in sorted(parts.items()) for name in part.files]
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda name: describe_file(folder, name), names))
    manifest = {
        "run": run,
        **about,
        "rows": sum(unit.rows for unit in units),
        "labelled": sum(part.rows for part in parts.values()),
        "rejects": sum(part.rejects for part in parts.values()),
        "units": len(units),
        "created": _now(),
        "files": files,
    }
    (folder / MANIFEST).write(json.dumps(manifest, ensure_ascii=False, indent=1).encode())


def describe_file(folder: Location, name: str) -> dict[str, Any]:
    """Name, rows, bytes and SHA-256 of a part as it lies there now. Raises StorageError, pyarrow.ArrowInvalid."""
    data = (folder / name).read()
    rows = pq.read_metadata(pa.BufferReader(data)).num_rows
    return {"name": name, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def publish(output: Location, run: str, expected: str | None) -> None:
    """Point readers at a complete run, in one atomic replace of the pointer that was at version `expected`.

    Raises PublishError when another run was published since.
    """
    pointer = {"run": run, "path": f"run={run}", "manifest": f"run={run}/{MANIFEST}", "published": _now()}
    try:
        (output / LATEST).replace(json.dumps(pointer, indent=1).encode(), expected)
    except ConflictError as error:
        other = (published(output) or {}).get("run")
        raise PublishError(
            f"run {run}: run {other} was published by somebody else while this one was being made; this one is complete "
            "and not published: run the same command again to publish it"
        ) from error


def pointer_version(output: Location) -> str | None:
    """To be taken before a run is planned, and given to `publish`."""
    return (output / LATEST).version()


def published(output: Location) -> dict[str, Any] | None:
    """The manifest of the published run, or None before the first one. Raises StorageError when it is damaged."""
    if not (output / LATEST).exists():
        return None
    return read_manifest(output, str(_json(output / LATEST)["run"]))


def read_manifest(output: Location, run: str) -> dict[str, Any]:
    return _json(run_folder(output, run) / MANIFEST)


def is_complete(output: Location, run: str) -> bool:
    """Whether the run has its manifest, which is written last."""
    return (run_folder(output, run) / MANIFEST).exists()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(location: Location) -> dict[str, Any]:
    try:
        return dict(json.loads(location.read()))
    except ValueError as error:
        raise StorageError(f"{location}: not valid JSON; publish a run again to replace it") from error


def _parquet(table: pa.Table, metadata: Mapping[bytes, bytes]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(dict(metadata)), sink, compression="zstd")
    buffer = sink.getvalue()
    written = pq.read_metadata(pa.BufferReader(buffer)).num_rows
    if written != len(table):
        raise StorageError(f"a part of {len(table)} rows was encoded as {written}; not written")
    return buffer


def _read_footer(location: Location) -> Part | None:
    try:
        metadata = pq.read_metadata(location.path, filesystem=location.filesystem)
        part = Part(**json.loads((metadata.metadata or {})[_COUNTS]))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError):
        return None  # not a whole part of ours: its unit is done again
    return part if part.rows == metadata.num_rows else None
