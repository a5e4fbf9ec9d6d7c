"""Units of work: how a catalog is cut."""

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cataloger.data.catalog import Catalog
from cataloger.data.footers import CatalogFile, Stored

# A unit of a large catalog; smaller catalogs are cut finer so that every actor gets some.
MAX_UNIT_ROWS = 65_536
MIN_UNIT_ROWS = 8_192
UNITS_OF_A_SMALL_CATALOG = 16
# Of the named columns as they lie in memory: what a unit may take of a node.
MAX_UNIT_BYTES = 256 << 20
# Units of one row group that a task reads: it can only be fetched and decoded from its beginning, which each further task does again. No
# more, so that what a lost task has to repeat is bounded, and no fewer.
MOST_UNITS_PER_READ, LEAST_UNITS_PER_READ = 16, 4


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
    is larger than a unit is cut into units of its own, so that one task can read them all.
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
    """(first row, rows) of pieces of at most so many rows, about alike; of units likewise."""
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


def plan_reads(units: Sequence[Unit], together: int = 1, sharing: int = MOST_UNITS_PER_READ) -> list[Read]:
    """All units, in their order, about `together` in each; of those that have a row group in common at most `sharing`, and about as many."""
    reads: list[list[Unit]] = []
    for _, of_group in itertools.groupby(units, key=lambda unit: (unit.segments[0].path, unit.segments[0].row_group)):
        own = list(of_group)
        for start, size in _pieces(len(own), max(sharing, together)):
            piece = own[start : start + size]
            if reads and len(reads[-1]) < together:
                reads[-1] += piece
            else:
                reads.append(piece)
    return [Read(tuple(read)) for read in reads]
