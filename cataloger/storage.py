"""URI → pyarrow filesystem; writes that appear whole or not at all.

A location is a local path or `s3://bucket/key`. Credentials, region and endpoint come from the environment or the
instance role, as everywhere in the AWS world (`AWS_ENDPOINT_URL` for other S3 servers); they are never stored.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from cataloger.errors import ConflictError, StorageError


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

    def info(self) -> pafs.FileInfo:
        """Type, size and modification time. Raises StorageError when the store cannot be reached."""
        try:
            return self.filesystem.get_file_info(self.path)
        except OSError as error:
            raise StorageError(f"{self.uri}: cannot be reached: {_first_line(error)}") from error

    def exists(self) -> bool:
        return bool(self.info().type != pafs.FileType.NotFound)

    def files(self, recursive: bool = True) -> list[pafs.FileInfo]:
        """Every file below this folder, sorted by path; empty when there is no such folder."""
        try:
            selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise StorageError(f"{self.uri}: cannot be listed: {_first_line(error)}") from error
        return sorted((info for info in infos if info.is_file), key=lambda info: str(info.path))

    def read(self) -> bytes:
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise StorageError(f"{self.uri}: cannot be read: {_first_line(error)}") from error

    def write(self, data: bytes | pa.Buffer) -> None:
        """Put `data` here, replacing what was: readers see the old bytes or the new ones, never a part.

        Locally: written aside, synced, renamed. On S3: one PUT, which S3 makes visible whole.
        """
        try:
            if self.is_local:
                self._write_aside_and_rename(data)
            else:
                _s3().pipe_file(self.path, memoryview(data).tobytes())
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.uri}: cannot be written: {_first_line(error)}; check the path and its permissions"
            ) from error

    def version(self) -> str | None:
        """A token that changes with the bytes here; None when there is nothing. Raises StorageError."""
        if not self.exists():
            return None
        return (
            hashlib.sha256(self.read()).hexdigest()
            if self.is_local
            else str(_s3().info(self.path, refresh=True)["ETag"])
        )

    def replace(self, data: bytes, expected: str | None) -> None:
        """Write only if the version here is still `expected`: of several writers one wins. Raises ConflictError, StorageError.

        Locally under a lock on the folder; on S3 a conditional PUT (`If-Match`, or `If-None-Match` for a first write).
        """
        if self.is_local:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with _locked(Path(self.path).parent):
                if self.version() != expected:
                    raise ConflictError(f"{self.uri}: was changed by somebody else meanwhile")
                return self.write(data)
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            _s3().pipe_file(self.path, data, **condition)
        except OSError as error:
            if "precondition" in str(error).lower() or isinstance(error, FileExistsError):
                raise ConflictError(f"{self.uri}: was changed by somebody else meanwhile") from error
            raise StorageError(f"{self.uri}: cannot be written: {_first_line(error)}") from error

    def delete(self) -> None:
        """Remove this file, or this folder with all that is in it. Raises StorageError."""
        try:
            if self.info().type == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            else:
                self.filesystem.delete_file(self.path)
        except OSError as error:
            raise StorageError(f"{self.uri}: cannot be removed: {_first_line(error)}") from error

    def abort_uploads(self) -> None:
        """Give up unfinished multipart uploads below this prefix; they cost money and nobody sees them. Raises StorageError."""
        if self.is_local:
            return
        bucket, _, prefix = self.path.partition("/")
        client = _s3()
        try:
            found = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
            for upload in found.get("Uploads", []):
                client.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except OSError as error:
            raise StorageError(f"{self.uri}: unfinished uploads cannot be removed: {_first_line(error)}") from error

    def _write_aside_and_rename(self, data: bytes | pa.Buffer) -> None:
        final = Path(self.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        # Readers of Parquet folders skip names that begin with "_".
        aside = final.with_name(f"_writing-{secrets.token_hex(8)}")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, final)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock; it goes with the process, so a crash leaves none behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def locate(uri: str) -> Location:
    """The location behind a local path, `file://` or `s3://` URI. Raises StorageError for any other scheme."""
    if uri.startswith("s3://"):
        path = uri.removeprefix("s3://").rstrip("/")
        if not path:
            raise StorageError(f"{uri}: names no bucket; write s3://BUCKET/PREFIX")
        return Location(_s3_for_data(path.split("/")[0]), path, "s3://" + path)
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(f"{uri}: unknown scheme; use a local path or s3://BUCKET/PREFIX")
    local = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
    return Location(pafs.LocalFileSystem(), local, local)


def check_writable(location: Location) -> None:
    """Write and remove a tiny file, so that a job fails before its work and not after. Raises StorageError."""
    probe = location / f"_probe-{secrets.token_hex(8)}"
    probe.write(b"cataloger")
    probe.delete()


def _s3_for_data(bucket: str) -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        try:
            region = pafs.resolve_s3_region(bucket)
        except OSError as error:
            raise StorageError(f"s3://{bucket}: bucket not found: {_first_line(error)}") from error
    return pafs.S3FileSystem(region=region or "us-east-1", endpoint_override=endpoint)


def _s3() -> Any:
    # s3fs for writes: pyarrow's S3 stream completes an upload even when the writer failed half-way.
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=False)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
