"""A run's folder and its manifest; `parts` has the files that lie there.

OUTPUT/run=<id>/part-00000.parquet …     one part per unit, immutable
OUTPUT/run=<id>/_rejects/…parquet        rows that could not be labelled: id, reason
OUTPUT/run=<id>/_report.html             a page for people
OUTPUT/run=<id>/_pins.parquet, _rules.yaml   what people decided, where they did (`decided`)
OUTPUT/run=<id>/_sketches.arrow          where its texts lie (`sketches`)
OUTPUT/run=<id>/_manifest.json           written when every unit is complete
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from cataloger import strict
from cataloger.data.units import MAX_UNIT_ROWS, Unit
from cataloger.errors import ConflictError, PublishError, StorageError
from cataloger.infra.storage import Location
from cataloger.publishing.parts import MANIFEST as MANIFEST
from cataloger.publishing.parts import REJECTS, File, Part, part_name

REPORT = "_report.html"
AT_ONCE = 8
Item = TypeVar("Item")
Read = TypeVar("Read")


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


def run_id(*decisive: Any) -> str:
    """The id of the run that all of these decide: the same inputs resume it, any change is another run."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def run_folder(output: Location, run: str) -> Location:
    return output / f"run={run}"


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


def label_files(folder: Location, units: int) -> list[Location]:
    """The files that readers of a complete run of so many units read."""
    return [folder / part_name(unit) for unit in range(units)]


def each(files: Iterable[Item], read: Callable[[Item], Read]) -> Iterator[Read]:
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
