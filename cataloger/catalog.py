"""The input contract: a Parquet catalog, checked before any work, and cut into units of work."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.errors import CatalogError
from cataloger.storage import Location, locate
from cataloger.taxonomy import SEPARATOR, parse_path

# A unit of a large catalog; smaller catalogs are cut finer so that every actor gets some.
MAX_UNIT_ROWS = 65_536
MIN_UNIT_ROWS = 4_096
UNITS_OF_A_SMALL_CATALOG = 64


@dataclass(frozen=True)
class CatalogFile:
    """One Parquet file as it was when the catalog was opened."""

    path: str
    size: int
    modified_ns: int
    row_groups: tuple[int, ...]
    schema: pa.Schema


@dataclass(frozen=True)
class Catalog:
    """All files of a catalog, checked to have the named columns. `fingerprint` changes when any file does."""

    location: Location
    files: tuple[CatalogFile, ...]
    fingerprint: str

    @property
    def rows(self) -> int:
        return sum(sum(file.row_groups) for file in self.files)

    @property
    def schema(self) -> pa.Schema:
        return self.files[0].schema


@dataclass(frozen=True)
class Segment:
    """`rows` rows of one row group, from row `start` on."""

    path: str
    row_group: int
    start: int
    rows: int


@dataclass(frozen=True)
class Unit:
    """The rows that are labelled, written and resumed together."""

    index: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, unit: dict[str, Any]) -> "Unit":
        return cls(int(unit["index"]), tuple(Segment(**segment) for segment in unit["segments"]))


def open_catalog(uri: str, id_column: str, text_columns: Sequence[str], label_column: str | None = None) -> Catalog:
    """List and check a catalog. Raises CatalogError: missing, empty, not Parquet, a column absent or of the wrong type."""
    location = locate(uri)
    info = location.info()
    if info.type == pafs.FileType.NotFound:
        raise CatalogError(f"catalog {uri}: not found; --catalog takes a Parquet file, a folder or an s3:// prefix")
    infos = [info] if info.is_file else _parquet_files(location)
    with ThreadPoolExecutor(16) as pool:
        files = tuple(pool.map(lambda info: _open_file(location.filesystem, info), infos))
    if not sum(sum(file.row_groups) for file in files):
        raise CatalogError(f"catalog {uri}: has no rows")
    for file in files:
        _check_columns(file, files[0], id_column, text_columns, label_column)
    digest = hashlib.sha256()
    for file in files:
        name = file.path.removeprefix(location.path)
        digest.update(repr((name, file.size, file.modified_ns, file.row_groups)).encode())
    return Catalog(location, files, digest.hexdigest()[:16])


def plan_units(catalog: Catalog, unit_rows: int | None = None) -> list[Unit]:
    """Cut a catalog into units in file order; a function of the catalog alone, so that every run cuts it alike.

    A unit has up to `unit_rows` rows: by default 65,536, fewer in catalogs that would give less than 64 units.
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
                segments.append(Segment(file.path, row_group, start, taken))
                start, room = start + taken, room - taken
                if not room:
                    units.append(Unit(len(units), tuple(segments)))
                    segments, room = [], unit_rows
    if segments:
        units.append(Unit(len(units), tuple(segments)))
    return units


def read_unit(filesystem: pafs.FileSystem, unit: Unit, columns: Sequence[str]) -> pa.Table:
    """The unit's rows in input order. Raises CatalogError naming the file when one cannot be read any more."""
    columns = list(dict.fromkeys(columns))
    return pa.concat_tables(
        [_read_segment(filesystem, segment, columns) for segment in unit.segments], promote_options="permissive"
    )


def count_labels(catalog: Catalog, label_column: str) -> Counter[str | None]:
    """Rows per category path as written in the file; None counts rows without one."""
    counts: Counter[str | None] = Counter()

    def count(unit: Unit) -> list[dict[str, Any]]:
        values = read_unit(catalog.location.filesystem, unit, [label_column]).column(0)
        return list(pc.value_counts(values.combine_chunks().cast(pa.large_string())).to_pylist())

    with ThreadPoolExecutor(4) as pool:
        for pairs in pool.map(count, plan_units(catalog)):
            counts.update({pair["values"]: pair["counts"] for pair in pairs})
    return counts


def normalise_labels(
    counts: Counter[str | None], catalog: str, label_column: str
) -> tuple[dict[str, str], Counter[str]]:
    """(path as written → normalised path, rows per normalised path). Raises CatalogError naming malformed paths."""
    names: dict[str, str] = {}
    rows: Counter[str] = Counter()
    malformed = []
    for written, count in counts.items():
        if written is None or not written.strip():
            continue
        try:
            names[written] = SEPARATOR.join(parse_path(written))
            rows[names[written]] += count
        except ValueError as problem:
            malformed.append((written, str(problem), count))
    if malformed:
        example, what, _ = malformed[0]
        raise CatalogError(
            f"catalog {catalog}: column {label_column!r} has malformed category paths in {sum(m[2] for m in malformed)} rows, "
            f"for example {example!r} ({what}); write levels as 'A > B > C'"
        )
    return names, rows


def _parquet_files(location: Location) -> list[pafs.FileInfo]:
    skip = len(location.path)
    infos = [
        info
        for info in location.files()
        if not any(part.startswith(("_", ".")) for part in info.path[skip:].split("/"))
    ]
    files = [info for info in infos if info.path.endswith((".parquet", ".parq", ".pq"))]
    if not files:
        held = f"holds {len(infos)} files but none ends in .parquet" if infos else "is empty"
        raise CatalogError(f"catalog {location}: the folder {held}; --catalog takes Parquet files")
    return files


def _open_file(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> CatalogFile:
    try:
        with pq.ParquetFile(info.path, filesystem=filesystem) as file:
            row_groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
            return CatalogFile(
                info.path, info.size, info.mtime_ns or 0, row_groups, file.schema_arrow.remove_metadata()
            )
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(info.path, error) from error


def _read_segment(filesystem: pafs.FileSystem, segment: Segment, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(segment.path, filesystem=filesystem) as file:
            if segment.start == 0 and segment.rows == file.metadata.row_group(segment.row_group).num_rows:
                return file.read_row_group(segment.row_group, columns=columns).select(columns)
            batches = file.iter_batches(batch_size=MAX_UNIT_ROWS, row_groups=[segment.row_group], columns=columns)
            table = pa.Table.from_batches(list(_slice(batches, segment.start, segment.rows)))
            if len(table) != segment.rows:
                raise pa.ArrowInvalid(f"row group {segment.row_group} has fewer rows than when the run was planned")
            return table.select(columns)
    except (pa.ArrowInvalid, OSError, IndexError, KeyError) as error:
        raise _unreadable(segment.path, error) from error


def _slice(batches: Iterator[pa.RecordBatch], start: int, rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if start < len(batch):
            part = batch.slice(start, rows)
            rows -= len(part)
            yield part
            if not rows:
                return
        start = max(0, start - len(batch))


def _unreadable(path: str, error: BaseException) -> CatalogError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CatalogError(
        f"catalog file {path}: not readable as Parquet: {reason}; replace the file or take it out of the catalog"
    )


def _check_columns(
    file: CatalogFile, first: CatalogFile, id_column: str, text_columns: Sequence[str], label_column: str | None
) -> None:
    wanted = [(id_column, "--id-column")] + [(name, "--text-columns") for name in text_columns]
    wanted += [(label_column, "--label-column")] if label_column else []
    for name, flag in wanted:
        if name not in file.schema.names:
            raise CatalogError(
                f"catalog file {file.path}: no column {name!r}; it has {', '.join(file.schema.names)}; name the right one with {flag}"
            )
    for name in text_columns:
        found = file.schema.field(name).type
        if not (
            _is_string(found) or pa.types.is_primitive(found) or pa.types.is_decimal(found) or pa.types.is_null(found)
        ):
            raise CatalogError(
                f"catalog file {file.path}: column {name!r} is {found}, expected a string or a number; name text columns with --text-columns"
            )
    if label_column and not _is_string(found := file.schema.field(label_column).type):
        raise CatalogError(
            f"catalog file {file.path}: column {label_column!r} is {found}, expected strings such as 'A > B'; name it with --label-column"
        )
    found, expected = file.schema.field(id_column).type, first.schema.field(id_column).type
    if not (_is_string(found) or pa.types.is_integer(found)):
        raise CatalogError(
            f"catalog file {file.path}: column {id_column!r} is {found}, expected a string or an integer; name it with --id-column"
        )
    if _is_string(found) != _is_string(expected):
        raise CatalogError(
            f"catalog file {file.path}: column {id_column!r} is {found}, but {expected} in {first.path}; write one type in all files"
        )


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
