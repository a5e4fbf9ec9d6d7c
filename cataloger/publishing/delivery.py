"""A published run brought to a table of Delta Lake or Iceberg, whose readers follow that in place of the pointer.

First the pointer is turned, which names the table, then one transaction replaces the table's rows and says whose they are (`cataloger.run`).
Whoever comes second, or comes back after a crash between the two, finds there that it is done, or does it.
"""

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.errors import CatalogerError, ConfigError, DeliveryError
from cataloger.infra import places
from cataloger.infra.storage import Location
from cataloger.lakes import tables
from cataloger.lakes.tables import Address, Kind
from cataloger.publishing import pointer, snapshot

log = logging.getLogger(__name__)


def settled(uri: str) -> str:
    """The same table from whatever folder, checked before any work. Raises CatalogerError: no such kind of table, its package is missing,
    or it holds something else."""
    address, kind = _find(uri)
    if address.kind == tables.DELTA:
        places.place(address.name, "--publish-to")
    address = kind.settled(address)
    kind.check(address)
    return str(address)


def deliver(output: Location) -> None:
    """Make the published labels the rows of the table that follows them, unless they came there last. Raises DeliveryError.

    Until it has those that are published: somebody may publish others meanwhile.
    """
    seen = pointer.look(output)
    while seen.table and seen.run:
        _bring(seen.table, output, seen.run)
        before, seen = seen, pointer.look(output)
        if (before.table, before.run) == (seen.table, seen.run):
            return


def _bring(uri: str, output: Location, run: str) -> None:
    address = tables.address_of(uri, "--publish-to")
    try:
        _, kind = _find(uri)
        manifest = snapshot.read_manifest(output, run)
        files = snapshot.label_files(snapshot.run_folder(output, run), manifest["units"])
        kind.check(address)  # it may hold something else by now
        name = kind.commit(address, _labels(files), run)
    except DeliveryError:
        raise
    except (CatalogerError, OSError) as error:
        raise tables.failed(address, run, error) from error
    if name is None:
        log.info("%s has the labels of run %s already", address, run)
    else:
        log.info("%s: %s rows, the labels of run %s", name, f"{manifest['labelled']:,}", run)


def problem(uri: str, run: str, labelled: int) -> str | None:
    """What keeps the table from being the labels of this run."""
    address, kind = _find(uri)
    last, rows = kind.held(address)
    if last != run:
        return f"{address}: the last labels that came there are of {f'run {last}' if last else 'no run'}"
    return None if rows == labelled else f"{address}: has {rows:,} rows, and the run {labelled:,} labels"


def _find(uri: str) -> tuple[Address, Kind]:
    address = tables.address_of(uri, "--publish-to")
    if address.version:
        raise ConfigError(f"--publish-to {uri}: labels become the table's next version; leave @{address.version} out")
    return address, tables.kind_of(address)


def _labels(files: list[Location]) -> pa.RecordBatchReader:
    """The rows of all files, a few at a time."""
    with pq.ParquetFile(files[0].path, filesystem=files[0].filesystem) as first:
        # Whether a column may lack values is a matter of the table, and stays so when a later run has some.
        schema = pa.schema([pa.field(field.name, field.type) for field in first.schema_arrow])

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            with pq.ParquetFile(file.path, filesystem=file.filesystem) as opened:
                for batch in opened.iter_batches():
                    yield pa.record_batch(batch.columns, names=batch.schema.names).cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())
