"""A snapshot of a Delta or Iceberg table is read as the table's own package reads it."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, WriterProperties, write_deltalake
from lake_tables import PRODUCTS, added, commit, delete_by_position, delete_by_vector, rename_in_delta
from pyiceberg.types import StringType

from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import Read, plan_reads, plan_units
from cataloger.errors import CatalogerError, CatalogError, ConfigError
from cataloger.lakes.tables import Address, address_of, plain
from conftest import refused

Job = Callable[..., tuple[int, str, str]]


def rows_of(catalog: Catalog, unit_rows: int | None = None) -> pa.Table:
    """As the jobs read them: planned, sent as plain dictionaries, read unit by unit."""
    units = plan_units(catalog, unit_rows)
    assert sum(unit.rows for unit in units) == catalog.rows
    tables = []
    for read in plan_reads(units):
        sent = Read.from_dict(pa.Table.from_pylist([read.as_dict()]).to_pylist()[0])
        for unit, table in read_units(catalog.location.filesystem, sent.units, catalog.schema):
            assert len(table) == unit.rows
            tables.append(table)
    return pa.concat_tables(tables)


def same(found: pa.Table, expected: pa.Table) -> None:
    def plain(table: pa.Table) -> list[dict[str, Any]]:
        return sorted(table.select(found.column_names).to_pylist(), key=str)

    assert plain(found) == plain(expected)


def as_delta_reads_it(table: str, version: int | None = None) -> pa.Table:
    return pa.table(QueryBuilder().register("t", DeltaTable(table, version)).execute("select * from t").read_all())


@pytest.fixture
def shop(iceberg_shop: Any) -> Any:
    """An Iceberg catalog of that name, with a namespace `catalog`."""
    catalog = iceberg_shop()
    catalog.create_namespace("catalog")
    return catalog


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("delta:///data/products", Address("delta", "/data/products")),
        ("delta://s3://shop/products@12", Address("delta", "s3://shop/products", "12")),
        ("delta://tables/products/", Address("delta", "tables/products")),
        ("iceberg://shop.catalog.products", Address("iceberg", "shop.catalog.products")),
        ("iceberg://shop.a.b.products@before-the-sale", Address("iceberg", "shop.a.b.products", "before-the-sale")),
    ],
)
def test_how_a_table_is_named(written: str, address: Address) -> None:
    assert address_of(written, "--catalog") == address


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("delta://", "is no table"),
        ("delta://products@yesterday", "the version of a Delta table is a number"),
        ("iceberg://products", "write iceberg://CATALOG.NAMESPACE.TABLE"),
        ("iceberg://shop..products", "write iceberg://CATALOG.NAMESPACE.TABLE"),
    ],
)
def test_how_it_is_not(written: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--catalog .*{said}"):
        address_of(written, "--catalog")


def test_a_delta_table_has_the_rows_that_its_own_reader_finds(working_folder: Path) -> None:
    write_deltalake("t", PRODUCTS, partition_by=["lang"])
    for number, add in enumerate(added(Path("t"))):
        delete_by_vector(Path("t"), add, [number, 3, 24])
    write_deltalake("more", PRODUCTS.slice(0, 1))  # another table, to keep the first honest
    catalog = open_catalog("delta://t", "id", ("title", "lang", "price"), ("category_path",))
    assert catalog.rows == 94 == len(as_delta_reads_it("t"))
    same(rows_of(catalog), as_delta_reads_it("t"))
    assert str(catalog.location) == f"delta://{working_folder}/t@2"
    assert catalog.base == f"{working_folder}/t", "where names of pictures are below of"
    before = open_catalog("delta://t@0", "id", ("title", "lang"))
    same(rows_of(before), PRODUCTS)
    assert before.fingerprint != catalog.fingerprint
    assert open_catalog(str(catalog.location), "id", ("title", "lang", "price"), ("category_path",)) == catalog


def test_columns_of_a_delta_table_may_have_other_names_in_its_files(working_folder: Path) -> None:
    write_deltalake("t", PRODUCTS)
    rename_in_delta(Path("t"), "title", "product name")
    renamed = PRODUCTS.rename_columns(["id", "product name", "price", "lang", "category_path"])
    same(rows_of(open_catalog("delta://t", "id", ("product name", "lang"))), renamed)


def test_columns_that_came_later_are_null_in_the_files_before(working_folder: Path) -> None:
    write_deltalake("t", PRODUCTS)
    brand = PRODUCTS.slice(0, 2).append_column("brand", pa.array(["Acme", "Bolt"]))
    write_deltalake("t", brand, mode="append", schema_mode="merge")
    rows = rows_of(open_catalog("delta://t", "id", ("title", "brand")))
    assert sorted(filter(None, rows.column("brand").to_pylist())) == ["Acme", "Bolt"]
    same(rows, as_delta_reads_it("t"))


@pytest.mark.parametrize("seed", range(5))
def test_units_of_any_size_hold_the_rows_that_are_left(working_folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = pa.table({"id": [f"{i}" for i in range(5_000)], "title": [f"title {i}" for i in range(5_000)]})
    write_deltalake("t", rows, writer_properties=WriterProperties(max_row_group_size=int(rng.integers(300, 2_000))))
    gone = np.flatnonzero(rng.random(5_000) < rng.choice([0.02, 0.9]))
    gone = np.union1d(gone, np.arange(1_000, 1_000 + int(rng.integers(0, 2_500))))  # whole units of them
    delete_by_vector(Path("t"), added(Path("t"))[0], gone.tolist())
    catalog = open_catalog("delta://t", "id", ("title",))
    for unit_rows in (None, 64, int(rng.integers(100, 3_000))):
        found = rows_of(catalog, unit_rows)
        assert found.column("id").to_pylist() == np.setdiff1d(np.arange(5_000), gone).astype(str).tolist()


def test_an_iceberg_table_has_the_rows_that_its_own_reader_finds(shop: Any) -> None:
    table = shop.create_table("catalog.products", schema=PRODUCTS.schema)
    with table.update_spec() as spec:
        spec.add_identity("lang")
    table.append(PRODUCTS)
    table.delete("id = 'p7'")
    first = open_catalog("iceberg://shop.catalog.products", "id", ("title", "lang", "price"))
    same(rows_of(first), table.scan().to_arrow())
    files = sorted(task.file.file_path for task in table.scan().plan_files())
    delete_by_position(table, files[0], [1, 2])
    delete_by_position(table, files[0], [5])
    delete_by_position(table, files[1], [0])
    with table.update_schema() as schema:
        schema.rename_column("title", "name")
        schema.add_column("brand", StringType())
    table = shop.load_table("catalog.products")
    catalog = open_catalog("iceberg://shop.catalog.products", "id", ("name", "lang", "brand"), ("category_path",))
    assert catalog.rows == 95
    same(rows_of(catalog), table.scan().to_arrow())
    assert rows_of(catalog).column("brand").null_count == 95
    assert catalog.fingerprint != first.fingerprint
    # Earlier snapshots have the columns that they had.
    version = str(first.location).rpartition("@")[2]
    assert rows_of(open_catalog(f"iceberg://shop.catalog.products@{version}", "id", ("title",))).num_rows == 99
    table.manage_snapshots().create_tag(int(version), "before-the-sale").commit()
    assert open_catalog("iceberg://shop.catalog.products@before-the-sale", "id", ("title",)).rows == 99


def test_files_that_another_system_wrote(shop: Any, working_folder: Path) -> None:
    """They have no numbers of fields, and the table knows what they call its columns."""
    names = pa.table({"id": ["1", "2"], "name": ["tea", "salt"]})
    table = shop.create_table("catalog.products", schema=names.schema)
    pq.write_table(names, "foreign.parquet")
    table.add_files([f"file://{working_folder}/foreign.parquet"])
    with table.update_schema() as schema:
        schema.rename_column("name", "title")
    table = shop.load_table("catalog.products")
    found = rows_of(open_catalog("iceberg://shop.catalog.products", "id", ("title",)))
    same(found, table.scan().to_arrow())
    assert sorted(found.column("title").to_pylist()) == ["salt", "tea"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("s3a://shop/a", "s3://shop/a"),
        ("file:/data/a", "/data/a"),
        ("file:///data/a", "/data/a"),
        ("s3://a/b", "s3://a/b"),
    ],
)
def test_places_as_spark_writes_them(theirs: str, ours: str) -> None:
    assert plain(theirs) == ours


def test_a_table_behind_a_link(working_folder: Path) -> None:
    write_deltalake("t", PRODUCTS)
    delete_by_vector(Path("t"), added(Path("t"))[0], [1])
    Path("link").symlink_to("t")
    same(rows_of(open_catalog("delta://link", "id", ("title",))), as_delta_reads_it("t"))


def test_a_table_that_moves_on_changes_nothing_of_what_is_being_read(working_folder: Path) -> None:
    write_deltalake("t", PRODUCTS)
    catalog = open_catalog("delta://t", "id", ("title",))
    units = plan_units(catalog, 30)
    first, *others = (read_units(catalog.location.filesystem, [unit], catalog.schema) for unit in units)
    tables = [next(first)[1]]
    write_deltalake("t", PRODUCTS.slice(0, 5), mode="overwrite")
    DeltaTable("t").delete("id = 'p1'")
    tables += [next(other)[1] for other in others]
    same(pa.concat_tables(tables), PRODUCTS)
    DeltaTable("t").vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(CatalogError, match="was removed while the run was going"):
        next(read_units(catalog.location.filesystem, units, catalog.schema))


def without_files(folder: Path) -> None:
    for file in folder.glob("*.parquet"):
        file.unlink()


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no table": (lambda t: None, "delta://nothing", "there is no Delta table"),
    "no such version": (lambda t: None, "delta://t@9", "that version is not there, or not any more"),
    "a snapshot that has expired": (without_files, "delta://t", "is gone, as that snapshot has expired"),
    "no rows": (lambda t: DeltaTable(t).delete(), "delta://t", "has no rows"),
    "a feature that nobody knows": (
        lambda t: commit(t, [{"protocol": {"minReaderVersion": 3, "minWriterVersion": 7,
                                           "readerFeatures": ["variantType"], "writerFeatures": ["variantType"]}}]),
        "delta://t", "asks its readers for variantType, which cataloger does not know",
    ),
    "no such Iceberg table": (lambda t: None, "iceberg://shop.catalog.nothing", "there is no such Iceberg table"),
    "no such snapshot": (lambda t: None, "iceberg://shop.catalog.products@17", "that snapshot is not there, or not any more"),
    "no such branch": (lambda t: None, "iceberg://shop.catalog.products@old", "that branch or tag is not there"),
    "no such catalog": (lambda t: None, "iceberg://store.catalog.products", "pyiceberg knows no catalog store"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said_in_a_sentence(working_folder: Path, shop: Any, case: str) -> None:
    write_deltalake("t", PRODUCTS)
    shop.create_table("catalog.products", schema=PRODUCTS.schema).append(PRODUCTS)
    spoil, uri, said = REFUSED[case]
    spoil(working_folder / "t")
    with pytest.raises(CatalogerError, match=said):
        open_catalog(uri, "id", ("title",))


def test_columns_and_packages_that_are_missing(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, job: Job, bundle: Path
) -> None:
    write_deltalake("t", PRODUCTS)
    flags = ("--catalog", "delta://t", "--output", "labels", "--model", bundle, "--text-columns", "title")
    refused(job("label", *flags, "--id-column", "sku"), "no column 'sku'; it has id, title", "with --id-column")
    refused(job("label", *flags, "--publish-to", "delta://t"), "rows that are no labels of cataloger")
    imported = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module",
        lambda name: imported("not_installed") if name == "deltalake" else imported(name),
    )  # fmt: skip
    refused(job("label", *flags), "Delta Lake needs the package deltalake; pip install '.[delta]'")


@pytest.mark.usefixtures("ray_session")
def test_a_night_on_a_table_from_the_command_line(working_folder: Path, job: Job, bundle: Path) -> None:
    write_deltalake("t", PRODUCTS, partition_by=["lang"])
    delete_by_vector(Path("t"), added(Path("t"))[0], [0, 1])
    flags = ("--catalog", "delta://t", "--output", "labels", "--model", bundle, "--text-columns", "title", "lang")
    code, out, err = job("label", *flags)
    assert code == 0, err
    assert "98" in out
    labels = duckdb.sql("select id from 'labels/run=*/part-*.parquet' order by id").to_arrow_table()
    assert labels.column("id").to_pylist() == sorted(as_delta_reads_it("t").column("id").to_pylist())
    code, out, err = job("verify", "--output", "labels")
    assert code == 0, err
    assert "ids equal to the catalog's" in out
    # The next day two products are new; all else is carried over.
    new = PRODUCTS.slice(0, 2).set_column(0, "id", pa.array(["n1", "n2"]))
    write_deltalake("t", new.set_column(1, "title", pa.array(["oolong", "sandals"])), mode="append")
    code, out, err = job("label", *flags)
    assert code == 0, err
    assert len(pq.ParquetDataset("labels/" + os.path.basename(next(Path("labels").glob("run=*")))).files) >= 1
    assert next(line for line in out.splitlines() if "carried over" in line).split()[-2] == "98", out
