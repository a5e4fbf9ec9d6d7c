"""Pictures that lie elsewhere: which version of each is there now, and its bytes.

A reference is a local path, `file://`, `s3://` or `http(s)://`; one without a scheme that is no absolute path is below the
catalog's folder. Many are asked for at once, each of them several times; what is not there is missing, and no error. Where nobody
answers it is unreachable: it may be there tomorrow.
"""

import contextlib
import errno
import functools
import hashlib
import logging
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from cataloger.data.images import MISSING, MOST_BYTES, TOO_LARGE, UNREACHABLE, Unreadable
from cataloger.errors import StorageError
from cataloger.infra import stores
from cataloger.infra.storage import locate

log = logging.getLogger(__name__)
AT_ONCE = 16
DECODED_AT_ONCE = 2
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
# So many pictures of a host that are lost one after the other, in one process, and for how long nobody asks it then.
LOST_IN_A_ROW, SILENT_SECONDS = 8, 300.0
CONNECT_SECONDS, READ_SECONDS, MOST_SECONDS = 5.0, 20.0, 60.0
CHUNK = 1 << 16
# Answers that may be another one the next time.
RETRIED = (408, 425, 429, 500, 502, 503, 504)
# Of a disk, and of a store: what will be the same the next time.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
REFUSED = ("ACCESS_DENIED", "AccessDenied", "Forbidden")
Found = TypeVar("Found")
_decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)


def hurry() -> None:
    """For a process whose callers wait: one attempt, a few seconds, and a host that is silent is soon asked again."""
    global ATTEMPTS, CONNECT_SECONDS, READ_SECONDS, MOST_SECONDS, SILENT_SECONDS
    ATTEMPTS, CONNECT_SECONDS, READ_SECONDS, MOST_SECONDS, SILENT_SECONDS = 1, 2.0, 5.0, 10.0, 10.0


class _TryAgain(Exception):
    """What may go better the next time."""


def resolved(reference: str, base: str) -> str:
    """As a location of its own; `base` is the folder of the catalog."""
    scheme, mark, rest = reference.partition("://")
    if mark:
        return f"{scheme.lower()}://{rest}"
    if os.path.isabs(reference) or not base:
        return reference
    return f"{base.rstrip('/')}/{reference}"


def versions(references: Sequence[str]) -> list[str | Unreadable]:
    """What changes with the bytes of each picture (the ETag, or size and time of change), or why it cannot be had."""
    return _each(references, _version)


def fetch(references: Sequence[str], use: Callable[[bytes], Found]) -> list[Found | Unreadable]:
    """What `use` makes of the bytes of each picture, or why it cannot be had. `use` may raise Unreadable."""

    def one(reference: str) -> Found:
        data = _bytes(reference)
        # Many are waited for at once, few are in memory as pixels.
        with _decoding:
            return use(data)

    return _each(references, one)


def _each(references: Sequence[str], ask: Callable[[str], Found]) -> list[Found | Unreadable]:
    def one(reference: str) -> Found | Unreadable:
        try:
            return _with_patience(reference, lambda: ask(reference))
        except Unreadable as problem:
            return problem
        except ValueError:  # no address: urllib, requests and pyarrow each say so in their own way
            return Unreadable(MISSING)

    if not references:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(references))) as pool:
        return list(pool.map(one, references))


class _Hosts:
    """Which hosts have gone silent: a night would be over before all their pictures have been waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: dict[str, int] = {}
        self._since: dict[str, float] = {}

    def is_silent(self, host: str) -> bool:
        with self._lock:
            return time.monotonic() - self._since.get(host, -SILENT_SECONDS) < SILENT_SECONDS

    def answered(self, host: str) -> None:
        with self._lock:
            self._lost.pop(host, None)

    def lost(self, host: str) -> None:
        """A picture that could not be had in all attempts."""
        with self._lock:
            self._lost[host] = self._lost.get(host, 0) + 1
            if self._lost[host] < LOST_IN_A_ROW:
                return
            self._lost[host], self._since[host] = 0, time.monotonic()
        log.warning("%s does not answer: for %.0f s nobody asks it for pictures", host or "the disk", SILENT_SECONDS)


_hosts = _Hosts()


def _with_patience(reference: str, ask: Callable[[], Found]) -> Found:
    """Waits twice as long each time, and by chance a little less, so that not all who wait come back at once."""
    host = urlsplit(reference).netloc
    for number in range(ATTEMPTS):
        if _hosts.is_silent(host):
            raise Unreadable(UNREACHABLE)
        try:
            found = ask()
        except _TryAgain as problem:
            if number == ATTEMPTS - 1:
                _hosts.lost(host)
                raise Unreadable(UNREACHABLE) from problem
        except Unreadable:
            _hosts.answered(host)
            raise
        else:
            _hosts.answered(host)
            return found
        time.sleep(FIRST_WAIT_SECONDS * 2**number * (0.5 + random.random() / 2))
    raise AssertionError("there is at least one attempt")


def _version(reference: str) -> str:
    if _is_http(reference):
        with _asked("HEAD", reference) as answer:
            if answer.status_code in (403, 405, 501):  # some servers know GET alone
                return hashlib.blake2b(_bytes(reference), digest_size=16).hexdigest()
            _check_size(answer)
            tag, headers = answer.headers.get("ETag"), answer.headers
            if tag:
                return str(tag)
            if "Last-Modified" in headers:
                return f"{headers.get('Content-Length')} {headers['Last-Modified']}"
        return hashlib.blake2b(_bytes(reference), digest_size=16).hexdigest()
    size, changed = _info(reference)
    return f"{size} {changed}"


def _bytes(reference: str) -> bytes:
    if not _is_http(reference):
        _info(reference)
        if (file := _on_disk(reference)) is not None:
            with _of_disk():
                return file.read_bytes()
        with _of_store():
            return bytes(_located(reference).read())
    import urllib3

    began, parts, size = time.monotonic(), [], 0
    with _asked("GET", reference) as answer:
        _check_size(answer)
        try:
            # What is there, and no more: to wait for a whole chunk may take a slow server for ever.
            while chunk := answer.raw.read1(CHUNK, decode_content=True):
                parts.append(chunk)
                size += len(chunk)
                if size > MOST_BYTES:
                    raise Unreadable(TOO_LARGE)
                if time.monotonic() - began > MOST_SECONDS:
                    raise _TryAgain
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise _TryAgain from error
        stated = answer.headers.get("Content-Length", "")
        if stated.isdecimal() and "Content-Encoding" not in answer.headers and size != int(stated):
            raise _TryAgain
    return b"".join(parts)


def _info(reference: str) -> tuple[int, int]:
    """(size, time of change)"""
    if (file := _on_disk(reference)) is not None:
        with _of_disk():
            found = file.stat()
        is_file, size, changed = stat.S_ISREG(found.st_mode), found.st_size, found.st_mtime_ns
    else:
        with _of_store():
            info = _located(reference).info()
        is_file, size, changed = info.is_file, info.size, info.mtime_ns
    if not is_file:
        raise Unreadable(MISSING)
    if size > MOST_BYTES:
        raise Unreadable(TOO_LARGE)
    return size, changed


def _on_disk(reference: str) -> Path | None:
    scheme, found, rest = reference.partition("://")
    if not found:
        return Path(reference).expanduser()
    return Path(unquote(rest)) if scheme == "file" else None


@contextlib.contextmanager
def _of_disk() -> Iterator[None]:
    """What is no file, or somebody else's, is missing; a disk that fails may be there again."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_FILE:
            raise Unreadable(MISSING) from error
        raise _TryAgain from error


@contextlib.contextmanager
def _of_store() -> Iterator[None]:
    """Who may not list a bucket is refused what is not there as well: nobody knows whether it is, and to ask again is of no use."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError) or any(sign in str(error.__cause__) for sign in REFUSED):
            raise Unreadable(UNREACHABLE) from error
        raise _TryAgain from error


def _located(reference: str) -> Any:
    scheme, _, rest = reference.partition("://")
    if scheme in stores.SCHEMES:
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise Unreadable(MISSING)
        return _bucket(scheme, bucket) / key
    try:
        return locate(reference)
    except StorageError as error:  # a scheme that nobody knows
        raise Unreadable(MISSING) from error


@functools.lru_cache(maxsize=16)
def _bucket(scheme: str, bucket: str) -> Any:
    """Kept: each new client would look for credentials again."""
    return locate(f"{scheme}://{bucket}")


def _is_http(reference: str) -> bool:
    return urlsplit(reference).scheme in ("http", "https")


class _Connections(threading.local):
    """Of each thread its own session, which keeps connections open."""

    @functools.cached_property
    def session(self) -> Any:
        import requests

        return requests.Session()


_connections = _Connections()


def _asked(method: str, reference: str) -> Any:
    import requests

    try:
        answer = _connections.session.request(
            method, reference, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS), allow_redirects=True
        )
    except (
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.TooManyRedirects,
        UnicodeError,
    ) as error:
        raise Unreadable(MISSING) from error
    except (requests.RequestException, OSError) as error:
        raise _TryAgain from error
    if answer.status_code in RETRIED:
        answer.close()
        raise _TryAgain
    if answer.status_code >= 400 and not (method == "HEAD" and answer.status_code in (403, 405, 501)):
        answer.close()
        raise Unreadable(MISSING)
    return answer


def _check_size(answer: Any) -> None:
    stated = answer.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) > MOST_BYTES:
        raise Unreadable(TOO_LARGE)
