"""What the driver does by itself in a night of up to 10^9 rows: plan, compare, commit, and verify, with everything but the forward pass.

The catalog and the parts are real files, each linked as often as it takes: all of their rows are read, and a disk of 100 GB is not
needed. Besides, catalogs of up to a million tiny files are planned, whose footers are read by tasks.

python benchmarks/driver.py
python benchmarks/driver.py --exponents --files 100000 1000000
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

import memory
from cataloger.config import VerifyConfig
from cataloger.data.catalog import open_catalog
from cataloger.data.units import Unit, plan_reads, plan_units
from cataloger.infra import runtime, spread
from cataloger.infra.storage import locate
from cataloger.publishing import nightly, pointer, sketches, snapshot, upkeep
from cataloger.publishing.parts import Part, part_name, write_part

ROWS_PER_FILE, UNITS_PER_FILE = 500_000, 8
MOST_LINKS = 10_000


@dataclass(frozen=True)
class Config:
    """What to measure."""

    exponents: tuple[int, ...] = (7, 8, 9)
    """Powers of ten."""
    files: tuple[int, ...] = (100_000, 1_000_000)
    """Of so many tiny files there are catalogs that are planned."""


def main() -> None:
    from yardsticks import report, workroom

    config = tyro.cli(Config)
    with workroom() as room:
        if config.exponents:
            parts = one_file(room)
            rows = [measure(room, 10**exponent, parts) for exponent in config.exponents]
            report("driver", "What the driver does by itself", rows)
        if config.files:
            report("files", "Catalogs of tiny files", [measure_files(room, files) for files in config.files])


def one_file(room: Path) -> list[Part]:
    """A file of the catalog, and the parts of its rows, labelled by a real run."""
    # Here, as the processes that are measured need no torch.
    import scale
    from yardsticks import run

    catalog = scale.write_titles(ROWS_PER_FILE, room)
    run(scale.tiny_bundle(room), catalog, room / "once")
    (labelled,) = (room / "once").glob("run=*")
    labels = pa.concat_tables(pq.read_table(part) for part in sorted(labelled.glob("part-*.parquet")))
    size = ROWS_PER_FILE // UNITS_PER_FILE
    none = labels.schema.empty_table()
    parts = []
    for unit in range(UNITS_PER_FILE):
        own = labels.slice(unit * size, size)
        answered = {"forwarded": size, "sketch": sketches.of(own.column("text_hash"))}
        parts.append(write_part(locate(str(room / "parts")), unit, own, none, answered, {}))
    return parts


def measure(room: Path, rows: int, parts: list[Part]) -> dict[str, object]:
    files = rows // ROWS_PER_FILE
    catalog, output = room / f"catalog-of-{rows}", room / f"labels-of-{rows}"
    catalog.mkdir()
    (file,) = (room / f"catalog-{ROWS_PER_FILE}").glob("*.parquet")
    for number in range(files):
        os.link(file, catalog / f"part-{number:05d}.parquet")
    for name in ("before", "now"):
        (output / f"run={name}").mkdir(parents=True)
        for unit in range(files * UNITS_PER_FILE):
            os.link(room / "parts" / part_name(unit % UNITS_PER_FILE), output / f"run={name}" / part_name(unit))
    found: dict[str, object] = {"rows": f"{rows:,}"}
    for name, step in [("plan", plan), ("commit", commit), ("compare", compare), ("verify", verify)]:
        took, peak, said = alone(step, catalog, output, parts)
        found |= {f"{name}, s": took, f"{name}, peak MiB": peak} | said
    return found


def measure_files(room: Path, files: int) -> dict[str, object]:
    """What it takes to plan a catalog of so many files of ten rows."""
    catalog = room / f"files-{files}"
    catalog.mkdir()
    links: list[Path] = []
    for number in range(files):
        if number % MOST_LINKS == 0:  # a file has room for so many names only
            links.append(catalog / f"part-{number:07d}-c000.snappy.parquet")
            pq.write_table(pa.table({"id": range(10), "title": [f"shoe {i}" for i in range(10)]}), links[-1])
        else:
            os.link(links[-1], catalog / f"part-{number:07d}-c000.snappy.parquet")
    return {"files": f"{files:,}"} | alone(plan_files, catalog)[2]


def alone(step: Callable[..., dict[str, object]], *given: Any) -> tuple[float, float, dict[str, object]]:
    """(seconds, peak memory of its process in MiB, what it found)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (step, given))


def _timed(step: Callable[..., dict[str, object]], given: Any) -> tuple[float, float, dict[str, object]]:
    with memory.watched(os.getpid(), every=0.05) as peak:
        started = time.perf_counter()
        found = step(*given)
        took = time.perf_counter() - started
    return took, peak.driver / 1024, found


def units_of(catalog: Path) -> list[Unit]:
    return plan_units(open_catalog(str(catalog), "id", ("title",)))


def plan(catalog: Path, output: Path, parts: list[Part]) -> dict[str, object]:
    units = units_of(catalog)
    return {"units": float(len(units)), "reading tasks of eight units": float(len(plan_reads(units, 8)))}


def plan_files(catalog: Path) -> dict[str, object]:
    """Without Ray's start, which the night has in any case."""
    with runtime.session():
        before, started, cpu = memory.heap(os.getpid()), time.perf_counter(), time.process_time()
        with memory.watched(os.getpid(), every=0.05) as peak:
            listed = len(locate(str(catalog)).files())
            listing = time.perf_counter() - started
            opened = open_catalog(str(catalog), "id", ("title",))
            opening = time.perf_counter() - started - listing
            reads = plan_reads(plan_units(opened), 8)
        return {
            "listing, s": listing,
            "listing and footers, s": opening,
            "units and reads, s": time.perf_counter() - started - listing - opening,
            "all of it, s of the driver's CPU": time.process_time() - cpu,
            "driver, peak MiB": peak.driver / 1024,
            "bytes per file": (peak.driver - before) * 1024 / listed,
            "segments": sum(len(unit.segments) for read in reads for unit in read.units),
        }


def commit(catalog: Path, output: Path, parts: list[Part]) -> dict[str, object]:
    """Of yesterday's run and of tonight's."""
    units = units_of(catalog)
    about = {
        "catalog": str(catalog),
        "catalog_fingerprint": open_catalog(str(catalog), "id", ("title",)).fingerprint,
        "model": "m",
        "model_digest": "d",
        "config": {"id_column": "id", "alternatives": 3},
    }
    place = locate(str(output))
    for name in ("before", "now"):
        made = {unit.index: _as(parts[unit.index % UNITS_PER_FILE], unit.index) for unit in units}
        folder = snapshot.run_folder(place, name)
        sketches.keep(folder, made)
        snapshot.write_manifest(place, name, units, made, about)
        pointer.publish(place, name, pointer.look(place))
    own = output / "run=now"
    return {
        "manifest, MB": (own / snapshot.MANIFEST).stat().st_size / 1e6,
        "sketches, MB": (own / sketches.SKETCHES).stat().st_size / 1e6,
    }


def _as(part: Part, unit: int) -> Part:
    return replace(part, unit=unit, files=tuple(replace(file, name=part_name(unit)) for file in part.files))


def compare(catalog: Path, output: Path, parts: list[Part]) -> dict[str, object]:
    place = locate(str(output))
    before = snapshot.read_manifest(place, "before")
    with runtime.session():
        started = time.perf_counter()
        nightly.look(place, "now", before["units"], before["rows"], (), before, "d", spread.each)
        return {"compare without Ray's start, s": time.perf_counter() - started}


def verify(catalog: Path, output: Path, parts: list[Part]) -> dict[str, object]:
    assert not upkeep.verify(VerifyConfig(output=str(output))).ids_unchecked
    return {}


if __name__ == "__main__":
    main()
