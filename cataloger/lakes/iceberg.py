"""Iceberg, by the package `pyiceberg`: https://iceberg.apache.org/spec has the specification.

The data files are read as all Parquet is here; the package speaks to the catalog, reads the manifests, and writes.
"""

import datetime
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DateType

from cataloger.errors import CatalogError, ConfigError
from cataloger.lakes.tables import RUN, Address, Snapshot, TableFile, changed, failed, first_line, foreign, plain, text

EPOCH = datetime.date(1970, 1, 1)
Gone = dict[str, list[npt.NDArray[np.uint32]]]


def read(address: Address) -> Snapshot:
    """See `tables.Kind`."""
    table = _table(address)
    if table is None:
        raise CatalogError(
            f"catalog {address}: there is no such Iceberg table in the catalog {address.name.split('.')[0]}"
        )
    snapshot = _snapshot(table, address)
    # Columns may have been renamed since the newest snapshot was made, and earlier ones have the columns of their time.
    then = snapshot.schema_id if address.version else None
    schema = table.schema() if then is None else table.schemas()[then]
    fields = {one.name: one.field_id for one in schema.fields}
    defaults = {one.name: text(one.initial_default) for one in schema.fields}
    try:
        tasks = list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())
    except (ValueError, NotImplementedError) as error:  # such as rows that are deleted by the values that they have
        raise CatalogError(
            f"catalog {address}: {first_line(error)}; compact the table, or export its rows to Parquet"
        ) from error
    gone = _deleted(table, {one for task in tasks for one in task.delete_files})
    mapping = table.name_mapping()
    names = {one.field_id: tuple(one.names) for one in mapping.root if one.field_id is not None} if mapping else {}
    files = []
    for file in sorted((task.file for task in tasks), key=lambda file: str(file.file_path)):
        if file.file_format != FileFormat.PARQUET:
            raise CatalogError(f"catalog {address}: {file.file_path} is no Parquet; export the table's rows to Parquet")
        deleted = np.unique(np.concatenate([np.empty(0, np.uint32), *gone.get(file.file_path, [])]))
        constants = defaults | _partition(table, schema, file)
        files.append(TableFile(plain(file.file_path), fields, names, constants, deleted))
    return Snapshot(
        address.at(snapshot.snapshot_id),
        plain(table.location()),
        f"iceberg {table.metadata.table_uuid} {snapshot.snapshot_id} {schema.schema_id}",
        schema_to_pyarrow(schema, include_field_ids=False),
        tuple(files),
    )


def settled(address: Address) -> Address:
    """See `tables.Kind`."""
    return address


def check(address: Address) -> None:
    """See `tables.Kind`."""
    table = _table(address)
    if table is None:
        return
    if table.spec().fields:
        raise ConfigError(
            f"--publish-to {address}: the table is partitioned, and pyiceberg writes no labels to it as they come; name one that is not"
        )
    snapshot = table.current_snapshot()
    if snapshot is None or _last(table) is not None:
        return
    if snapshot.summary is not None and snapshot.summary["total-records"] == "0":
        return
    raise foreign(address)


def commit(address: Address, labels: pa.RecordBatchReader, run: str) -> str | None:
    """See `tables.Kind`."""
    table = _table(address)
    if table is not None and _last(table) == run:
        return None
    before = table.metadata_location if table is not None else None
    try:
        if table is None:
            catalog, name = _catalog(address)
            catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
            table = catalog.create_table(name, schema=labels.schema)
        # What is to be replaced was decided when the table was loaded: a commit of somebody else makes this one fail. Left to try again by
        # itself, the package would keep the rows that came meanwhile where the table's isolation level allows it.
        table.metadata.properties["commit.retry.num-retries"] = "0"
        with table.transaction() as transaction:
            with transaction.update_schema() as schema:
                schema.union_by_name(labels.schema)
            transaction.overwrite(labels, snapshot_properties={RUN: run})
            # Snapshots expire, this stays.
            transaction.set_properties({RUN: run})
    except Exception as error:  # of as many kinds as there are catalogs
        now = _table(address)
        if now is not None and _last(now) == run:  # by another driver of the same command, or the answer was lost
            return None
        if now is not None and isinstance(error, CommitFailedException) and now.metadata_location != before:
            raise changed(address, run) from error
        raise failed(address, run, error) from error
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return str(address.at(snapshot.snapshot_id))


def held(address: Address) -> tuple[str | None, int]:
    """See `tables.Kind`."""
    table = _table(address)
    snapshot = table.current_snapshot() if table is not None else None
    if table is None or snapshot is None or snapshot.summary is None:
        return None, 0
    return _last(table), int(snapshot.summary["total-records"] or 0)


def _catalog(address: Address) -> tuple[Catalog, str]:
    """(the catalog, the name of the table in it). Raises ConfigError."""
    catalog, _, name = address.name.partition(".")
    try:
        return load_catalog(catalog), name
    except Exception as error:  # of as many kinds as there are catalogs
        raise ConfigError(
            f"{address}: pyiceberg knows no catalog {catalog}, or does not reach it: {first_line(error)}; describe it in "
            f"~/.pyiceberg.yaml, or by PYICEBERG_CATALOG__{catalog.upper()}__URI"
        ) from error


def _table(address: Address) -> Table | None:
    catalog, name = _catalog(address)
    try:
        return catalog.load_table(name)
    except NoSuchTableError:
        return None
    except Exception as error:  # of as many kinds as there are catalogs
        raise CatalogError(f"{address}: the catalog does not say where the table is: {first_line(error)}") from error


def _snapshot(table: Table, address: Address) -> Any:
    if address.version is None:
        snapshot = table.current_snapshot()
        if snapshot is None:
            raise CatalogError(f"catalog {address}: has no rows")
        return snapshot
    number = address.version.isdecimal()
    found = table.snapshot_by_id(int(address.version)) if number else table.snapshot_by_name(address.version)
    if found is None:
        what = "snapshot is not there, or not any more" if number else "branch or tag is not there"
        raise CatalogError(f"catalog {address}: that {what}; name another one, or leave @{address.version} out")
    return found


def _deleted(table: Table, files: set[DataFile]) -> Gone:
    """The rows that files of positions, and deletion vectors, take out of each data file."""
    gone: Gone = defaultdict(list)
    for file in files:
        if file.file_format == FileFormat.PUFFIN:
            from pyiceberg.table.puffin import PuffinFile

            with table.io.new_input(file.file_path).open() as stream:
                vectors = PuffinFile(stream.read()).to_vector()
            for path, rows in vectors.items():
                gone[path].append(rows.to_numpy().astype(np.uint32))
            continue
        with table.io.new_input(file.file_path).open() as stream:
            deletes = pq.read_table(stream, columns=["file_path", "pos"])
        paths = deletes.column("file_path").combine_chunks().dictionary_encode()
        order = np.argsort(paths.indices.to_numpy(), kind="stable")
        ends = np.cumsum(np.bincount(paths.indices.to_numpy(), minlength=len(paths.dictionary)))
        positions = deletes.column("pos").to_numpy().astype(np.uint32)[order]
        for path, rows in zip(paths.dictionary.to_pylist(), np.split(positions, ends[:-1]), strict=True):
            gone[path].append(rows)
    return gone


def _partition(table: Table, schema: Schema, file: DataFile) -> dict[str, str | None]:
    """The columns that are the same in all rows of a file because the table is partitioned by them."""
    found: dict[str, str | None] = {}
    names = {one.field_id: one for one in schema.fields}
    for number, part in enumerate(table.specs()[file.spec_id].fields):
        source = names.get(part.source_id)
        if isinstance(part.transform, IdentityTransform) and source:
            value = file.partition[number]
            if isinstance(source.field_type, DateType) and isinstance(value, int):
                value = EPOCH + datetime.timedelta(days=value)
            found[source.name] = text(value)
    return found


def _last(table: Table) -> str | None:
    """The run whose labels were committed last: also where a person has since gone back to an earlier snapshot."""
    return table.properties.get(RUN)
