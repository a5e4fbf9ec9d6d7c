"""Whose a folder is: of all processes that could work on it one does, on a disk or on S3, and another when that one is dead."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Literal

from cataloger.errors import ConflictError, StorageError
from cataloger.infra import alive
from cataloger.infra.storage import Location

log = logging.getLogger(__name__)
OWNER = "_owner"
BEAT_SECONDS = 15.0
# An owner that nobody here can look at is taken for dead when it has not written for so long.
LEASE_SECONDS = 120.0
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Entry:
    """What the file says. `token` differs between claims, `beat` between writes, so that no two writes are alike."""

    state: Literal["working", "left", "done"]
    process: str
    token: str
    beat: int
    note: str

    def as_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Claim:
    """A folder that is this process's own. While the block runs it says so now and then; after it the folder is free.

    `note` is what the owner before left for this one.
    """

    def __init__(self, folder: Location, note: str) -> None:
        self.folder = folder
        self.entry = Entry("working", alive.identity(), secrets.token_hex(8), 0, note)
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._lost = ""
        self._stop: Callable[[str], None] | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with suppress(StorageError):
            if self.entry.state == "working":
                self._write(state="left")

    @property
    def note(self) -> str:
        return self.entry.note

    def renew(self, note: str | None = None) -> None:
        """Say that the folder is still ours, and what the next owner should know. Raises ConflictError where it is not, StorageError."""
        self._write(**({} if note is None else {"note": note}))

    def finish(self) -> None:
        """Nobody needs to work on the folder again. Raises ConflictError, StorageError."""
        self._write(state="done")

    def when_lost(self, stop: Callable[[str], None]) -> None:
        """`stop(reason)` is called, from another thread, when somebody else has taken the folder."""
        self._stop = stop
        if self._lost:
            stop(self._lost)

    def _write(self, **changes: str) -> None:
        file = self.folder / OWNER
        with self._writing:
            while True:
                version = file.version()
                if version is None:
                    raise ConflictError(f"{self.folder}: was removed while this process worked in it")
                if read(file).token != self.entry.token:
                    raise ConflictError(
                        f"{self.folder}: another process works here now, since this one was silent for {LEASE_SECONDS:.0f} seconds"
                    )
                entry = replace(self.entry, beat=self.entry.beat + 1, **changes)  # type: ignore[arg-type]
                try:
                    file.replace(entry.as_bytes(), version)
                except ConflictError:  # it was taken between the two looks, as the next one says
                    continue
                self.entry = entry
                return

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self.renew()
            except ConflictError as problem:
                self._lost = str(problem)
                if self._stop:
                    self._stop(self._lost)
                return
            except StorageError:  # nobody else can take the folder meanwhile
                continue


def take(folder: Location) -> Claim | None:
    """The folder for this process; None where another one works on it, or the work is done. Of several at once one gets it.

    Where it cannot be told from here whether the owner lives, his beat is watched, for two minutes if there is none.
    Raises StorageError.
    """
    file = folder / OWNER
    version = file.version()
    found = read(file) if version else None
    if found and found.state == "done":
        return None
    if found and found.state == "working":
        dead = alive.is_dead(found.process)
        if dead is None:
            log.info("%s: watching for a while whether a process of another machine still works here", folder)
            dead = _stays_silent(file, version)
            if not dead and read(file).state == "left":
                return take(folder)
        if not dead:
            return None
    claim = Claim(folder, found.note if found else "")
    try:
        file.replace(claim.entry.as_bytes(), version)
    except ConflictError:  # somebody else was faster
        return None
    return claim


def read(file: Location) -> Entry:
    """Raises StorageError."""
    return Entry(**json.loads(file.read()))


def _stays_silent(file: Location, version: str | None) -> bool:
    """Whether nothing is written for a whole lease, by this clock alone: those of two machines may differ."""
    end = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        if file.version() != version:
            return False
    return True
