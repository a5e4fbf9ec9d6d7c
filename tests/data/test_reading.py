"""Files are read ahead where they are small, and no further."""

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.data import reading
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import Segment, plan_units
from cataloger.errors import CatalogError

FILES, ROWS = 40, 10


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    for number in range(FILES):
        ids = range(number * ROWS, (number + 1) * ROWS)
        pq.write_table(
            pa.table({"id": ids, "title": [f"shoe {i}" for i in ids]}), tmp_path / f"part-{number:02d}.parquet"
        )
    return open_catalog(str(tmp_path), "id", ("title",))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened, as they are."""
    found: list[str] = []
    real = pq.ParquetFile

    def note(path: str, **given: object) -> pq.ParquetFile:
        found.append(path)
        return real(path, **given)

    monkeypatch.setattr(reading.pq, "ParquetFile", note)
    return found


def ids_of(catalog: Catalog, unit_rows: int | None = None) -> list[int]:
    units = plan_units(catalog, unit_rows)
    read = read_units(catalog.location.filesystem, units, catalog.schema)
    return [i for _, table in read for i in table.column("id").to_pylist()]


def test_rows_of_many_small_files_come_in_their_order(catalog: Catalog) -> None:
    assert ids_of(catalog) == ids_of(catalog, 25) == list(range(FILES * ROWS))


def test_small_files_are_opened_together(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody is let in before the others are there.
    together, real = threading.Barrier(8), pq.ParquetFile

    def wait(path: str, **given: object) -> pq.ParquetFile:
        together.wait(timeout=60)
        return real(path, **given)

    monkeypatch.setattr(reading.pq, "ParquetFile", wait)
    assert ids_of(catalog) == list(range(FILES * ROWS))


def test_nothing_of_the_next_unit_is_read_ahead(catalog: Catalog, opened: list[str]) -> None:
    read = read_units(catalog.location.filesystem, plan_units(catalog, 20 * ROWS), catalog.schema)
    next(read)
    read.close()  # which waits for those that are being read
    assert sorted(Path(path).name for path in opened) == [f"part-{number:02d}.parquet" for number in range(20)]


def test_a_small_file_of_many_rows_is_decoded_unit_by_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"id": range(100), "title": ["the same"] * 100}), tmp_path / "one.parquet")
    catalog = open_catalog(str(tmp_path / "one.parquet"), "id", ("title",))
    decoded, real = 0, reading._as_stored

    def note(batches: list[pa.RecordBatch], segment: Segment) -> pa.Table:
        nonlocal decoded
        decoded += 1
        return real(batches, segment)

    monkeypatch.setattr(reading, "_as_stored", note)
    read = read_units(catalog.location.filesystem, plan_units(catalog, 25), catalog.schema)
    next(read)
    assert decoded == 1
    assert len(list(read)) == decoded - 1 == 3


def test_large_files_are_not_opened_before_their_turn(
    catalog: Catalog, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SMALL_FILE", 0)
    read = read_units(catalog.location.filesystem, plan_units(catalog, 2 * ROWS), catalog.schema)
    next(read)
    assert [Path(path).name for path in opened] == ["part-00.parquet", "part-01.parquet"]
    assert len(list(read)) == FILES / 2 - 1


def test_a_small_file_that_was_replaced_is_named(catalog: Catalog, tmp_path: Path) -> None:
    units = plan_units(catalog)
    pq.write_table(pa.table({"id": range(11), "title": ["boot"] * 11}), tmp_path / "part-17.parquet")
    with pytest.raises(CatalogError, match="part-17.parquet: was replaced"):
        list(read_units(catalog.location.filesystem, units, catalog.schema))


def test_a_small_file_that_is_gone_is_named(catalog: Catalog, tmp_path: Path) -> None:
    units = plan_units(catalog)
    (tmp_path / "part-17.parquet").unlink()
    with pytest.raises(CatalogError, match="part-17.parquet: was removed"):
        list(read_units(catalog.location.filesystem, units, catalog.schema))
