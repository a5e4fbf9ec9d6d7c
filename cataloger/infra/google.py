"""Google Cloud Storage: `gs://BUCKET/PATH`. Credentials are those that Google's own tools find.

`STORAGE_EMULATOR_HOST` names another server than Google's, such as an emulator, which wants none.
"""

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

EMULATOR = "STORAGE_EMULATOR_HOST"
# As many as the client keeps connections.
THREADS = 8
_MEANINGS = (
    (
        ("defaultcredentialserror", "could not create a oauth2", "unauthenticated", "permission_denied", "forbidden", "unauthorized", "status code: 401", "status code: 403"),
        "Google refuses the credentials; check GOOGLE_APPLICATION_CREDENTIALS, or the service account and its role on the bucket",
    ),
    (("bucket does not exist", "bucket not found", "nosuchbucket"), "there is no such bucket; create it first"),
    (
        ("could not connect", "couldn't connect", "could not resolve", "max retries", "unavailable", "timed out", "deadline"),
        "Google Cloud Storage does not answer; check the network",
    ),
)  # fmt: skip


def for_reading(bucket: str) -> pafs.GcsFileSystem:
    """See `stores.Store`."""
    if server := os.environ.get(EMULATOR):
        parts = urlsplit(server if "://" in server else f"http://{server}")
        return pafs.GcsFileSystem(anonymous=True, endpoint_override=parts.netloc, scheme=parts.scheme)
    return pafs.GcsFileSystem()


def put(path: str, data: bytes) -> None:
    """See `stores.Store`: an object is there when its last byte is."""
    # Or the client would not send again what Google has not answered: to write the same twice does no harm.
    _blob(path).upload_from_string(data, retry=_retry())


def put_if(path: str, data: bytes, expected: str | None) -> bool:
    """See `stores.Store`: `ifGenerationMatch`, 0 for an object that is not there.

    A write whose answer was lost is sent again and then meets its own object: that counts as written.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = _blob(path)
    try:
        blob.upload_from_string(data, if_generation_match=int(expected or 0), retry=_retry())
    except PreconditionFailed:
        try:
            return bool(blob.download_as_bytes() == data)
        except NotFound:
            head_bucket(path.split("/")[0])
            return False
    return True


def etag(path: str) -> str:
    blob = _blob(path)
    blob.reload()
    return str(blob.generation)


def head_bucket(bucket: str) -> None:
    from google.api_core.exceptions import NotFound

    if not _client().bucket(bucket).exists():
        raise NotFound("the bucket does not exist")


def delete_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """See `stores.Store`. pyarrow's own way ends at objects that stand for folders and are not there."""
    from google.api_core.exceptions import NotFound

    def delete(blob: Any) -> None:
        with contextlib.suppress(NotFound):
            blob.delete()

    bucket, _, prefix = path.partition("/")
    # Several at once, as each is a request of its own, and no more than a page of them in memory.
    with ThreadPoolExecutor(THREADS) as pool:
        for page in _client().bucket(bucket).list_blobs(prefix=f"{prefix}/").pages:
            list(pool.map(delete, list(page)))


def abort_uploads(path: str) -> None:
    """Nothing to do: Google forgets an upload that has not gone on for a week."""


def errors() -> tuple[type[Exception], ...]:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    return OSError, ValueError, GoogleAPIError, GoogleAuthError, RequestException


def meaning(error: BaseException) -> str | None:
    text = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    return next((sentence for signs, sentence in _MEANINGS if any(sign in text for sign in signs)), None)


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(120.0)


def _client() -> Any:
    return _connected(os.environ.get(EMULATOR))


@functools.lru_cache(maxsize=4)
def _connected(emulator: str | None) -> Any:
    """Kept: each new client would ask for a token of its own."""
    from google.cloud import storage

    if emulator:
        from google.auth.credentials import AnonymousCredentials

        return storage.Client(project="emulated", credentials=AnonymousCredentials())
    return storage.Client()


def _blob(path: str) -> Any:
    bucket, _, key = path.partition("/")
    return _client().bucket(bucket).blob(key)
