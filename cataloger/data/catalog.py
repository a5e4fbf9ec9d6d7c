"""The input contract: a catalog of Parquet files, or a snapshot of a table that is made of them, checked before any work."""

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pyarrow as pa
from pyarrow import fs as pafs

from cataloger.data.footers import CatalogFile, Listed, read_all, read_footer
from cataloger.data.schemas import check_columns, common_type, told
from cataloger.errors import CatalogError
from cataloger.infra.storage import Location, check_reachable, locate
from cataloger.lakes.tables import Snapshot, TableFile, is_table
from cataloger.lakes.tables import read as read_table
from cataloger.spec import Picture

log = logging.getLogger(__name__)

# What a picture that lies elsewhere is taken for while its bytes are in memory.
STORED_BYTES = 64 << 10


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

    @property
    def schemas(self) -> list[pa.Schema]:
        """Those that its files have; of one without rows nobody reads anything."""
        return [file.schema for file in _one_of_each_schema(file for file in self.files if file.rows)]


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
    # Of a file without rows nothing is read, and its writer could not know the columns' types.
    filled = [file for file in files if file.rows]
    differing, first = _one_of_each_schema(filled), filled[0]
    labels = told(label_columns, [(file.path, file.schema) for file in differing])
    for file in differing:
        check_columns((file.path, file.schema), (first.path, first.schema), id_column, plain, labels, image_column)
    digest = hashlib.sha256(table.identity.encode() if table else b"")
    for file in files:
        name = file.path.removeprefix(location.path)
        changes = () if table else (file.modified_ns,)  # a table's file is never written again
        digest.update(repr((name, file.size, *changes, file.row_groups)).encode())
    schema = pa.schema([(name, common_type({file.schema.field(name).type for file in differing})) for name in names])
    return Catalog(location, files, schema, digest.hexdigest()[:16], row_bytes, table.root if table else "")


def grouped(column: str | None) -> dict[str, str]:
    """The `others` of a catalog whose split goes by a group column, or by none."""
    return {column: "--group-column of train.py"} if column else {}


def _one_of_each_schema(files: Iterable[CatalogFile]) -> list[CatalogFile]:
    """The first file of each, in their order; where tasks read the footers, each task has schemas of its own."""
    found: dict[int, CatalogFile] = {}
    for file in files:
        found.setdefault(id(file.schema), file)
    return list(found.values())


def _open_files(uri: str, names: Sequence[str]) -> tuple[Location, tuple[CatalogFile, ...]]:
    location = locate(uri)
    info = location.info()
    if info.type == pafs.FileType.NotFound:
        check_reachable(location)
        raise CatalogError(
            f"catalog {uri}: not found; --catalog takes a Parquet file, a folder, an s3:// prefix, or a table (delta://, iceberg://)"
        )
    read = functools.partial(read_footer, location.filesystem, names)
    return location, read_all([Listed.of(info)] if info.is_file else _parquet_files(location), read)


def _open_table(table: Snapshot, flags: Mapping[str, str]) -> tuple[Location, tuple[CatalogFile, ...]]:
    """(where the snapshot lies, by its name; its files with the table's own names of columns)"""
    root = locate(table.root)
    location = replace(root, uri=str(table.address))
    for name, flag in flags.items():
        if name not in table.schema.names:
            raise CatalogError(
                f"catalog {table.address}: no column {name!r}; it has {', '.join(table.schema.names)}; name the right one with {flag}"
            )
    # A task knows the files that it reads, and needs no others.
    read = functools.partial(_open_file_of_table, root, replace(table, files=()), list(flags))
    return location, read_all(table.files, read)


def _open_file_of_table(root: Location, table: Snapshot, names: Sequence[str], file: TableFile) -> CatalogFile:
    """By the table's own client: one for each file would look for region and credentials each time."""
    scheme, remote, path = file.uri.rpartition("://")
    place = replace(root, path=path, uri=file.uri)
    where = (root.uri.partition("://")[0], root.path.split("/")[0])
    if root.is_local == bool(remote) or (remote and (scheme, path.split("/")[0]) != where):
        raise CatalogError(
            f"catalog {table.address}: its file {file.uri} lies in another place than the table; copy the table to one place"
        )
    info = place.info()
    if info.type == pafs.FileType.NotFound:
        raise CatalogError(
            f"catalog {table.address}: {file.uri} is gone, as that snapshot has expired; name a newer one"
        )
    return read_footer(place.filesystem, names, Listed.of(info), (table, file))


def _parquet_files(location: Location) -> list[Listed]:
    skip = len(location.path)
    found = [Listed.of(info) for info in location.files()]
    _refuse_table_formats(location, (file.path[skip:].strip("/") for file in found))
    shown = [file for file in found if not any(part.startswith(("_", ".")) for part in file.path[skip:].split("/"))]
    files = [file for file in shown if file.path.lower().endswith((".parquet", ".parq", ".pq"))]
    if not files:
        held = f"holds {len(shown)} files but none ends in .parquet" if shown else "is empty"
        raise CatalogError(f"catalog {location}: the folder {held}; --catalog takes Parquet files")
    if others := len(shown) - len(files):
        known = {file.path for file in files}
        first = next(file.path for file in shown if file.path not in known)
        log.warning(
            "catalog %s: %s files are not read, as their names do not end in .parquet, such as %s",
            location,
            f"{others:,}",
            first,
        )
    return files


def _refuse_table_formats(location: Location, names: Iterable[str]) -> None:
    """A table's folder holds files that are not part of it any more: read as they lie there, products would come back."""
    kinds = set()
    for name in names:
        *folders, last = name.split("/")
        kinds |= {"Delta Lake"} if "_delta_log" in folders else set()
        kinds |= {"Hudi"} if ".hoodie" in folders else set()
        kinds |= {"Iceberg"} if "metadata" in folders and last.endswith(".metadata.json") else set()
    if kinds:
        kind = next(kind for kind in ("Iceberg", "Delta Lake", "Hudi") if kind in kinds)
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
