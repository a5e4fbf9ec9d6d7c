"""What the footers of a catalog's files say: read by threads, or by tasks on all nodes where there are many files."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from cataloger.errors import CatalogError, StorageError
from cataloger.infra import stores
from cataloger.lakes.tables import Snapshot, TableFile

# The driver has read so many by itself before a Ray of its own has started.
MANY_FILES = 10_000
FILES_PER_TASK = 1_000
# Of the driver or of a task, which mostly wait for a store.
THREADS = 32
# A store answers some thousands of requests a second, and then refuses.
MOST_TASKS = 16
# By which Parquet says which field of an Iceberg table a column is.
FIELD_ID = b"PARQUET:field_id"

Item = TypeVar("Item")


class Listed(NamedTuple):
    """A file as a listing has it: what a task can be sent, and less than half of pyarrow's own."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, info: pafs.FileInfo) -> "Listed":
        return cls(info.path, info.size, info.mtime_ns or 0)


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


def read_all(items: Iterable[Item], read_one: Callable[[Item], CatalogFile]) -> tuple[CatalogFile, ...]:
    """What `read_one` finds for each, in their order; it is sent to tasks. Raises what it raises for the first that it fails at."""
    waiting = deque(items)
    del items  # so that a listing is let go as its files are read
    many = len(waiting) > MANY_FILES
    # Tuples, here and on the way back: of a list Ray pickles each item by itself.
    blocks = iter(lambda: tuple(waiting.popleft() for _ in range(min(FILES_PER_TASK, len(waiting)))), ())
    read_block = functools.partial(_read_block, read_one)
    if not many:
        return tuple(itertools.chain.from_iterable(map(read_block, blocks)))
    # Here, as Ray takes seconds to import.
    from cataloger.infra import runtime, spread

    with runtime.session():
        return tuple(itertools.chain.from_iterable(spread.each(blocks, read_block, MOST_TASKS)))


def _read_block(read_one: Callable[[Item], CatalogFile], items: Sequence[Item]) -> tuple[CatalogFile, ...]:
    """Files that have the same schema share it: of a million files, a million of them would fill the memory."""
    same: dict[pa.Schema, pa.Schema] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(read_one, items)
        return tuple(replace(file, schema=same.setdefault(file.schema, file.schema)) for file in found)


def read_footer(
    filesystem: pafs.FileSystem,
    columns: Sequence[str],
    listed: Listed,
    of_table: tuple[Snapshot, TableFile] | None = None,
) -> CatalogFile:
    """Raises CatalogError, StorageError."""
    try:
        with pq.ParquetFile(listed.path, filesystem=filesystem) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            schema, stored = file.schema_arrow, None
            if of_table:
                schema, stored = _as_in_table(schema, file.metadata.num_rows, columns, *of_table)
                columns = [name for _, name in stored.columns]
            return CatalogFile(
                *listed,
                row_groups=tuple(group.num_rows for group in groups),
                sizes=tuple(column_bytes(group, columns) for group in groups),
                schema=schema.remove_metadata(),
                stored=stored,
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise unreadable(filesystem, listed.path, error) from error


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
