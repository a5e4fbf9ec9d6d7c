from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.footers import CatalogFile
from cataloger.data.reading import read_units
from cataloger.data.truth import count_labels
from cataloger.data.units import Read, plan_reads, plan_units
from cataloger.errors import CatalogError
from cataloger.infra.storage import Location

Write = Callable[..., Path]


@given(st.lists(st.lists(st.integers(0, 40), max_size=4), min_size=1, max_size=6), st.integers(1, 25))
def test_units_cover_every_row_once_in_order(files: list[list[int]], unit_rows: int) -> None:
    location = Location(pafs.LocalFileSystem(), "/x", "/x")
    opened = tuple(
        CatalogFile(f"/x/{i}", 1, 1, tuple(groups), tuple(groups), pa.schema([])) for i, groups in enumerate(files)
    )
    units = plan_units(Catalog(location, opened, pa.schema([]), ""), unit_rows)
    planned = [
        (s.path, s.row_group, row) for unit in units for s in unit.segments for row in range(s.start, s.start + s.rows)
    ]
    assert planned == [
        (f"/x/{i}", g, row) for i, groups in enumerate(files) for g, rows in enumerate(groups) for row in range(rows)
    ]
    assert all(0 < unit.rows <= unit_rows for unit in units)
    assert all(len(unit.segments) == 1 or all(s.start == 0 for s in unit.segments) for unit in units), "whole groups"
    assert [unit.index for unit in units] == list(range(len(units)))
    reads = plan_reads(units)
    assert all(Read.from_dict(read.as_dict()) == read for read in reads)
    assert [unit for read in reads for unit in read.units] == units
    several = plan_reads(units, 3)
    assert [unit for read in several for unit in read.units] == units
    assert all(len(read.units) >= min(3, len(units)) for read in several[:-1])


@pytest.mark.parametrize(
    ("group", "reads"), [(100_000, 1_000), (1_048_576, 100), (122_880, 814), (3_000_000, 99), (1_000, 1_539)]
)
def test_a_large_catalog_is_read_by_many_tasks(group: int, reads: int) -> None:
    """Units that had a row group in common with the next one would be one task from the first row to the last."""
    location, per_file = Location(pafs.LocalFileSystem(), "/x", "/x"), 100_000_000 // 10 // group
    groups = (group,) * per_file
    files = tuple(CatalogFile(f"/x/{i}", 1, 1, groups, groups, pa.schema([])) for i in range(10))
    units = plan_units(Catalog(location, files, pa.schema([]), ""))
    found = plan_reads(units)
    assert len(found) == pytest.approx(reads, rel=0.15)
    assert max(len(read.units) for read in found) <= 16
    assert len(units) < 1.6 * 10 * per_file * group / 65_536 + 10, "and units stay large"


def test_units_are_read_in_input_order_across_files_and_row_groups(working_folder: Path) -> None:
    folder = working_folder / "catalog"
    folder.mkdir()
    rows = [f"row {i}" for i in range(100)]
    for i, (start, end) in enumerate([(0, 7), (7, 64), (64, 100)]):
        table = pa.table({"id": range(start, end), "title": rows[start:end]})
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=23)
    catalog = open_catalog(str(folder), "id", ["title"])
    units = plan_units(catalog, 9)
    read = pa.concat_tables([table for _, table in read_units(catalog.location.filesystem, units, catalog.schema)])
    assert read.column("id").to_pylist() == list(range(100))
    assert read.column("title").to_pylist() == rows


def test_fingerprint_changes_with_the_files_and_not_with_their_place(write: Write) -> None:
    one = open_catalog(str(write("a/x.parquet", id=[1], title=["t"])), "id", ["title"])
    again = open_catalog(str(write("a/x.parquet", id=[1], title=["t"])), "id", ["title"])
    assert one.fingerprint != again.fingerprint, "a rewritten file may hold other rows"
    assert again.fingerprint == open_catalog("a/x.parquet", "id", ["title"]).fingerprint


def test_names_that_begin_with_underscore_or_dot_are_not_part_of_the_catalog(write: Write) -> None:
    write("c/part.parquet", id=[1], title=["t"])
    write("c/_rejects/part.parquet", id=[2], reason=["no text"])
    write("c/.hidden.parquet", id=[3], title=["t"])
    assert open_catalog("c", "id", ["title"]).rows == 1


def test_what_would_be_read_wrongly_is_refused(write: Write) -> None:
    write("upper/A.PARQUET", id=[1], title=["t"])
    assert open_catalog("upper", "id", ["title"]).rows == 1
    for kind, file in {
        "Delta Lake": "_delta_log/00000.json",
        "Iceberg": "metadata/v1.metadata.json",
        "Hudi": ".hoodie/x",
    }.items():
        write(f"{kind}/data/part.parquet", id=[1], title=["t"])
        Path(kind, file).parent.mkdir(parents=True, exist_ok=True)
        Path(kind, file).write_text("{}")
        with pytest.raises(CatalogError, match=f"is a {kind} table.* (name the table itself|export its current rows)"):
            open_catalog(kind, "id", ["title"])
    twice = pa.table([[1], ["t"], ["u"]], names=["id", "title", "title"])
    pq.write_table(twice, "twice.parquet")
    with pytest.raises(CatalogError, match="has 2 columns 'title'.*--text-columns"):
        open_catalog("twice.parquet", "id", ["title"])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_labels_are_counted_in_any_string_type(write: Write, kind: pa.DataType) -> None:
    write("c.parquet", id=[1, 2, 3], title=["a", "b", "c"], category_path=pa.array(["A", None, "A"]).cast(kind))
    catalog = open_catalog("c.parquet", "id", ["title"], ("category_path",))
    assert count_labels(catalog, "category_path", "id") == {"A": 2, None: 1}


@pytest.mark.parametrize("many", [False, True])
def test_a_label_that_is_not_utf8_is_named(write: Write, many: bool) -> None:
    write("c/1.parquet", id=["a", "b"], title=["t"] * 2, category_path=[["A"], ["B"]] if many else ["A", "B"])
    labels = pa.array([b"A", b"B", b"B > \xff"], pa.binary()).view(pa.string())
    if many:
        labels = pa.ListArray.from_arrays(pa.array([0, 0, 1, 3], pa.int32()), labels)
    write("c/2.parquet", id=["c", "d", "e"], title=["t"] * 3, category_path=labels)
    catalog = open_catalog("c", "id", ["title"], ("category_path",))
    with pytest.raises(CatalogError, match=r"'category_path' of product e in .*c/2.parquet is not valid UTF-8"):
        count_labels(catalog, "category_path", "id")


@pytest.mark.parametrize("labels", [["A"], [["A", "B"]]], ids=["one", "many"])
@pytest.mark.parametrize("first", [True, False])
def test_a_file_without_any_label_has_rows_without_one(write: Write, labels: list[Any], first: bool) -> None:
    nothing = pa.nulls(1) if labels == ["A"] else pa.array([[]], pa.list_(pa.null()))
    columns = [nothing, pa.array(labels)] if first else [pa.array(labels), nothing]
    for number, column in enumerate(columns):
        write(f"c/{number}.parquet", id=[str(number)], title=["t"], category_path=column)
    catalog = open_catalog("c", "id", ["title"], ("category_path",))
    read = [table for _, table in read_units(catalog.location.filesystem, plan_units(catalog, 1), catalog.schema)]
    found = [row for table in read for row in table.column("category_path").to_pylist()]
    assert sorted(found, key=bool)[1] == labels[0]
    assert not sorted(found, key=bool)[0]
    for number in (0, 1):
        write(f"d/{number}.parquet", id=[str(number)], title=["t"], category_path=nothing)
    with pytest.raises(CatalogError, match="is (null|list<.*null>), expected strings such as"):
        open_catalog("d", "id", ["title"], ("category_path",))


def test_a_file_without_rows_needs_no_types(write: Write) -> None:
    """As pandas writes an empty shard: its columns are null."""
    write("c/0.parquet", id=pa.nulls(0), title=pa.nulls(0), category_path=pa.nulls(0))
    write("c/1.parquet", id=["a"], title=["tea"], category_path=["Food > Tea"])
    found = open_catalog("c", "id", ["title"], ("category_path",))
    assert found.rows == 1
    assert found.schema.field("id").type == pa.string()


def test_files_that_are_not_read_are_named(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    write("c/1.parquet", id=["a"], title=["tea"])
    Path("c/part-2.parquet.gzip").write_bytes(b"")
    Path("c/_SUCCESS").write_bytes(b"")
    open_catalog("c", "id", ["title"])
    assert "1 files are not read, as their names do not end in .parquet, such as" in caplog.text
    assert "part-2.parquet.gzip" in caplog.text
