"""Delta Lake, by the package `deltalake`: https://github.com/delta-io/delta/blob/master/PROTOCOL.md has the protocol.

The data files are read as all Parquet is here; the package reads the log, and writes.
"""

import json
import os
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from cataloger.errors import CatalogError, ConfigError
from cataloger.lakes.tables import RUN, Address, Snapshot, TableFile, changed, failed, first_line, foreign, plain, text

# What a table may ask of its readers. Of these, the first two change what its rows are.
UNDERSTOOD = {
    "deletionVectors",
    "columnMapping",
    "timestampNtz",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "domainMetadata",
}
PHYSICAL_NAME = "delta.columnMapping.physicalName"
# By which a table says that it holds labels of ours, in its log as well as in its checkpoints.
APPLICATION = "cataloger"


def read(address: Address) -> Snapshot:
    """See `tables.Kind`."""
    table = _open(address)
    if table is None:
        raise CatalogError(f"catalog {address}: there is no Delta table; name its folder, which has a _delta_log")
    asked = set(table.protocol().reader_features or ())
    if beyond := sorted(asked - UNDERSTOOD):
        raise CatalogError(
            f"catalog {address}: asks its readers for {', '.join(beyond)}, which cataloger does not know; export its rows to Parquet"
        )
    fields = json.loads(table.schema().to_json())["fields"]
    physical = {one["name"]: one["metadata"].get(PHYSICAL_NAME, one["name"]) for one in fields}
    root = _root(address)
    gone = _deleted(table)
    files = []
    for file in sorted(pa.table(table.get_add_actions(flatten=True)).to_pylist(), key=lambda file: str(file["path"])):
        path = plain(unquote(file["path"]))
        uri = path if "://" in path or path.startswith("/") else f"{root}/{path}"
        values = {
            name: file.get(f"partition.{there}", file.get(f"partition.{name}")) for name, there in physical.items()
        }
        constants = {name: text(value) for name, value in values.items()}
        deleted = gone.pop(uri, np.empty(0, np.uint32))
        files.append(TableFile(uri, physical, constants=constants, gone=deleted))
    if gone:  # or products that were deleted would come back
        raise CatalogError(
            f"catalog {address}: rows are deleted of {sorted(gone)[0]}, which is not in the table; repair it"
        )
    version = table.version()
    return Snapshot(
        replace(address, name=root, version=str(version)),
        root,
        f"delta {table.metadata().id} {version}",
        pa.schema(table.schema()),
        tuple(files),
    )


def settled(address: Address) -> Address:
    """See `tables.Kind`."""
    return replace(address, name=_root(address))


def check(address: Address) -> None:
    """See `tables.Kind`."""
    table = _open(address)
    if table is None:
        return
    if table.metadata().configuration.get("delta.appendOnly") == "true":
        raise ConfigError(
            f"--publish-to {address}: nothing in that table may be replaced (delta.appendOnly); name another table"
        )
    if table.transaction_version(APPLICATION) is None and table.file_uris():
        raise foreign(address)


def commit(address: Address, labels: pa.RecordBatchReader, run: str) -> str | None:
    """See `tables.Kind`."""
    table = _open(address)
    if table and _last(table) == run:
        return None
    number = (table.transaction_version(APPLICATION) or 0) + 1 if table else 1
    # Somebody else's commit since the table was opened makes ours fail, whatever it changed: this run may be in it.
    about = CommitProperties({RUN: run}, max_commit_retries=0, app_transactions=[Transaction(APPLICATION, number)])
    try:
        if table:
            write_deltalake(table, labels, mode="overwrite", schema_mode="overwrite", commit_properties=about)
        else:
            write_deltalake(_root(address), labels, commit_properties=about, storage_options=_options())
    except (DeltaError, OSError) as error:
        now = _open(address)
        if now and _last(now) == run:  # by another driver of the same command
            return None
        if isinstance(error, CommitFailedError) and table and now and now.version() != table.version():
            raise changed(address, run) from error
        raise failed(address, run, error) from error
    return str(address.at(DeltaTable(_root(address), storage_options=_options()).version()))


def held(address: Address) -> tuple[str | None, int]:
    """See `tables.Kind`."""
    table = _open(address)
    return (_last(table), table.count()) if table else (None, 0)


def _open(address: Address) -> DeltaTable | None:
    """None where there is none. Raises CatalogError."""
    version = None if address.version is None else int(address.version)
    try:
        return DeltaTable(_root(address), version=version, storage_options=_options())
    except TableNotFoundError:
        return None
    except (DeltaError, OSError, ValueError) as error:
        if version is not None and ("version" in str(error).lower()):
            raise CatalogError(
                f"{address}: that version is not there, or not any more; name a newer one, or leave @{version} out"
            ) from error
        raise CatalogError(f"{address}: the table cannot be read: {first_line(error)}") from error


def _deleted(table: DeltaTable) -> dict[str, np.ndarray]:
    """The rows that deletion vectors take out of each file."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    found = pa.table(table.deletion_vectors())
    return {
        # A URL, whose percent signs stand for characters, where the log's own paths are the names of files.
        unquote(file.removeprefix("file://")): np.flatnonzero(~np.array(kept, bool)).astype(np.uint32)
        for file, kept in zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True)
    }


def _last(table: DeltaTable) -> str | None:
    """The run whose labels were committed last, as far as the history goes back."""
    return next((str(commit[RUN]) for commit in table.history() if RUN in commit), None)


def _root(address: Address) -> str:
    name = address.name.removeprefix("file://").rstrip("/")
    # As the package has it, which follows links.
    return name if "://" in name else os.path.realpath(os.path.expanduser(name))


def _options() -> dict[str, str]:
    """Where S3 is: the package reads the AWS variables itself, but speaks to no server without TLS unless it is told."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": region or "us-east-1"} if endpoint else {}
    return options | ({"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {})
