"""Tables that people hand in, small enough for one process: read whole, and checked to have what they must."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.data.ids import as_text
from cataloger.data.kinds import is_list, is_string
from cataloger.data.text import undecodable
from cataloger.data.texts import TextInput
from cataloger.errors import CatalogError
from cataloger.infra.storage import check_reachable, explain, locate
from cataloger.taxonomy import SEPARATOR, parse_path

# Of a longer text the beginning says what it is.
COMPARED_TOKENS = 128


def read_table(uri: str, flag: str, needed: Sequence[str], also: Sequence[str] = ()) -> pa.Table:
    """The columns `needed`, and those of `also` that are there, of a Parquet file or of all files of a folder. Raises CatalogError."""
    location = locate(uri)
    info = location.info()
    if info.type == pafs.FileType.NotFound:
        check_reachable(location)
        raise CatalogError(f"{flag} {uri}: not found; name a Parquet file, a folder or an s3:// prefix")
    files = [location.path]
    if not info.is_file:
        files = [
            one.path
            for one in location.files()
            if one.base_name.endswith((".parquet", ".parq", ".pq")) and one.base_name[0] not in "_."
        ]
        if not files:
            raise CatalogError(f"{flag} {uri}: the folder has no file that ends in .parquet")
    tables = [_read(location.filesystem, file, flag, needed, also) for file in files]
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise CatalogError(f"{flag} {uri}: its files have columns of different types: {explain(error)}") from error


def _read(filesystem: pafs.FileSystem, file: str, flag: str, needed: Sequence[str], also: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(file, filesystem=filesystem) as opened:
            there = opened.schema_arrow.names
            if missing := next((name for name in needed if there.count(name) != 1), None):
                raise CatalogError(f"{flag} {file}: needs one column {missing!r}; it has {', '.join(there) or 'none'}")
            table = opened.read(columns=[name for name in there if name in (*needed, *also)])
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{flag} {file}: cannot be read as Parquet: {explain(error)}") from error
    return table.replace_schema_metadata()


def ids_of(table: pa.Table, where: str, name: str = "id") -> pa.Array:
    """The ids as text, as `pins` and labels are compared. Raises CatalogError for a column of another type, and for a missing id."""
    column = table.column(name).combine_chunks()
    if not (is_string(column.type) or pa.types.is_integer(column.type)):
        raise CatalogError(f"{where}: column {name!r} is {column.type}, expected strings or integers")
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise CatalogError(f"{where}: row {row + 1:,} has no {name}; write it there, or leave the row out")
    return as_text(column)


def paths_of(table: pa.Table, where: str, name: str = "category_path") -> pa.Array:
    """Category paths, or lists of them, with one white space around each separator. Raises CatalogError for whatever is none."""
    column = table.column(name).combine_chunks()
    lists = is_list(column.type)
    values = column.flatten() if lists else column
    if not is_string(values.type):
        raise CatalogError(
            f"{where}: column {name!r} is {column.type}, expected strings such as 'A > B', or lists of them"
        )
    if column.null_count or values.null_count:
        empty = column.is_null() if column.null_count else None
        row = f"row {pc.index(empty, True).as_py() + 1:,}" if empty is not None else "a row"
        raise CatalogError(f"{where}: {row} has no {name}; write it there, or leave the row out")
    if undecodable(values).any():
        raise CatalogError(f"{where}: column {name!r} has text that is not valid UTF-8; write it anew")
    coded = values.cast(pa.large_string()).dictionary_encode()
    paths = []
    for path in coded.dictionary.to_pylist():
        try:
            paths.append(SEPARATOR.join(parse_path(path)))
        except ValueError as problem:
            raise CatalogError(
                f"{where}: {path!r} is no category path: {problem}; write levels as 'A > B > C'"
            ) from problem
    plain = pa.array(paths, pa.string()).take(coded.indices)
    if not lists:
        return plain
    return pa.ListArray.from_arrays(pc.subtract(column.offsets, column.offsets[0]).cast(pa.int32()), plain)


def texts_of(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """What is read of each row to compare it with others, as a model reads it; "" of a row without any text."""
    if not columns:
        return pa.array([""] * len(table), pa.large_string())
    return pc.fill_null(TextInput(Path(), columns, COMPARED_TOKENS).read(table).values, "")


def in_utc(written: str) -> str:
    """A time as ISO 8601 in UTC, so that times can be compared; what is none stays as it is."""
    try:
        found = datetime.fromisoformat(written)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # the last also of the first and the last hours that there are
        return written
