"""Labels become a table's rows once, whatever dies in between, and a table's own history leads back."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from lake_tables import PRODUCTS
from pyiceberg.catalog import load_catalog

from cataloger.errors import ConfigError, DeliveryError
from cataloger.lakes import delta, iceberg
from cataloger.lakes.tables import RUN, Address
from conftest import ROOT, free_of_ray, published, upload

Job = Callable[..., tuple[int, str, str]]
LABELS = pa.table({"id": ["a", "b", "c"], "category": ["Tea", "Tea", "Boots"], "levels": [[0.5], [1.0, 0.2], None]})


@pytest.fixture(params=["delta", "iceberg"])
def table(request: pytest.FixtureRequest, working_folder: Path, iceberg_shop: Any) -> Address:
    """The address of a table that is not there yet."""
    name = f"{working_folder}/table" if request.param == "delta" else "shop.labels.nightly"
    return Address(request.param, name)


@pytest.fixture
def commit(table: Address) -> Callable[[pa.Table, str], str | None]:
    module = delta if table.kind == "delta" else iceberg
    return lambda labels, run: module.commit(table, labels.to_reader(2), run)


def rows(table: Address) -> pa.Table:
    """As others read it, and DuckDB on top of them."""
    if table.kind == "delta":
        found: Any = DeltaTable(table.name).to_pyarrow_dataset()
    else:
        found = load_catalog("shop").load_table("labels.nightly").scan().to_arrow()
    if table.kind == "delta":
        assert len(DeltaTable(table.name).to_pandas()) == found.count_rows()
    with duckdb.connect() as database:
        return database.register("found", found).sql("select * from found order by id").to_arrow_table()


def commits(table: Address) -> list[str]:
    """The runs that were committed, the first one first."""
    if table.kind == "delta":
        return [entry[RUN] for entry in reversed(DeltaTable(table.name).history()) if RUN in entry]
    found = load_catalog("shop").load_table("labels.nightly").snapshots()
    runs = [one.summary.additional_properties[RUN] for one in found if one.summary.additional_properties.get(RUN)]
    return list(dict.fromkeys(runs))  # a replacement is a deletion and an addition, in one transaction


def test_each_run_replaces_the_one_before_and_comes_once(
    table: Address, commit: Callable[[pa.Table, str], str | None]
) -> None:
    assert commit(LABELS, "monday") is not None
    assert commit(LABELS, "monday") is None
    assert rows(table).to_pylist() == LABELS.to_pylist()
    # The next model has one column more.
    more = LABELS.slice(1).append_column("tier", pa.array(["words", "both"]))
    name = commit(more, "tuesday")
    assert name is not None
    assert name.startswith(f"{table}@")
    assert rows(table).select(more.column_names).to_pylist() == more.to_pylist()
    assert commit(more, "tuesday") is None
    assert commits(table) == ["monday", "tuesday"]
    # Back to Monday's labels is a decision, and a commit.
    assert commit(LABELS, "monday") is not None
    assert rows(table).num_rows == 3
    module = delta if table.kind == "delta" else iceberg
    assert module.held(table) == ("monday", 3)


def test_what_a_person_restored_stays(table: Address, commit: Callable[[pa.Table, str], str | None]) -> None:
    commit(LABELS, "monday")
    commit(LABELS.slice(1), "tuesday")
    if table.kind == "delta":
        DeltaTable(table.name).restore(0)
    else:
        found = load_catalog("shop").load_table("labels.nightly")
        before = next(one for one in found.snapshots() if one.summary.additional_properties[RUN] == "monday")
        found.manage_snapshots().rollback_to_snapshot(before.snapshot_id).commit()
    assert rows(table).num_rows == 3
    assert commit(LABELS.slice(1), "tuesday") is None, "the same command again does not undo it"
    assert rows(table).num_rows == 3


KILLED = """
import os, signal, sys
import pyarrow as pa
sys.path[:0] = [{root!r}, {tests!r}]
from test_publishing_to_tables import LABELS
from cataloger.lakes import {kind}
from cataloger.lakes.tables import Address
def batches():
    for number in range(200):
        if number == 150 and "{when}" == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
        yield LABELS.to_batches()[0]
{kind}.commit(Address("{kind}", {name!r}), pa.RecordBatchReader.from_batches(LABELS.schema, batches()), "tuesday")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "written"])
def test_a_writer_that_is_killed_leaves_the_old_rows_or_the_new_ones(
    table: Address, commit: Callable[[pa.Table, str], str | None], when: str
) -> None:
    commit(LABELS, "monday")
    text = KILLED.format(root=str(ROOT), tests=str(Path(__file__).parent), kind=table.kind, name=table.name, when=when)
    path = f"{ROOT / 'tests'}{os.pathsep}{ROOT / 'tests' / 'lakes'}"
    done = subprocess.run(
        [sys.executable, "-c", text], env=free_of_ray(PYTHONPATH=path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    new = pa.concat_tables([LABELS] * 200)
    assert rows(table).num_rows == (3 if when == "writing" else 600)
    assert (commit(new, "tuesday") is None) == (when == "written")
    assert rows(table).num_rows == 600
    assert commits(table) == ["monday", "tuesday"]


def test_of_two_that_commit_at_once_one_does(
    table: Address, commit: Callable[[pa.Table, str], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, opener = (delta, "_open") if table.kind == "delta" else (iceberg, "_table")
    commit(LABELS, "monday")
    opened = getattr(module, opener)
    for other, outcome in (("tuesday", None), ("somebody else's", DeliveryError)):
        stale = [opened(table)]  # as it was before the other one came

        def look(address: Address, stale: list[Any] = stale) -> Any:
            return stale.pop() if stale else opened(address)

        commit(LABELS.slice(1), other)
        with monkeypatch.context() as patch:
            patch.setattr(module, opener, look)
            if outcome is None:
                assert commit(LABELS.slice(1), "tuesday") is None
            else:
                with pytest.raises(outcome, match="was changed by somebody else .* run the same command again"):
                    commit(LABELS.slice(2), "wednesday")
        assert rows(table).num_rows == 2
        assert commits(table)[-1] == other


def test_a_table_of_something_else_is_not_overwritten(table: Address) -> None:
    module = delta if table.kind == "delta" else iceberg
    module.check(table)  # there is none yet
    if table.kind == "delta":
        write_deltalake(table.name, PRODUCTS.slice(0, 0))
    else:
        load_catalog("shop").create_namespace("labels")
        load_catalog("shop").create_table("labels.nightly", schema=PRODUCTS.schema)
    module.check(table)  # somebody has made it, with what belongs to it, for the labels to come
    if table.kind == "delta":
        write_deltalake(table.name, PRODUCTS, mode="append")
    else:
        load_catalog("shop").load_table("labels.nightly").append(PRODUCTS)
    with pytest.raises(ConfigError, match="has rows that are no labels of cataloger"):
        module.check(table)


def bring(job: Job, table: Address, bundle: Path, *more: str) -> tuple[str, str]:
    flags = ("--catalog", "catalog.parquet", "--output", "labels", "--model", bundle, "--text-columns", "title")
    code, out, err = job("label", *flags, "--publish-to", table, *more)
    assert code == 0, err
    return out, err


@pytest.mark.usefixtures("ray_session")
def test_a_night_from_the_command_line_and_the_way_back(table: Address, job: Job, bundle: Path) -> None:
    pq.write_table(PRODUCTS, "catalog.parquet")
    # The first driver died between the pointer and the table: the same command brings what is missing, and then nothing more.
    flags = ("--catalog", "catalog.parquet", "--output", "labels", "--model", bundle, "--text-columns", "title")
    assert job("label", *flags)[0] == 0
    bring(job, table, bundle)
    bring(job, table, bundle)
    (first,) = commits(table)
    columns = [name for name in rows(table).column_names if name != "text_hash"]
    assert rows(table).select(columns).to_pylist() == published().sort_by("id").select(columns).to_pylist()
    pq.write_table(PRODUCTS.slice(0, 90), "catalog.parquet")
    bring(job, table, bundle)
    assert rows(table).num_rows == 90
    assert commits(table)[0] == first
    code, out, err = job("verify", "--output", "labels")
    assert (code, f"and they are in {table}" in out) == (0, True), err
    # A rollback of the labels is one of the table.
    code, _out, err = job("publish", "--output", "labels", "--run", first)
    assert code == 0, err
    assert rows(table).num_rows == 100
    assert commits(table)[-1 if table.kind == "delta" else 0] == first
    # And what somebody else did to the table is found.
    if table.kind == "delta":
        DeltaTable(table.name).delete("id = 'p1'")
        bring(job, table, bundle, "--publish-anyway")
        DeltaTable(table.name).delete("id = 'p1'")
        code, _, err = job("verify", "--output", "labels")
        assert (code, "has 89 rows, and the run 90 labels" in err) == (3, True), err


@pytest.mark.usefixtures("ray_session")
def test_a_rollback_while_a_night_writes_its_table_stands(
    table: Address, job: Job, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(PRODUCTS, "catalog.parquet")
    bring(job, table, bundle)
    (monday,) = commits(table)
    pq.write_table(PRODUCTS.slice(0, 90), "catalog.parquet")
    module = delta if table.kind == "delta" else iceberg
    committed = module.commit

    def while_a_person_rolls_back(address: Address, labels: pa.RecordBatchReader, run: str) -> str | None:
        monkeypatch.setattr(module, "commit", committed)
        found = committed(address, labels, run)
        code, _, err = job("publish", "--output", "labels", "--run", monday)
        assert code == 0, err
        return found

    monkeypatch.setattr(module, "commit", while_a_person_rolls_back)
    bring(job, table, bundle)
    assert rows(table).num_rows == 100, "Monday's again"
    assert module.held(table) == (monday, 100)
    assert job("verify", "--output", "labels")[0] == 0


@pytest.mark.usefixtures("ray_session")
def test_a_delivery_that_fails_is_done_again_by_the_same_command(
    table: Address, job: Job, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(PRODUCTS, "catalog.parquet")
    flags = ("--catalog", "catalog.parquet", "--output", "labels", "--model", bundle, "--text-columns", "title")
    assert job("label", *flags)[0] == 0, "without a table"
    first = next(Path("labels").glob("run=*")).name.removeprefix("run=")
    pq.write_table(PRODUCTS.slice(0, 90), "catalog.parquet")
    module = delta if table.kind == "delta" else iceberg

    def fails(*_: object, **__: object) -> None:
        raise DeliveryError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(module, "commit", fails)
        code, _, err = job("label", *flags, "--publish-to", table)
        assert (code, "the store does not answer" in err) == (5, True), err
    assert published().num_rows == 90, "the labels are there all the same"
    bring(job, table, bundle)
    assert rows(table).num_rows == 90
    with monkeypatch.context() as patch:
        patch.setattr(module, "commit", fails)
        assert job("publish", "--output", "labels", "--run", first)[0] == 5
    assert job("publish", "--output", "labels", "--run", first)[0] == 0
    assert rows(table).num_rows == 100, "the run that had no table when it was made"
    # A night without the flag lets the table go.
    pq.write_table(PRODUCTS.slice(0, 95), "catalog.parquet")
    assert job("label", *flags)[0] == 0
    assert rows(table).num_rows == 100
    assert job("verify", "--output", "labels")[0] == 0


def test_a_table_is_the_same_from_every_folder(
    working_folder: Path, job: Job, bundle: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(PRODUCTS.slice(0, 10), "catalog.parquet")
    flags = ("--catalog", "catalog.parquet", "--output", "labels", "--model", bundle, "--text-columns", "title")
    assert job("label", *flags, "--publish-to", "delta://own")[0] == 0
    (working_folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    code, out, err = job("verify", "--output", "../labels")
    assert (code, f"and they are in delta://{working_folder}/own" in out) == (0, True), err


def test_tables_that_cannot_take_labels_are_refused_before_any_work(working_folder: Path, iceberg_shop: Any) -> None:
    write_deltalake("log", PRODUCTS.slice(0, 0), configuration={"delta.appendOnly": "true"})
    with pytest.raises(ConfigError, match="nothing in that table may be replaced"):
        delta.check(Address("delta", "log"))
    catalog = iceberg_shop()
    catalog.create_namespace("labels")
    with catalog.create_table("labels.nightly", schema=LABELS.schema).update_spec() as spec:
        spec.add_identity("category")
    with pytest.raises(ConfigError, match="the table is partitioned"):
        iceberg.check(Address("iceberg", "shop.labels.nightly"))


def test_whatever_an_iceberg_catalog_raises_is_a_sentence(iceberg_shop: Any) -> None:
    address = Address("iceberg", "shop.labels.nightly")
    iceberg.commit(address, LABELS.to_reader(), "monday")
    numbers = LABELS.set_column(0, "id", pa.array([1, 2, 3]))
    with pytest.raises(DeliveryError, match="could not be written: .*; they are published in the output folder"):
        iceberg.commit(address, numbers.to_reader(), "tuesday")
    assert iceberg.held(address) == ("monday", 3)


@pytest.mark.parametrize("properties", [{"format-version": "1"}, {"write.delete.isolation-level": "snapshot"}])
def test_iceberg_tables_of_all_kinds(
    iceberg_shop: Any, properties: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, catalog = Address("iceberg", "shop.labels.nightly"), iceberg_shop()
    catalog.create_namespace("labels")
    catalog.create_table("labels.nightly", schema=LABELS.schema, properties=properties)
    for number, run in enumerate(("monday", "tuesday", "wednesday"), 1):
        assert iceberg.commit(address, LABELS.slice(0, number).to_reader(), run) is not None
        assert iceberg.held(address) == (run, number)
    assert iceberg.commit(address, LABELS.to_reader(), "wednesday") is None
    opened = iceberg._table
    stale = [opened(address)]
    opened(address).append(LABELS.slice(2))  # somebody else's row, which this run has not replaced
    with monkeypatch.context() as patch:
        patch.setattr(iceberg, "_table", lambda address: stale.pop() if stale else opened(address))
        with pytest.raises(DeliveryError, match="was changed by somebody else"):
            iceberg.commit(address, LABELS.slice(0, 2).to_reader(), "thursday")
    assert iceberg.commit(address, LABELS.slice(0, 2).to_reader(), "thursday") is not None
    assert iceberg.held(address) == ("thursday", 2)


def test_an_iceberg_table_whose_snapshots_expired_is_still_ours(iceberg_shop: Any) -> None:
    address = Address("iceberg", "shop.labels.nightly")
    iceberg.commit(address, LABELS.to_reader(), "monday")
    table = iceberg_shop().load_table("labels.nightly")
    table.overwrite(table.scan().to_arrow())  # compacted, by somebody who says nothing of runs
    table = iceberg_shop().load_table("labels.nightly")
    before = [one.snapshot_id for one in table.snapshots() if one.snapshot_id != table.current_snapshot().snapshot_id]
    table.maintenance.expire_snapshots().by_ids(before).commit()
    iceberg.check(address)
    assert iceberg.commit(address, LABELS.to_reader(), "monday") is None
    assert iceberg.commit(address, LABELS.slice(1).to_reader(), "tuesday") is not None


def test_a_version_is_no_place_for_labels(working_folder: Path, job: Job, bundle: Path) -> None:
    pq.write_table(PRODUCTS, "catalog.parquet")
    flags = ("--catalog", "catalog.parquet", "--output", "labels", "--model", bundle, "--text-columns", "title")
    for place, said in {
        "delta://t@3": "labels become the table's next version; leave @3 out",
        "labels/": "is no table",
    }.items():
        code, _, err = job("label", *flags, "--publish-to", place)
        assert (code, said in err, Path("labels").exists()) == (2, True, False), err


@pytest.mark.usefixtures("ray_session")
def test_tables_on_s3(s3: str, working_folder: Path, job: Job, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_deltalake("catalog", PRODUCTS, partition_by=["lang"])
    upload(Path("catalog"), f"{s3}/lake/catalog")
    flags = ("--model", bundle, "--text-columns", "title", "lang", "--catalog", f"delta://{s3}/lake/catalog")
    code, _, err = job("label", *flags, "--output", f"{s3}/lake/labels", "--publish-to", f"delta://{s3}/lake/table")
    assert code == 0, err
    options = {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "AWS_REGION": "us-east-1"}
    assert DeltaTable(f"{s3}/lake/table", storage_options=options).count() == 100
    code, _, err = job("verify", "--output", f"{s3}/lake/labels")
    assert code == 0, err
    # Of two that commit at once, one does: a conditional PUT of the log's next entry.
    address = Address("delta", f"{s3}/lake/race")
    delta.commit(address, LABELS.to_reader(), "monday")
    stale = [delta._open(address)]
    opened = delta._open
    delta.commit(address, LABELS.to_reader(), "tuesday")
    monkeypatch.setattr(delta, "_open", lambda address: stale.pop() if stale else opened(address))
    assert delta.commit(address, LABELS.to_reader(), "tuesday") is None
    assert delta.held(address) == ("tuesday", 3)


def test_an_iceberg_table_on_s3(s3: str, iceberg_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "WAREHOUSE": f"{s3}/warehouse",
        "S3__ENDPOINT": os.environ["AWS_ENDPOINT_URL"],
        "S3__ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "S3__SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
    }.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__SHOP__{name}", value)
    iceberg_shop()
    address = Address("iceberg", "shop.labels.nightly")
    assert iceberg.commit(address, LABELS.to_reader(), "monday") is not None
    assert iceberg.held(address) == ("monday", 3)
    from cataloger.data.catalog import open_catalog
    from cataloger.data.reading import read_units
    from cataloger.data.units import plan_units

    catalog = open_catalog(str(address), "id", ("category",))
    ((_, found),) = read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema)
    assert found.to_pylist() == LABELS.select(["id", "category"]).to_pylist()
