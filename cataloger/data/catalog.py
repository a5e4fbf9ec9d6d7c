"""The input contract: a catalog of Parquet files, or a snapshot of a table that is made of them, checked before any work."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.data.schemas import check_columns, common_type
from cataloger.errors import CatalogError, StorageError
from cataloger.infra import stores
from cataloger.infra.storage import Location, check_reachable, locate
from cataloger.lakes.tables import Snapshot, TableFile, is_table
from cataloger.lakes.tables import read as read_table
from cataloger.spec import Picture

# What a picture that lies elsewhere is taken for while its bytes are in memory.
STORED_BYTES = 64 << 10
# By which Parquet says which field of an Iceberg table a column is.
FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True)
class Stored:
    """How a table has the rows of a file, or of a piece of it, where it does not have them all as they lie there."""

    rows: int
    """Those that lie there, the deleted ones as well."""
    gone: bytes = b""
    """uint32, ascending: the numbers of the deleted ones."""
    columns: tuple[tuple[str, str], ...] = ()
    """The table's name of a column, and the file's."""
    constants: tuple[tuple[str, str | None], ...] = ()
    """Columns that the file lacks, and their value in all rows."""

    @property
    def deleted(self) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self.gone, np.uint32)

    def piece(self, start: int, rows: int) -> "Stored":
        deleted = self.deleted
        first, last = np.searchsorted(deleted, [start, start + rows])
        return replace(self, rows=rows, gone=(deleted[first:last] - np.uint32(start)).tobytes())

    @property
    def live(self) -> int:
        return self.rows - len(self.gone) // 4


@dataclass(frozen=True)
class CatalogFile:
    """One Parquet file as it was when the catalog was opened."""

    path: str
    size: int
    modified_ns: int
    row_groups: tuple[int, ...]
    """Rows of each, as they lie there."""
    sizes: tuple[int, ...]
    """Bytes of the named columns of each row group, decompressed."""
    schema: pa.Schema
    stored: Stored | None = None
    """Of a table's file."""

    @property
    def rows(self) -> int:
        return self.stored.live if self.stored else sum(self.row_groups)


@dataclass(frozen=True)
class Catalog:
    """All files of a catalog, checked to have the named columns. `fingerprint` changes when any file does.

    `schema` has the type that each named column is read as in all files: their common one, or string where they differ.
    """

    location: Location
    files: tuple[CatalogFile, ...]
    schema: pa.Schema
    fingerprint: str
    row_bytes: int = 0
    """What each row takes beside that: its picture, when it has been fetched and decoded."""
    root: str = ""
    """Of a table, where it lies; its location has the name of the snapshot."""

    @property
    def base(self) -> str:
        """The folder that names of files in its rows are below of."""
        if self.root:
            return self.root
        alone = self.files[0].path == self.location.path
        return self.location.parent.uri if alone else self.location.uri

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def open_catalog(
    uri: str,
    id_column: str,
    text_columns: Sequence[str],
    label_columns: Sequence[str] = (),
    others: Mapping[str, str] = MappingProxyType({}),
    picture: Picture | None = None,
) -> Catalog:
    """List and check a catalog; `others` are further columns of strings or numbers, with the flag that names each.

    Raises CatalogError: missing, empty, not Parquet, a column absent or of the wrong type.
    """
    plain = dict.fromkeys(text_columns, "--text-columns") | dict(others)
    image_column = picture.column if picture else None
    flags = {id_column: "--id-column"} | plain | dict.fromkeys(label_columns, "--label-column")
    flags |= {image_column: "--image-column"} if image_column else {}
    names = list(flags)
    # What a picture is when it has been read and decoded; wherever it lies.
    row_bytes = 3 * picture.size**2 + STORED_BYTES if picture else 0
    table = read_table(uri) if is_table(uri) else None
    location, files = _open_table(table, flags) if table else _open_files(uri, names)
    if not sum(file.rows for file in files):
        raise CatalogError(f"catalog {uri}: has no rows")
    for file in files:
        check_columns(
            (file.path, file.schema), (files[0].path, files[0].schema), id_column, plain, label_columns, image_column
        )
    digest = hashlib.sha256(table.identity.encode() if table else b"")
    for file in files:
        name = file.path.removeprefix(location.path)
        changes = () if table else (file.modified_ns,)  # a table's file is never written again
        digest.update(repr((name, file.size, *changes, file.row_groups)).encode())
    schema = pa.schema([(name, common_type({file.schema.field(name).type for file in files})) for name in names])
    return Catalog(location, files, schema, digest.hexdigest()[:16], row_bytes, table.root if table else "")


def grouped(column: str | None) -> dict[str, str]:
    """The `others` of a catalog whose split goes by a group column, or by none."""
    return {column: "--group-column of train.py"} if column else {}


def _open_files(uri: str, names: Sequence[str]) -> tuple[Location, tuple[CatalogFile, ...]]:
    location = locate(uri)
    info = location.info()
    if info.type == pafs.FileType.NotFound:
        check_reachable(location)
        raise CatalogError(
            f"catalog {uri}: not found; --catalog takes a Parquet file, a folder, an s3:// prefix, or a table (delta://, iceberg://)"
        )
    infos = [info] if info.is_file else _parquet_files(location)
    with ThreadPoolExecutor(32) as pool:
        return location, _sharing(pool.map(lambda info: _open_file(location.filesystem, info, names), infos))


def _sharing(files: Iterable[CatalogFile]) -> tuple[CatalogFile, ...]:
    """Files that have the same schema share it: of a million files, a million of them would fill the memory."""
    same: dict[pa.Schema, pa.Schema] = {}
    return tuple(replace(file, schema=same.setdefault(file.schema, file.schema)) for file in files)


def _open_table(table: Snapshot, flags: Mapping[str, str]) -> tuple[Location, tuple[CatalogFile, ...]]:
    """(where the snapshot lies, by its name; its files with the table's own names of columns)"""
    root = locate(table.root)
    location = replace(root, uri=str(table.address))
    where = (root.uri.partition("://")[0], root.path.split("/")[0])
    for name, flag in flags.items():
        if name not in table.schema.names:
            raise CatalogError(
                f"catalog {table.address}: no column {name!r}; it has {', '.join(table.schema.names)}; name the right one with {flag}"
            )

    def opened(file: TableFile) -> CatalogFile:
        # By the table's own client: one for each file would look for region and credentials each time.
        scheme, remote, path = file.uri.rpartition("://")
        place = replace(root, path=path, uri=file.uri)
        if root.is_local == bool(remote) or (remote and (scheme, path.split("/")[0]) != where):
            raise CatalogError(
                f"catalog {table.address}: its file {file.uri} lies in another place than the table; copy the table to one place"
            )
        info = place.info()
        if info.type == pafs.FileType.NotFound:
            raise CatalogError(
                f"catalog {table.address}: {file.uri} is gone, as that snapshot has expired; name a newer one"
            )
        return _open_file(place.filesystem, info, list(flags), (table, file))

    with ThreadPoolExecutor(32) as pool:
        return location, _sharing(pool.map(opened, table.files))


def _parquet_files(location: Location) -> list[pafs.FileInfo]:
    skip = len(location.path)
    found = location.files()
    _refuse_table_formats(location, {info.path[skip:].strip("/") for info in found})
    infos = [info for info in found if not any(part.startswith(("_", ".")) for part in info.path[skip:].split("/"))]
    files = [info for info in infos if info.path.lower().endswith((".parquet", ".parq", ".pq"))]
    if not files:
        held = f"holds {len(infos)} files but none ends in .parquet" if infos else "is empty"
        raise CatalogError(f"catalog {location}: the folder {held}; --catalog takes Parquet files")
    return files


def _refuse_table_formats(location: Location, names: set[str]) -> None:
    """A table's folder holds files that are not part of it any more: read as they lie there, products would come back."""
    folders = {part for name in names for part in name.split("/")[:-1]}
    kind = "Delta Lake" if "_delta_log" in folders else "Hudi" if ".hoodie" in folders else ""
    if any(name.endswith(".metadata.json") and "metadata" in name.split("/")[:-1] for name in names):
        kind = "Iceberg"
    if kind:
        raise CatalogError(
            f"catalog {location}: is a {kind} table, whose folder also holds rows that were deleted or replaced; "
            + _instead(location, kind)
        )


def _instead(location: Location, kind: str) -> str:
    if kind == "Delta Lake":
        return f"name the table itself: --catalog delta://{location}"
    if kind == "Iceberg":
        return "name the table itself: --catalog iceberg://CATALOG.NAMESPACE.TABLE"
    return "export its current rows to Parquet and name that folder with --catalog"


def _open_file(
    filesystem: pafs.FileSystem,
    info: pafs.FileInfo,
    columns: Sequence[str],
    of_table: tuple[Snapshot, TableFile] | None = None,
) -> CatalogFile:
    try:
        with pq.ParquetFile(info.path, filesystem=filesystem) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            schema, stored = file.schema_arrow, None
            if of_table:
                schema, stored = _as_in_table(schema, file.metadata.num_rows, columns, *of_table)
                columns = [name for _, name in stored.columns]
            return CatalogFile(
                path=info.path,
                size=info.size,
                modified_ns=info.mtime_ns or 0,
                row_groups=tuple(group.num_rows for group in groups),
                sizes=tuple(column_bytes(group, columns) for group in groups),
                schema=schema.remove_metadata(),
                stored=stored,
            )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(filesystem, info.path, error) from error


def _as_in_table(
    found: pa.Schema, rows: int, wanted: Sequence[str], table: Snapshot, file: TableFile
) -> tuple[pa.Schema, Stored]:
    """(the wanted columns as the table has them, where they are in the file)"""
    numbers = {int((one.metadata or {}).get(FIELD_ID, -1)): one.name for one in found}
    fields, columns, constants = [], [], []
    for name in wanted:
        there = file.columns.get(name, name)
        if isinstance(there, int):
            # Files that another system wrote may have no numbers: the table knows what they call its columns.
            called = [one for one in file.names.get(there, (name,)) if one in found.names]
            there = numbers.get(there, called[0] if called and set(numbers) == {-1} else "")
        if there in found.names:
            columns.append((name, there))
            fields.append(pa.field(name, found.field(there).type))
        else:
            constants.append((name, file.constants.get(name)))
            fields.append(pa.field(name, table.schema.field(name).type))
    return pa.schema(fields), Stored(rows, file.gone.tobytes(), tuple(columns), tuple(constants))


def column_bytes(row_group: pq.RowGroupMetaData, columns: Sequence[str]) -> int:
    """Bytes that these columns of a row group take when they are decompressed, as its footer has it."""
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema in columns or chunk.path_in_schema.split(".")[0] in columns
    )


def unreadable(filesystem: pafs.FileSystem, path: str, error: BaseException) -> CatalogError | StorageError:
    """The error to raise for a file that pyarrow could not read."""
    if not isinstance(filesystem, pafs.LocalFileSystem) and (why := stores.of(filesystem).meaning(error)):
        return StorageError(f"catalog file {path}: cannot be read: {why}")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, FileNotFoundError):
        return CatalogError(f"catalog file {path}: was removed while the run was going; run the same command again")
    return CatalogError(
        f"catalog file {path}: not readable as Parquet: {reason}; replace the file or take it out of the catalog"
    )
