"""What the kinds of tables have in common: how one is named, what a snapshot of it is, and which module speaks to it.

`delta://PATH[@VERSION]`, where the path is a local one or an s3:// URI; `iceberg://CATALOG.NAMESPACE.TABLE[@SNAPSHOT]`, where the catalog is
one of pyiceberg's configuration, and the snapshot a number, a branch or a tag.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.errors import CatalogError, ConfigError, DeliveryError

DELTA, ICEBERG = "delta", "iceberg"
# By which a commit says which run's labels it holds.
RUN = "cataloger.run"
_MODULES = {DELTA: ("deltalake", "Delta Lake"), ICEBERG: ("pyiceberg", "Iceberg")}


@dataclass(frozen=True)
class Address:
    """A table, and the version of it that somebody asked for."""

    kind: str
    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}://{self.name}{f'@{self.version}' if self.version else ''}"

    def at(self, version: object) -> "Address":
        return replace(self, version=str(version))


@dataclass(frozen=True)
class TableFile:
    """A Parquet file of a snapshot, and what of its rows stands elsewhere."""

    uri: str
    columns: Mapping[str, str | int] = field(default_factory=dict)
    """Of columns that may be named otherwise in the file: its name there, or the number of its field."""
    names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """What a field may be called in a file without numbers."""
    constants: Mapping[str, str | None] = field(default_factory=dict)
    """Of columns that the file may lack: the value of all its rows."""
    gone: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    """The rows that were deleted, by their number in the file, ascending."""


@dataclass(frozen=True)
class Snapshot:
    """A table as it was at one moment."""

    address: Address
    """With its version."""
    root: str
    """Where it lies."""
    identity: str
    """Equal for the same table at the same version, with the same names of columns."""
    schema: pa.Schema
    files: tuple[TableFile, ...]


class Kind(Protocol):
    """What `delta` and `iceberg` can do. They raise CatalogError, ConfigError or DeliveryError."""

    def read(self, address: Address) -> Snapshot:
        """The snapshot of that version, or the newest one."""

    def settled(self, address: Address) -> Address:
        """The same from whatever folder."""

    def check(self, address: Address) -> None:
        """Whether labels may become its next snapshot: there is no such table yet, it is empty, or labels are in it. Raises ConfigError."""

    def commit(self, address: Address, labels: pa.RecordBatchReader, run: str) -> str | None:
        """Replace all rows by the labels of a run, in one transaction; the name of what came of it, or None where this run was the last that
        was committed."""

    def held(self, address: Address) -> tuple[str | None, int]:
        """(the run whose labels were committed last, the table's rows)"""


def is_table(uri: str) -> bool:
    return uri.startswith((f"{DELTA}://", f"{ICEBERG}://"))


def plain(uri: str) -> str:
    """Where a file or a table lies, as Spark and Hadoop write it, in our words."""
    for theirs, ours in (("s3a://", "s3://"), ("s3n://", "s3://"), ("file:///", "/"), ("file:/", "/")):
        if uri.startswith(theirs):
            return ours + uri.removeprefix(theirs)
    return uri


def address_of(uri: str, flag: str) -> Address:
    """Raises ConfigError."""
    found = re.fullmatch(r"(delta|iceberg)://(.+?)(?:@([\w.-]+))?/?", uri)
    if not found:
        raise ConfigError(
            f"{flag} {uri}: is no table; write delta://PATH, delta://s3://BUCKET/PATH or iceberg://CATALOG.NAMESPACE.TABLE"
        )
    kind, name, version = found.groups()
    if kind == ICEBERG and (name.count(".") < 2 or not all(name.split("."))):
        raise ConfigError(
            f"{flag} {uri}: write iceberg://CATALOG.NAMESPACE.TABLE, such as iceberg://shop.catalog.products"
        )
    if kind == DELTA and version and not version.isdecimal():
        raise ConfigError(f"{flag} {uri}: the version of a Delta table is a number, such as @12")
    return Address(kind, name, version)


def foreign(address: Address) -> ConfigError:
    return ConfigError(
        f"--publish-to {address}: the table has rows that are no labels of cataloger, which would replace them; name another table"
    )


def changed(address: Address, run: str) -> DeliveryError:
    return DeliveryError(
        f"{address}: was changed by somebody else while the labels of run {run} were written to it; run the same command again"
    )


def failed(address: Address, run: str, error: BaseException) -> DeliveryError:
    return DeliveryError(
        f"{address}: the labels of run {run} could not be written: {first_line(error)}; they are published in the output folder; "
        "run the same command again to write them here"
    )


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def text(value: object) -> str | None:
    """As Arrow reads it back."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kind_of(address: Address) -> Kind:
    """The module that speaks to such tables. Raises ConfigError where its package is missing."""
    package, title = _MODULES[address.kind]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{address}: {title} needs the package {package}; pip install '.[{address.kind}]'") from error
    return cast(Any, importlib.import_module(f"cataloger.lakes.{address.kind}"))  # type: ignore[no-any-return]


def read(uri: str, flag: str = "--catalog") -> Snapshot:
    """Raises CatalogError, ConfigError."""
    address = address_of(uri, flag)
    found = kind_of(address).read(address)
    if not found.files:
        raise CatalogError(f"catalog {found.address}: has no rows")
    return found
