"""Footers are read by tasks where there are many files: what is found is the same, and a file takes few bytes of the driver."""

import hashlib
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from cataloger.data import footers
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.footers import CatalogFile
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import CatalogError
from cataloger.infra.storage import Location

Write = Callable[..., Path]


@pytest.fixture
def by_tasks(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files are many."""
    monkeypatch.setattr(footers, "MANY_FILES", 3)
    monkeypatch.setattr(footers, "FILES_PER_TASK", 2)


def test_the_fingerprint_says_of_each_file_its_name_size_time_and_row_groups(write: Write, by_tasks: None) -> None:
    """To the byte: ids of runs are made of it, and those that are published were."""
    digest = hashlib.sha256()
    for number in range(7):
        path = write(f"c/deep/{number}.parquet", id=[1], title=["t"])
        table = pa.table({"id": range(5), "title": ["boot"] * 5})
        pq.write_table(table, path, row_group_size=number or 5)
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number))
        groups = [number or 5] * (5 // (number or 5)) + [5 % (number or 5)]
        lengths = ", ".join(str(min(rows, 5)) for rows in groups if rows) + ("," if number in (0, 5, 6) else "")
        expected = (
            f"('/deep/{number}.parquet', {path.stat().st_size}, {1_700_000_000_123_456_789 + number}, ({lengths}))"
        )
        digest.update(expected.encode())
    assert open_catalog("c", "id", ("title",)).fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize("uri", ["c", "delta://t"])
def test_tasks_find_what_the_driver_finds(
    uri: str, write: Write, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        titles = pa.array(["tea", "boot"]).cast(pa.string() if number % 2 else pa.large_string())
        write(f"c/{number}.parquet", id=[number, 10 + number], title=titles, **({} if number % 3 else {"more": [1, 2]}))
        rows = pa.table({"id": [number, 10 + number], "title": ["tea", "boot"]})
        deltalake.write_deltalake("t", rows, mode="append")
    by_driver = open_catalog(uri, "id", ("title",))
    monkeypatch.setattr(footers, "MANY_FILES", 3)
    monkeypatch.setattr(footers, "FILES_PER_TASK", 2)
    by_tasks = open_catalog(uri, "id", ("title",))
    assert by_tasks == by_driver
    assert len(by_tasks.files) == 7
    assert len({str(schema) for schema in by_tasks.schemas}) == len(by_driver.schemas) == (4 if uri == "c" else 1)
    assert plan_units(by_tasks) == plan_units(by_driver)


def test_the_first_broken_file_is_named(write: Write, by_tasks: None) -> None:
    for number in range(9):
        write(f"c/{number}.parquet", id=[number], title=["tea"])
    for number in (5, 4, 8):
        Path(f"c/{number}.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        CatalogError,
        match=r"^catalog file /.*/c/4.parquet: not readable as Parquet: .*; replace the file or take it out",
    ):
        open_catalog("c", "id", ("title",))
    for number in (4, 5, 8):
        write(f"c/{number}.parquet", id=[number], title=["tea"])
    for number in (7, 5):
        write(f"c/{number}.parquet", id=[number], name=["tea"])
    with pytest.raises(CatalogError, match=r"^catalog file /.*/c/5.parquet: no column 'title'; it has id, name; "):
        open_catalog("c", "id", ("title",))


@pytest.mark.parametrize("rows", [10, 65_536])
def test_a_file_takes_less_than_800_bytes_of_the_driver(rows: int) -> None:
    """With its segment, and with a unit of its own where it fills one; as it comes back from a task."""
    count, schema = 5_000, pa.schema([("id", pa.string()), ("title", pa.string())])
    made = pickle.dumps(
        [
            CatalogFile(
                f"bucket/catalog/day=2026-11-27/part-{number:07d}-7e52c1f0.c000.snappy.parquet",
                40_000 + number,
                1_700_000_000_000_000_000 + number,
                (rows + number % 2,),
                (50_000 + number,),
                schema,
            )
            for number in range(count)
        ]
    )
    tracemalloc.start()
    files = tuple(pickle.loads(made))
    location = Location(pafs.LocalFileSystem(), "bucket/catalog", "bucket/catalog")
    reads = plan_reads(plan_units(Catalog(location, files, schema, ""), 65_537), 8)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(unit.rows for read in reads for unit in read.units) == sum(file.rows for file in files)
    assert kept < most < 800 * count
