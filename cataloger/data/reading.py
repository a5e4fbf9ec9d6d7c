"""The rows of units, as the files of a catalog have them."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.data.footers import column_bytes, unreadable
from cataloger.data.kinds import is_string
from cataloger.data.units import Segment, Unit
from cataloger.errors import CatalogError

# Of the named columns as they lie in memory: what is decoded at once.
MAX_BATCH_BYTES = 64 << 20
# Files of at most so many bytes are read ahead, so many at a time: where they lie far away, to open one takes longer than to read it. Not
# more: each reading task does so, and a store answers some thousands of requests a second.
SMALL_FILE, FILES_AHEAD = 256 << 10, 8
# Of one file, with the units that they are of.
Wanted = list[tuple[Unit, Segment]]


def read_units(
    filesystem: pafs.FileSystem, units: Sequence[Unit], schema: pa.Schema
) -> Iterator[tuple[Unit, pa.Table]]:
    """Each unit with its rows in input order, with the columns and types of `schema`. No row group is fetched twice.

    Raises CatalogError naming the file when one cannot be read any more, or is not the one that was planned.
    """
    wanted = ((unit, segment) for unit in units for segment in unit.segments)
    files = (list(of_file) for _, of_file in itertools.groupby(wanted, key=lambda pair: pair[1].path))
    tables: list[pa.Table] = []
    pool = ThreadPoolExecutor(FILES_AHEAD)
    try:
        for of_file, read in _read_files(filesystem, files, schema, pool):
            for (unit, segment), table in zip(of_file, read, strict=True):
                tables.append(table)
                if segment is unit.segments[-1]:
                    _check_unchanged(filesystem, unit, pool)
                    yield unit, pa.concat_tables(tables)
                    tables = []
    finally:
        pool.shutdown(cancel_futures=True)


def _check_unchanged(filesystem: pafs.FileSystem, unit: Unit, pool: ThreadPoolExecutor) -> None:
    """After reading: what was read before the file changed is as planned, what changed before is found here."""
    planned = {segment.path: segment for segment in unit.segments}
    try:
        found = list(pool.map(filesystem.get_file_info, planned))
    except OSError as error:
        raise unreadable(filesystem, next(iter(planned)), error) from error
    for info, segment in zip(found, planned.values(), strict=True):
        moved = abs((info.mtime_ns or 0) - segment.modified_ns) > _clock(filesystem)
        if info.size != segment.size or moved:
            raise CatalogError(
                f"catalog file {segment.path}: was replaced while the run was going; run the same command again, it labels the new catalog"
            )


def _read_files(
    filesystem: pafs.FileSystem, files: Iterator[Wanted], schema: pa.Schema, pool: ThreadPoolExecutor
) -> Iterator[tuple[Wanted, Iterable[pa.Table]]]:
    """Each file with the rows of its segments. Small ones are read ahead by threads, as far as the unit of the first of them reaches: the
    rows of a unit are held together in any case, and are so many at most."""

    def start(of_file: Wanted) -> Future[list[pa.Table]] | None:
        small = 0 < of_file[0][1].size <= SMALL_FILE and of_file[0][0] is of_file[-1][0]
        segments = [segment for _, segment in of_file]
        return pool.submit(lambda: list(_read_segments(filesystem, segments, schema))) if small else None

    ahead: deque[tuple[Wanted, Future[list[pa.Table]] | None]] = deque()
    coming = next(files, None)
    while ahead or coming:
        while coming and (not ahead or (len(ahead) < FILES_AHEAD and coming[-1][0] is ahead[0][0][0][0])):
            ahead.append((coming, start(coming)))
            coming = next(files, None)
        of_file, begun = ahead.popleft()
        yield of_file, begun.result() if begun else _read_segments(filesystem, [one for _, one in of_file], schema)


def _read_segments(filesystem: pafs.FileSystem, segments: Sequence[Segment], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of each segment; all are of one file, in its order."""
    path = segments[0].path
    try:
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
            for row_group, of_group in itertools.groupby(segments, key=lambda segment: segment.row_group):
                group = list(of_group)
                stored = group[0].stored
                names = schema.names if stored is None else [there for _, there in stored.columns]
                for segment, batches in zip(
                    group, _cut_row_group(file, row_group, group, list(dict.fromkeys(names))), strict=True
                ):
                    table = _as_stored(batches, segment)
                    yield pa.table([_cast(table.column(field.name), field.type) for field in schema], schema=schema)
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        raise unreadable(filesystem, path, error) from error


def _as_stored(batches: list[pa.RecordBatch], segment: Segment) -> pa.Table:
    """The rows of a segment that are still there, under the names that the table has for their columns."""
    if segment.stored is None:
        return pa.Table.from_batches(batches)
    lie_there, stored = segment.lie_there, segment.stored
    table = pa.Table.from_batches(batches) if batches else pa.table({})
    columns = {name: table.column(there) for name, there in stored.columns}
    for name, value in stored.constants:
        same = pa.array([value]).take(pa.array(np.zeros(lie_there, np.int32)))
        columns[name] = pa.chunked_array([same])
    kept = np.ones(lie_there, bool)
    kept[stored.deleted] = False
    return pa.table(columns).filter(pa.array(kept))


def _cut_row_group(
    file: pq.ParquetFile, row_group: int, segments: Sequence[Segment], columns: list[str]
) -> Iterator[list[pa.RecordBatch]]:
    """Walk through a row group once; the batches that make up each segment."""
    about = file.metadata.row_group(row_group)
    per_row = max(1, column_bytes(about, columns) // max(1, about.num_rows))
    # No more at once than a unit has: equal values that lie there once are many when they are decoded.
    most = max(segment.lie_there for segment in segments)
    batches = file.iter_batches(max(1, min(most, MAX_BATCH_BYTES // per_row)), [row_group], columns)
    batch, at = None, 0  # the batch that is being cut, and the number of its first row
    for segment in segments:
        found, wanted = [], segment.lie_there
        while wanted:
            if batch is None or not len(batch):
                batch = next(batches, None)
                if batch is None:
                    raise pa.ArrowInvalid(f"row group {row_group} has fewer rows than when the run was planned")
            skipped = min(len(batch), max(0, segment.start + segment.lie_there - wanted - at))
            part = batch.slice(skipped, wanted)
            found += [part] if len(part) else []
            used = skipped + len(part)
            batch, at, wanted = batch.slice(used), at + used, wanted - len(part)
        yield found


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # Unchecked where a string becomes a wider one: bytes that are no UTF-8 are a matter of their row, not of the file.
    return column.cast(kind, safe=not is_string(column.type))


def _clock(filesystem: pafs.FileSystem) -> int:
    """Nanoseconds by which two answers about an unchanged file may differ: S3 tells whole seconds in one, milliseconds in another."""
    return 0 if isinstance(filesystem, pafs.LocalFileSystem) else 10**9
