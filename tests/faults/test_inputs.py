"""Promises about the input: odd files are read or named, a changed one is noticed, nothing is lost or read twice."""

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs
from test_bad_rows import published

from cataloger.data import units
from cataloger.data.catalog import open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import CatalogError
from cataloger.labeling import job as labeling

pytestmark = pytest.mark.faults
Job = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def label_flags(bundle: Path, *more: object) -> tuple[object, ...]:
    return ("--catalog", "c", "--output", "labels", "--model", bundle, "--text-columns", "title", *more)


def read_all(folder: str) -> pa.Table:
    catalog = open_catalog(folder, "id", ["title"])
    return pa.concat_tables(
        [table for _, table in read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema)]
    )


def test_files_whose_columns_differ_in_type_make_one_output(
    ray_session: None, write: Write, job: Job, bundle: Path
) -> None:
    """A title that turned into a number, an id that grew, a column that came and one that went."""
    write("c/a.parquet", id=pa.array([1, 2], pa.int32()), title=["tea", "boot"], brand=["x", "y"])
    write("c/b.parquet", id=pa.array([3, 2**40], pa.int64()), title=pa.array([7, 8], pa.int64()))
    write("c/c.parquet", id=pa.array([5], pa.int16()), title=pa.array(["shoe"]).dictionary_encode(), colour=["red"])
    write("c/d.parquet", id=pa.array([6], pa.int32()), title=pa.nulls(1))
    code, _, err = job("label", *label_flags(bundle, "--max-reject-fraction", 0.2))
    assert code == 0, err
    manifest, labels = published()
    assert labels.column("id").to_pylist() == [1, 2, 3, 2**40, 5]
    assert labels.schema.field("id").type == pa.int64()
    assert manifest["rejects"] == 1
    assert read_all("c").column("title").to_pylist() == ["tea", "boot", "7", "8", "shoe", None]
    assert job("verify", "--output", "labels")[0] == 0


def test_a_file_without_a_named_column_or_with_ids_of_another_kind_is_named(
    write: Write, job: Job, bundle: Path
) -> None:
    write("c/a.parquet", id=[1], title=["tea"])
    write("c/b.parquet", id=[2], name=["boot"])
    code, _, err = job("label", *label_flags(bundle))
    assert code == 2
    assert "b.parquet: no column 'title'; it has id, name" in err
    write("c/b.parquet", id=["two"], title=["boot"])
    code, _, err = job("label", *label_flags(bundle))
    assert code == 2
    assert "b.parquet: column 'id' is string, but int64 in" in err


def test_a_file_replaced_while_the_run_is_going_stops_it_and_the_same_command_labels_the_new_catalog(
    ray_session: None, write: Write, job: Job, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("c/a.parquet", id=[1, 2], title=["tea", "boot"])
    write("new.parquet", id=[1, 2], title=["ink", "hats"])
    plan = labeling.plan_units

    def plan_and_replace(*arguments: object) -> object:
        units = plan(*arguments)  # type: ignore[arg-type]
        os.replace("new.parquet", "c/a.parquet")
        return units

    monkeypatch.setattr(labeling, "plan_units", plan_and_replace)
    code, _, err = job("label", *label_flags(bundle))
    assert code == 2, err
    assert "a.parquet: was replaced while the run was going; run the same command again" in err
    assert not Path("labels/_latest.json").exists()
    monkeypatch.setattr(labeling, "plan_units", plan)
    code, _, err = job("label", *label_flags(bundle))
    assert code == 0, err
    assert published()[0]["labelled"] == 2


def test_a_removed_file_is_named(write: Write) -> None:
    write("c/a.parquet", id=[1], title=["tea"])
    catalog = open_catalog("c", "id", ["title"])
    Path("c/a.parquet").unlink()
    with pytest.raises(CatalogError, match=r"a.parquet: was removed while the run was going; run the same command"):
        list(read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema))


def test_flipped_bits_and_lost_ends_never_change_the_number_of_rows_unnoticed(write: Write) -> None:
    """200 seeded damages: each is refused with the file's name, or harmless: all rows are there."""
    rng = np.random.default_rng(0)
    titles = [f"product {number}" for number in rng.integers(1 << 40, size=3_000)]
    path = write("c/a.parquet", id=range(3_000), title=titles)
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, row_group_size=1_000)
    whole, choose, refused = path.read_bytes(), random.Random(1), 0
    for damage in range(200):
        data = bytearray(whole)
        if damage % 4:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        else:
            del data[choose.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            table = read_all("c")
        except CatalogError as error:
            refused += "a.parquet" in str(error)
        else:
            assert len(table) == 3_000
            assert table.column("title").to_pylist() == titles, "with checksums no bit of a page flips unnoticed"
    assert refused > 150


def test_one_huge_row_group_is_cut_into_units(write: Write) -> None:
    rows = 300_000
    path = write("c/a.parquet", id=range(rows), title=[f"t{i}" for i in range(rows)])
    pq.write_table(pq.read_table(path), path, row_group_size=rows)
    catalog = open_catalog("c", "id", ["title"])
    assert catalog.files[0].row_groups == (rows,)
    units = plan_units(catalog)
    assert max(unit.rows for unit in units) <= 65_536
    assert read_all("c").column("id").to_pylist() == list(range(rows))


def test_a_row_group_that_many_units_share_is_read_once(write: Write) -> None:
    rows = 300_000
    path = write("c/a.parquet", id=range(rows), title=[f"title {i * 7919 % 100_003}" for i in range(rows)])
    pq.write_table(pq.read_table(path), path, row_group_size=rows)
    catalog, read = open_catalog("c", "id", ["title"]), 0

    class Counting(LocalFileSystem):  # type: ignore[misc]
        def _open(self, path: str, mode: str = "rb", **more: object) -> object:
            file = super()._open(path, mode, **more)
            whole = file.f.read

            def counted(size: int = -1) -> bytes:
                nonlocal read
                data = whole(size)
                read += len(data)
                return data

            file.read = counted
            return file

    planned = plan_units(catalog)
    assert len(planned) == 16
    (together,) = plan_reads(planned)
    counting = pafs.PyFileSystem(pafs.FSSpecHandler(Counting()))
    tables = {unit.index: table for unit, table in read_units(counting, together.units, catalog.schema)}
    assert pa.concat_tables(tables.values()).column("id").to_pylist() == list(range(rows))
    assert 0.9 < read / path.stat().st_size < 1.1
    some = [planned[3], planned[4], planned[9]]
    resumed = [table.column("id").to_pylist() for _, table in read_units(counting, some, catalog.schema)]
    assert resumed == [tables[unit.index].column("id").to_pylist() for unit in some], "units that are left, with gaps"


def test_units_are_cut_by_bytes_where_rows_are_large(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MAX_UNIT_BYTES", 1_000_000)
    small, large = [f"t{i}" for i in range(50_000)], ["x" * 400_000 + str(i) for i in range(5)]
    write("c/a.parquet", id=range(50_000), title=small)
    write("c/b.parquet", id=range(5), title=large, unread=["y" * 900_000] * 5)
    write("c/c.parquet", id=range(3), title=["z" * 2_000_000] * 3)
    catalog = open_catalog("c", "id", ["title"])
    found = plan_units(catalog)
    assert sum(unit.rows for unit in found) == catalog.rows
    of_b = [unit.rows for unit in found if unit.segments[-1].path.endswith("b.parquet")]
    assert of_b == [2, 2, 1], "what is not read does not count"
    assert read_all("c").column("title").to_pylist() == [*small, *large, *["z" * 2_000_000] * 3]


@pytest.mark.slow
def test_more_text_than_a_string_array_holds_is_labelled(
    ray_session: None, working_folder: Path, job: Job, bundle: Path
) -> None:
    """205 products of 10 MB, more than 2 GiB, in one row group."""
    Path("c").mkdir()
    with pq.ParquetWriter("c/a.parquet", pa.schema({"id": pa.int64(), "title": pa.large_string()})) as file:
        titles = pa.chunked_array([pa.array([f"{i} " + "shoe " * 2_100_000], pa.large_string()) for i in range(205)])
        file.write_table(pa.table({"id": range(205), "title": titles}), row_group_size=205)
    assert titles.nbytes > 1 << 31
    del titles
    code, _, err = job("label", *label_flags(bundle))
    assert code == 0, err
    assert published()[0]["labelled"] == 205


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files_are_planned(ray_session: None, write: Write) -> None:
    """Their footers are read by tasks, and the driver has less than 1 kB for each, its listing with it."""
    for group in range(10):  # a file has room for so many names only
        first = write(f"c/{group}-0000.parquet", id=[1, 2], title=["tea", "boot"])
        for number in range(1, 10_000):
            os.link(first, f"c/{group}-{number:04d}.parquet")
    tracemalloc.start()
    catalog = open_catalog("c", "id", ["title"])
    units = plan_units(catalog)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000 * 1_000
    assert catalog.rows == 200_000 == sum(unit.rows for unit in units)
    assert len(units) == 16, "tiny files share a unit"


def test_repeated_ids_are_counted_in_the_manifest(ray_session: None, write: Write, job: Job, bundle: Path) -> None:
    write("c/a.parquet", id=[1, 2, 3], title=["tea", "shoe", None])
    write("c/b.parquet", id=[2, 1, 3, 2, 9], title=["tea", "boot", "hat", "pen", "ink"])
    code, _, err = job("label", *label_flags(bundle, "--max-reject-fraction", 0.2))
    assert code == 0, err
    manifest, labels = published()
    assert (manifest["repeated_ids"], manifest["repeated_ids_are_estimated"]) == (3, False)
    assert len(labels) == 7
