"""Units of work: how a catalog is cut, and how units are read."""

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.data.catalog import Catalog
from cataloger.data.footers import CatalogFile, Stored, column_bytes, unreadable
from cataloger.data.kinds import is_string
from cataloger.errors import CatalogError

# A unit of a large catalog; smaller catalogs are cut finer so that every actor gets some.
MAX_UNIT_ROWS = 65_536
MIN_UNIT_ROWS = 8_192
UNITS_OF_A_SMALL_CATALOG = 16
# Of the named columns as they lie in memory: what a unit may take of a node, and of what is decoded at once.
MAX_UNIT_BYTES = 256 << 20
MAX_BATCH_BYTES = 64 << 20
# Of a larger row group than that, another task fetches the chunks again: what a lost task has to repeat is bounded.
MOST_UNITS_PER_READ = 16


@dataclass(frozen=True, slots=True)
class Segment:
    """`rows` rows of one row group, from row `start` on; `size` and `modified_ns` are those of the planned file.

    Where the file is a table's, `stored` says how many lie there, which of them are deleted, and what its columns are called.
    """

    path: str
    row_group: int
    start: int
    rows: int
    size: int = 0
    modified_ns: int = 0
    stored: Stored | None = None

    @property
    def lie_there(self) -> int:
        return self.stored.rows if self.stored else self.rows


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows that are labelled, written and resumed together."""

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    def name_of(self, row: int, ids: pa.ChunkedArray) -> str:
        """A row of this unit for people, by its id and its file; `ids` are those of all the rows."""
        ends = itertools.accumulate(segment.rows for segment in self.segments)
        path = next(segment.path for segment, end in zip(self.segments, ends, strict=True) if row < end)
        product = ids.slice(row, 1).cast(pa.large_string(), safe=False).cast(pa.large_binary())[0].as_py()
        return f"product {product.decode(errors='backslashreplace') if product else None} in {path}"


def plan_units(catalog: Catalog, unit_rows: int | None = None) -> list[Unit]:
    """Cut a catalog into units in file order; a function of the catalog and its named columns, so that every run cuts it alike.

    A unit has up to `unit_rows` rows: by default 65,536, fewer in catalogs that would give less than 16 units, and fewer
    where the named columns of so many would come to more than 256 MiB, by the footers and what their pictures become. Whole row groups share a unit; one that
    is larger than a unit is cut into units of its own, so that reading needs no more than one task for it.
    """
    if unit_rows is None:
        unit_rows = min(MAX_UNIT_ROWS, max(MIN_UNIT_ROWS, -(-catalog.rows // UNITS_OF_A_SMALL_CATALOG)))
    units: list[Unit] = []
    shared: list[Segment] = []
    room, bytes_left = unit_rows, MAX_UNIT_BYTES

    def close(segments: Sequence[Segment]) -> None:
        if segments:
            units.append(Unit(len(units), tuple(segments)))

    for file in catalog.files:
        in_file = 0
        for row_group, (rows, size) in enumerate(zip(file.row_groups, file.sizes, strict=True)):
            first, in_file = in_file, in_file + rows
            size += rows * catalog.row_bytes
            if rows > room or size > bytes_left:
                close(shared)
                shared, room, bytes_left = [], unit_rows, MAX_UNIT_BYTES
            most = min(unit_rows, max(1, MAX_UNIT_BYTES * rows // max(1, size)))
            pieces = _pieces(rows, most)
            segments = [_of_file(file, row_group, first, start, n) for start, n in pieces]
            segments = [segment for segment in segments if segment.rows]  # all may be deleted
            if len(segments) > 1:
                for segment in segments:
                    close([segment])
            else:
                shared += segments
                room, bytes_left = room - rows, bytes_left - size
    close(shared)
    return units


def _of_file(file: CatalogFile, row_group: int, first: int, start: int, rows: int) -> Segment:
    """So many rows of a row group, whose first one is row `first` of the file."""
    segment = Segment(file.path, row_group, start, rows, file.size, file.modified_ns)
    if file.stored is None:
        return segment
    stored = file.stored.piece(first + start, rows)
    return replace(segment, rows=stored.live, stored=stored)


def _pieces(rows: int, most: int) -> list[tuple[int, int]]:
    """(first row, rows) of pieces of at most so many rows, about alike."""
    step = -(-rows // max(1, -(-rows // most)))
    return [(start, min(step, rows - start)) for start in range(0, rows, step or 1)]


@dataclass(frozen=True, slots=True)
class Read:
    """Neighbouring units that one task reads."""

    units: tuple[Unit, ...]

    def as_dict(self) -> dict[str, bytes]:
        """A row for Ray Data; in bytes, as a million segments would be a million dicts."""
        return {"units": pickle.dumps(self.units)}

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> "Read":
        return cls(pickle.loads(read["units"]))


def plan_reads(units: Sequence[Unit], together: int = 1) -> list[Read]:
    """All units, in their order, so many in each, and those that have a row group in common, whose chunks can only be fetched whole."""
    reads: list[list[Unit]] = []
    for unit in units:
        first, last = unit.segments[0], reads[-1][-1].segments[-1] if reads else None
        same = last is not None and (first.path, first.row_group) == (last.path, last.row_group)
        if reads and len(reads[-1]) < (MOST_UNITS_PER_READ if same else together):
            reads[-1].append(unit)
        else:
            reads.append([unit])
    return [Read(tuple(read)) for read in reads]


def read_units(
    filesystem: pafs.FileSystem, units: Sequence[Unit], schema: pa.Schema
) -> Iterator[tuple[Unit, pa.Table]]:
    """Each unit with its rows in input order, with the columns and types of `schema`. No row group is fetched twice.

    Raises CatalogError naming the file when one cannot be read any more, or is not the one that was planned.
    """
    wanted = [(unit, segment) for unit in units for segment in unit.segments]
    tables: list[pa.Table] = []
    for path, of_file in itertools.groupby(wanted, key=lambda pair: pair[1].path):
        pairs = list(of_file)
        read = _read_segments(filesystem, path, [segment for _, segment in pairs], schema)
        for (unit, segment), table in zip(pairs, read, strict=True):
            tables.append(table)
            if segment is unit.segments[-1]:
                _check_unchanged(filesystem, unit)
                yield unit, pa.concat_tables(tables)
                tables = []


def _check_unchanged(filesystem: pafs.FileSystem, unit: Unit) -> None:
    """After reading: what was read before the file changed is as planned, what changed before is found here."""
    for path, segment in {segment.path: segment for segment in unit.segments}.items():
        info = filesystem.get_file_info(path)
        moved = abs((info.mtime_ns or 0) - segment.modified_ns) > _clock(filesystem)
        if info.size != segment.size or moved:
            raise CatalogError(
                f"catalog file {path}: was replaced while the run was going; run the same command again, it labels the new catalog"
            )


def _read_segments(
    filesystem: pafs.FileSystem, path: str, segments: Sequence[Segment], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows of each segment; all are of one file, in its order."""
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
