"""Object stores: the seam between locations and the clouds they lie in.

pyarrow reads from all of them. What it cannot do, a write that only succeeds if nobody else has written meanwhile, is the store's own.
"""

import importlib
from typing import Any, Protocol, cast

from pyarrow import fs as pafs

# By the scheme of a URI: the module, the package that it needs beside pyarrow, and what its users install.
SCHEMES = {
    "s3": ("s3", "s3fs", ""),
    "az": ("azure", "azure.storage.blob", "azure"),
    "gs": ("google", "google.cloud.storage", "google"),
}
_BY_FILESYSTEM = {"s3": "s3", "abfs": "az", "gcs": "gs"}


class Store(Protocol):
    """One cloud's store. Paths are `BUCKET/KEY`; what its clients raise when it says no, or nothing, are `errors()`."""

    def for_reading(self, bucket: str) -> pafs.FileSystem:
        """pyarrow's filesystem. Raises OSError, ValueError."""

    def put(self, path: str, data: bytes) -> None:
        """Visible whole or not at all. Raises `errors()`."""

    def put_if(self, path: str, data: bytes, expected: str | None) -> bool:
        """Only if the object is still the version `expected`, or absent (None); whether it was written. Raises `errors()`."""

    def etag(self, path: str) -> str:
        """A token that changes with every write. Raises `errors()`."""

    def head_bucket(self, bucket: str) -> None:
        """Raises `errors()` where there is no such bucket, or no way into it."""

    def delete_folder(self, filesystem: pafs.FileSystem, path: str) -> None:
        """Remove all that is below a prefix. Raises `errors()`."""

    def abort_uploads(self, path: str) -> None:
        """Give up the unfinished uploads below a prefix, where they stay for ever."""

    def errors(self) -> tuple[type[Exception], ...]: ...

    def meaning(self, error: BaseException) -> str | None:
        """What an error means to the user, or None where its own words are best."""


def named(scheme: str) -> Store:
    """Raises ModuleNotFoundError where its package is not installed."""
    module, package, _ = SCHEMES[scheme]
    if scheme != "s3":
        importlib.import_module(package)
    return cast(Any, importlib.import_module(f"cataloger.infra.{module}"))  # type: ignore[no-any-return]


def of(filesystem: pafs.FileSystem) -> Store:
    """The store that a filesystem of `for_reading` reads from."""
    return named(_BY_FILESYSTEM[filesystem.type_name])
