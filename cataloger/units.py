"""Units of work: how a catalog is cut, and how one unit is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.catalog import Catalog, is_string, unreadable
from cataloger.errors import CatalogError

# A unit of a large catalog; smaller catalogs are cut finer so that every actor gets some.
MAX_UNIT_ROWS = 65_536
MIN_UNIT_ROWS = 8_192
UNITS_OF_A_SMALL_CATALOG = 16


@dataclass(frozen=True)
class Segment:
    """`rows` rows of one row group, from row `start` on; `size` and `modified_ns` are those of the planned file."""

    path: str
    row_group: int
    start: int
    rows: int
    size: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class Unit:
    """The rows that are labelled, written and resumed together."""

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    def name_of(self, row: int, ids: pa.ChunkedArray) -> str:
        """A row of this unit for people, by its id and its file; `ids` are those of all the rows."""
        product = ids.slice(row, 1).cast(pa.large_string()).cast(pa.large_binary())[0].as_py()
        ends = accumulate(segment.rows for segment in self.segments)
        path = next(segment.path for segment, end in zip(self.segments, ends, strict=True) if row < end)
        return f"product {product.decode(errors='replace') if product else None} in {path}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, unit: dict[str, Any]) -> "Unit":
        return cls(int(unit["index"]), tuple(Segment(**segment) for segment in unit["segments"]))


def plan_units(catalog: Catalog, unit_rows: int | None = None) -> list[Unit]:
    """Cut a catalog into units in file order; a function of the catalog alone, so that every run cuts it alike.

    A unit has up to `unit_rows` rows: by default 65,536, fewer in catalogs that would give less than 16 units.
    Small files and row groups share a unit, large row groups are cut.
    """
    if unit_rows is None:
        unit_rows = min(MAX_UNIT_ROWS, max(MIN_UNIT_ROWS, -(-catalog.rows // UNITS_OF_A_SMALL_CATALOG)))
    units: list[Unit] = []
    segments: list[Segment] = []
    room = unit_rows
    for file in catalog.files:
        for row_group, rows in enumerate(file.row_groups):
            start = 0
            while start < rows:
                taken = min(room, rows - start)
                segments.append(Segment(file.path, row_group, start, taken, file.size, file.modified_ns))
                start, room = start + taken, room - taken
                if not room:
                    units.append(Unit(len(units), tuple(segments)))
                    segments, room = [], unit_rows
    if segments:
        units.append(Unit(len(units), tuple(segments)))
    return units


def read_unit(filesystem: pafs.FileSystem, unit: Unit, schema: pa.Schema) -> pa.Table:
    """The unit's rows in input order, with the columns and types of `schema`.

    Raises CatalogError naming the file when one cannot be read any more, or is not the one that was planned.
    """
    tables = [_read_segment(filesystem, segment, schema) for segment in unit.segments]
    for path, segment in {segment.path: segment for segment in unit.segments}.items():
        # After reading: what was read before the file changed is as planned, what changed before is found here.
        info = filesystem.get_file_info(path)
        moved = abs((info.mtime_ns or 0) - segment.modified_ns) > _clock(filesystem)
        if info.size != segment.size or moved:
            raise CatalogError(
                f"catalog file {path}: was replaced while the run was going; run the same command again, it labels the new catalog"
            )
    return pa.concat_tables(tables)


def _read_segment(filesystem: pafs.FileSystem, segment: Segment, schema: pa.Schema) -> pa.Table:
    try:
        with pq.ParquetFile(segment.path, filesystem=filesystem, page_checksum_verification=True) as file:
            if segment.start == 0 and segment.rows == file.metadata.row_group(segment.row_group).num_rows:
                table = file.read_row_group(segment.row_group, columns=schema.names)
            else:
                batches = file.iter_batches(MAX_UNIT_ROWS, [segment.row_group], schema.names)
                table = pa.Table.from_batches(list(_slice(batches, segment.start, segment.rows)))
            if len(table) != segment.rows:
                raise pa.ArrowInvalid(f"row group {segment.row_group} has fewer rows than when the run was planned")
            return pa.table([_cast(table.column(field.name), field.type) for field in schema], schema=schema)
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        raise unreadable(filesystem, segment.path, error) from error


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # Unchecked where a string becomes a wider one: bytes that are no UTF-8 are a matter of their row, not of the file.
    return column.cast(kind, safe=not is_string(column.type))


def _slice(batches: Iterator[pa.RecordBatch], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if start < len(batch):
            part = batch.slice(start, rows)
            rows -= len(part)
            yield part
            if not rows:
                return
        start = max(0, start - len(batch))


def _clock(filesystem: pafs.FileSystem) -> int:
    """Nanoseconds by which two answers about an unchanged file may differ: S3 tells whole seconds in one, milliseconds in another."""
    return 0 if isinstance(filesystem, pafs.LocalFileSystem) else 10**9
