"""URI → pyarrow filesystem; writes that appear whole or not at all.

A location is a local path, `s3://BUCKET/KEY`, `az://CONTAINER/KEY` or `gs://BUCKET/KEY`. Credentials, region and endpoint come from the
environment or the instance's role, as everywhere in these worlds (`AWS_ENDPOINT_URL` for other S3 servers); they are never stored.
"""

import errno
import fcntl
import functools
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from cataloger.errors import ConflictError, StorageError
from cataloger.infra import stores

# What a job writes aside or to try a folder; readers skip the names, `publish.py --prune` removes what a crash left.
WRITING, PROBE = "_writing-", "_probe-"


@dataclass(frozen=True)
class Location:
    """A file or folder on one filesystem; `location / "name"` is something inside it. Picklable."""

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path}/{name}", f"{self.uri}/{name}")

    @property
    def parent(self) -> "Location":
        return Location(self.filesystem, self.path.rpartition("/")[0], self.uri.rpartition("/")[0])

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def _store(self) -> stores.Store:
        return stores.of(self.filesystem)

    def info(self) -> pafs.FileInfo:
        """Type, size and modification time. Raises StorageError when the store cannot be reached."""
        with self._named("cannot be reached"):
            return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return bool(self.info().type != pafs.FileType.NotFound)

    def files(self, recursive: bool = True) -> list[pafs.FileInfo]:
        """Every file below this folder, sorted by path; empty when there is no such folder. Raises StorageError."""
        return sorted((info for info in self._listed(recursive) if info.is_file), key=lambda info: str(info.path))

    def folders(self) -> list[str]:
        """The names of the folders in this one, sorted; but for Google's, without a look at what is in them. Raises StorageError."""
        if self.filesystem.type_name == "gcs":
            # Of Google's, pyarrow tells only those that somebody has made an object for.
            inside = (info.path[len(self.path) :].lstrip("/") for info in self.files())
            return sorted({path.partition("/")[0] for path in inside if "/" in path})
        return sorted(info.base_name for info in self._listed(recursive=False) if not info.is_file)

    def _listed(self, recursive: bool) -> list[pafs.FileInfo]:
        """A store tells a thousand at a time; here is what it told, about 350 bytes for each."""
        with self._named("cannot be listed"):
            selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
            return list(self.filesystem.get_file_info(selector))

    def read(self) -> bytes:
        with self._named("cannot be read"), self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def write(self, data: bytes | pa.Buffer) -> None:
        """Put `data` here, replacing what was: readers see the old bytes or the new ones, never a part.

        Locally: written aside, synced, renamed. On S3: one PUT, which S3 makes visible whole.
        """
        with self._named("cannot be written"):
            if self.is_local:
                with self._aside(data) as aside:
                    os.replace(aside, self.path)
            else:
                self._store.put(self.path, memoryview(data).tobytes())

    def write_folder(self, folder: Path, last: str) -> None:
        """Put all files of a local folder here, the one that says that all are there as the last."""
        files = [file for file in folder.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file == folder / last):
            target = self / str(file.relative_to(folder))
            if self.is_local:
                Path(target.path).parent.mkdir(parents=True, exist_ok=True)
            target.write(file.read_bytes())

    def version(self) -> str | None:
        """A token that changes with the bytes here; None when there is nothing. Raises StorageError."""
        if not self.exists():
            return None
        with self._named("cannot be read"):
            return hashlib.sha256(self.read()).hexdigest() if self.is_local else self._store.etag(self.path)

    def replace(self, data: bytes | pa.Buffer, expected: str | None) -> None:
        """Write only if the version here is still `expected`; None means that nothing is here. Of several writers one wins.

        Locally under a lock on the folder; elsewhere a conditional PUT (on S3 `If-Match`, or `If-None-Match` for a first write).
        Raises ConflictError, StorageError.
        """
        with self._named("cannot be written"):
            if self.is_local:
                with self._aside(data) as aside, locked(aside.parent):
                    written = self.version() == expected
                    if written:
                        os.replace(aside, self.path)
            else:
                written = self._store.put_if(self.path, memoryview(data).tobytes(), expected)
        if not written:
            raise ConflictError(f"{self.uri}: was written by somebody else meanwhile")

    def delete(self) -> None:
        """Remove this file, or this folder with all that is in it; nothing there is fine. Raises StorageError."""
        kind = self.info().type
        with self._named("cannot be removed"):
            if kind == pafs.FileType.Directory and self.is_local:
                self.filesystem.delete_dir(self.path)
            elif kind == pafs.FileType.Directory:
                self._store.delete_folder(self.filesystem, self.path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(self.path)

    def abort_uploads(self) -> None:
        """Give up unfinished multipart uploads below this prefix; they cost money and nobody sees them. Raises StorageError."""
        if not self.is_local:
            with self._named("unfinished uploads cannot be removed"):
                self._store.abort_uploads(self.path)

    @contextmanager
    def _aside(self, data: bytes | pa.Buffer) -> Iterator[Path]:
        """The data in a file beside this one, on the disk; readers of Parquet folders skip names that begin with "_"."""
        final = Path(self.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f"{WRITING}{secrets.token_hex(8)}")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Errors of the store as a StorageError that says where, what, and what to do."""
        failures = (OSError, ValueError) if self.is_local else self._store.errors()
        try:
            yield
        except failures as error:
            why = explain(error) if self.is_local else self._store.meaning(error) or explain(error)
            raise StorageError(f"{self.uri}: {what}: {why}") from error


def explain(error: BaseException) -> str:
    """The first line of an error, with a remedy where there is one."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{first}; make room and run the same command again: what is finished is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return f"{first}; check the path and its permissions"
    return first


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock; it goes with the process, so a crash leaves none behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def locate(uri: str) -> Location:
    """The location behind a local path, `file://`, `s3://`, `az://` or `gs://` URI. Raises StorageError for any other scheme."""
    scheme, found, rest = uri.partition("://")
    if found and scheme in stores.SCHEMES:
        return _in_store(scheme, rest.rstrip("/"))
    if found and scheme != "file":
        raise StorageError(
            f"{uri}: unknown scheme; use a local path, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX"
        )
    local = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
    return Location(pafs.LocalFileSystem(), local, local)


def _in_store(scheme: str, path: str) -> Location:
    bucket = path.split("/")[0]
    if "@" in bucket:
        where = {"s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "az": "set AZURE_STORAGE_ACCOUNT_NAME"}
        raise StorageError(f"{scheme}://…@…: credentials do not belong in a URI; {where.get(scheme, 'leave them out')}")
    if not bucket:
        raise StorageError(f"{scheme}://: names no bucket; write {scheme}://BUCKET/PREFIX")
    try:
        store = stores.named(scheme)
    except ModuleNotFoundError as error:
        _, package, extra = stores.SCHEMES[scheme]
        raise StorageError(f"{scheme}://{bucket}: needs the package {package}; pip install '.[{extra}]'") from error
    try:
        return Location(store.for_reading(bucket), path, f"{scheme}://{path}")
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{scheme}://{bucket}: cannot be reached: {store.meaning(error) or explain(error)}"
        ) from error


def check_writable(location: Location) -> None:
    """Write and remove a tiny file, so that a job fails before its work and not after. Raises StorageError."""
    check_reachable(location)
    probe = location / f"{PROBE}{secrets.token_hex(8)}"
    probe.write(b"cataloger")
    probe.delete()


def check_conditional(location: Location) -> None:
    """Raises StorageError where a store writes what it was told to write only if nothing is there."""
    if location.is_local:
        return
    probe = location / f"{PROBE}{secrets.token_hex(8)}"
    probe.replace(b"cataloger", None)
    try:
        probe.replace(b"another", None)
    except ConflictError:
        return
    finally:
        probe.delete()
    raise StorageError(
        f"{location}: the store writes whatever the condition, so that two jobs could publish at once; use one with conditional writes"
    )


def check_reachable(location: Location) -> None:
    """Raises StorageError when there is no such bucket, or no way into it."""
    if not location.is_local:
        with location._named("cannot be reached"):
            location._store.head_bucket(location.path.split("/")[0])


@functools.cache
def sha256_of(file: Path) -> str:
    """Once per process: 90 MB take a fifth of a second."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
