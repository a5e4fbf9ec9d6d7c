"""Looking after an output folder: list its runs, publish another one, remove old ones, verify the published one."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cataloger.config import PublishConfig, VerifyConfig
from cataloger.data import ids
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import CatalogError, ConfigError, PublishError, ResourceError, StorageError
from cataloger.infra.storage import PROBE, WRITING, Location, check_reachable, locate
from cataloger.publishing import decided, delivery, pointer, sketches, snapshot
from cataloger.publishing.parts import REJECTS, part_name, read_file


@dataclass(frozen=True)
class Run:
    """A run folder; one without a manifest is unfinished and has no counts."""

    run: str
    published: bool
    complete: bool
    created: str = ""
    model: str = ""
    rows: int = 0
    rejects: int = 0


@dataclass(frozen=True)
class Verification:
    """What was checked of the published run."""

    run: str
    files: int
    rows: int
    ids_unchecked: str = ""
    """Why the ids could not be compared with the catalog's; nothing where they were."""
    pins: int = 0
    """Pins of products that are in the catalog, all of which are in the labels."""
    table: str | None = None
    """The table that has the same labels."""


def publish(config: PublishConfig) -> list[Run]:
    """Publish the named run and prune, as the configuration says; the runs that are there then. Raises CatalogerError."""
    output = locate(config.output)
    check_reachable(output)
    if config.prune is not None and config.prune < 1:
        raise ConfigError(f"--prune {config.prune}: keep at least 1 run")
    if config.run is not None:
        seen = pointer.look(output)
        if config.run not in (known := [run.run for run in list_runs(output) if run.complete]):
            raise ConfigError(
                f"run {config.run}: not a complete run of {output}; complete are: {', '.join(known) or 'none'}"
            )
        if config.run != seen.run:
            pointer.replace(output, config.run, seen)
        # Where a table follows the labels, it follows this decision as well.
        delivery.deliver(output)
    if config.prune is not None:
        prune(output, config.prune)
    runs = list_runs(output)
    if not runs:
        raise StorageError(f"{output}: holds no runs; --output takes the folder that jobs/label.py writes to")
    return runs


def list_runs(output: Location) -> list[Run]:
    """Every run folder, the newest first, unfinished ones last."""
    current, dead = pointer.look(output).run, pointer.tombstones(output)
    names = [name.removeprefix("run=") for name in output.folders() if name.startswith("run=")]
    runs = []
    for name in names:
        if not snapshot.is_complete(output, name) or (name in dead and name != current):
            runs.append(Run(name, published=False, complete=False))
            continue
        about = snapshot.read_manifest(output, name)
        runs.append(Run(name, name == current, True, about["created"], about["model"], about["rows"], about["rejects"]))
    return sorted(runs, key=lambda run: (run.complete, run.created, run.run), reverse=True)


def prune(output: Location, keep: int) -> None:
    """Remove all complete runs but the newest `keep`, every unfinished run and every file that is no part of a run.

    The published run always stays. A run that is being made counts as unfinished: its job then ends with a sentence and
    nothing else is harmed, but prune when no job is running. Nothing is removed before the first publication.
    """
    while (seen := pointer.look(output)).run is not None:
        runs = list_runs(output)
        complete = [run for run in runs if run.complete]
        doomed = [run for run in runs if not run.complete] + complete[keep:]
        if pointer.prune(output, [run.run for run in doomed if run.run != seen.run], seen):
            break
    for info in output.files():
        if info.base_name.startswith((WRITING, PROBE)):
            Location(output.filesystem, info.path, info.path).delete()
    output.abort_uploads()


def verify(config: VerifyConfig) -> Verification:
    """Re-read the published run against its manifest and its pins, and its ids against the catalog. Raises PublishError, StorageError.

    Ids are compared unit by unit, labels and rejects together, when the catalog is still the one that was labelled.
    """
    output = locate(config.output)
    check_reachable(output)
    seen = pointer.look(output)
    manifest = pointer.published(output, seen)
    if manifest is None:
        raise StorageError(f"{output}: nothing is published there")
    run = manifest["run"]
    folder = snapshot.run_folder(output, run)
    with ThreadPoolExecutor(8) as pool:
        problems = [problem for problem in pool.map(lambda entry: _check(folder, entry), manifest["files"]) if problem]
    # What a killed writer left aside is no part of the run: readers skip it, pruning removes it.
    there = (info for info in folder.files() if not info.base_name.startswith((WRITING, PROBE)))
    present = {info.path.removeprefix(folder.path + "/") for info in there}
    listed = {entry["name"] for entry in manifest["files"]}
    listed |= {snapshot.MANIFEST, snapshot.REPORT, sketches.SKETCHES, decided.PINS, decided.RULES}
    problems += [f"{name}: not in the manifest" for name in sorted(present - listed)]
    unchecked = ""
    if not problems:
        problems, unchecked = _check_ids(manifest, folder)
        problems += decided.problems(manifest, folder)
        if seen.table:
            problems += filter(None, [delivery.problem(seen.table, run, manifest["labelled"])])
    if problems:
        raise PublishError(f"run {run} in {output}: {'; '.join(problems[:5])} ({len(problems)} problems in all)")
    people = manifest.get("decisions") or {"pins": 0, "unknown": 0}
    pins = people["pins"] - people["unknown"]
    return Verification(run, len(manifest["files"]), manifest["rows"], unchecked, pins, seen.table)


def _check(folder: Location, entry: dict[str, Any]) -> str | None:
    try:
        found = asdict(read_file(folder, entry["name"])[0])
    except (StorageError, pa.ArrowException, OSError) as error:
        return f"{entry['name']}: {str(error).splitlines()[0]}"
    wrong = [key for key in ("bytes", "sha256", "rows") if found[key] != entry[key]]
    return f"{entry['name']}: {', '.join(wrong)} differ from the manifest" if wrong else None


def _check_ids(manifest: dict[str, Any], folder: Location) -> tuple[list[str], str]:
    """(what is wrong with them, why they could not be compared)"""
    settings = manifest["config"]
    try:
        catalog = open_catalog(manifest["catalog"], settings["id_column"], ())
    # No package for a table, or no Ray to read the footers of many files.
    except (CatalogError, StorageError, ConfigError, ResourceError) as error:
        return [], str(error)
    if catalog.fingerprint != manifest["catalog_fingerprint"]:
        return [], "the catalog has changed since"
    rows = {entry["name"]: entry["rows"] for entry in manifest["files"]}
    names = [part_name(unit) for unit in range(manifest["units"])]
    files = [[file for file in (name, f"{REJECTS}/{name}") if file in rows] for name in names]
    # By the rows that the run itself counted: how it was cut may have been another version's way.
    planned = _cut(_ids_of(catalog), [sum(rows[file] for file in of_unit) for of_unit in files])
    written = snapshot.each(files, lambda of_unit: _sorted(_hashes(folder, file) for file in of_unit))
    problems = [
        f"unit {unit}: its ids are not those of the catalog"
        for unit, (ours, theirs) in enumerate(zip(written, planned, strict=False))
        if not np.array_equal(ours, _sorted([theirs]))
    ]
    if len(next(planned)):
        problems.append("the catalog has more rows than the run")
    return problems, ""


def _ids_of(catalog: Catalog) -> Iterator[ids.Hashes]:
    """All ids in the catalog's order, as the labels have them, by their hashes of 64 bits."""
    for read in plan_reads(plan_units(catalog)):
        for _, table in read_units(catalog.location.filesystem, read.units, catalog.schema):
            yield ids.hash_ids(ids.written(table.column(0))[0])


def _hashes(folder: Location, file: str) -> ids.Hashes:
    return ids.hash_ids(read_file(folder, file)[1].read(columns=["id"]).column(0))


def _cut(pieces: Iterator[ids.Hashes], lengths: Sequence[int]) -> Iterator[ids.Hashes]:
    """The same numbers in pieces of these lengths, and in one more what comes behind them."""
    kept = np.empty(0, np.uint64)
    for length in lengths:
        while len(kept) < length and (more := next(pieces, None)) is not None:
            kept = np.concatenate([kept, more])
        yield kept[:length]
        kept = kept[length:]
    yield kept if len(kept) else next(pieces, kept)


def _sorted(pieces: Iterable[ids.Hashes]) -> ids.Hashes:
    return np.sort(np.concatenate([np.empty(0, np.uint64), *pieces]))
