"""What the processes of a node share on its disk, and the folders they work in: nothing of it outlives its use for long.

It lies in `cataloger-UID` in the folder that CATALOGER_CACHE names on that node, by default the one for temporary files.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from cataloger.errors import StorageError
from cataloger.infra.alive import identity, is_dead
from cataloger.infra.storage import explain, locked

SETTING = "CATALOGER_CACHE"
# Without use, what is kept outlives a night and a half.
KEPT_SECONDS = 36 * 3600
# Between the kind of a working folder, its owner, and a token that makes its name unique.
MARK = "~"
OTHERS_MAY_WRITE = 0o022


def once_per_node(kind: str, key: str, make: Callable[[Path], None], kept_seconds: float = KEPT_SECONDS) -> Path:
    """The folder that `make` fills, shared by the processes of this node: models, labels to carry over.

    The first process that asks makes it, the others wait; it appears whole or not at all. `key` names its content.
    Folders of the same kind that nobody asked for in `kept_seconds` are removed when a new one is made. Raises StorageError.
    """
    parent = _parent()
    folder = parent / f"{kind}-{key}"
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder)
        return folder
    lock_folder = parent / f"{kind}.lock"
    lock_folder.mkdir(exist_ok=True)
    with locked(lock_folder):
        if not folder.is_dir():
            _sweep(parent, kind, kept_seconds)
            with working_folder(kind) as aside:
                try:
                    make(aside)
                    aside.rename(folder)
                    os.utime(folder)  # it is as old as its first file, which may have been long ago
                except OSError as error:
                    raise StorageError(
                        f"{parent}: cannot be filled: {explain(error)}; or set {SETTING} to another folder on this node"
                    ) from error
    return folder


def first_time(kind: str, key: str) -> bool:
    """Whether no process of this node has asked this before, within a night and a half. Raises StorageError."""
    parent = _parent()
    _sweep(parent, kind, KEPT_SECONDS)
    try:
        (parent / f"{kind}-{key}").mkdir()
    except FileExistsError:
        return False
    return True


def _sweep(parent: Path, kind: str, kept_seconds: float) -> None:
    for old in parent.glob(f"{kind}-*"):
        if _age(old) > kept_seconds:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def working_folder(kind: str) -> Iterator[Path]:
    """A folder of this process alone, for as long as the block runs; if the process is killed, the next one removes it."""
    parent = _parent()
    for left in parent.glob(f"*{MARK}*{MARK}*"):
        dead = is_dead(unquote(left.name.split(MARK)[1]))
        # Of processes elsewhere, in other containers or before the last boot, nothing but the age is known.
        if dead or (dead is None and _age(left) > KEPT_SECONDS):
            shutil.rmtree(left, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=MARK.join([kind, quote(identity(), safe=""), ""]), dir=parent))
    except OSError as error:
        raise StorageError(f"{parent}: cannot be written: {explain(error)}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    parent = Path(os.environ.get(SETTING) or tempfile.gettempdir()) / f"cataloger-{os.getuid()}"
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = parent.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mode & OTHERS_MAY_WRITE:
            # Ours, but others could put something in: as earlier versions made it under a generous umask.
            shutil.rmtree(parent, ignore_errors=True)
            parent.mkdir(mode=0o700, exist_ok=True)
            found = parent.lstat()
    except OSError as error:
        raise StorageError(f"{parent}: cannot be made: {explain(error)}; or set {SETTING} to another folder") from error
    # Models are loaded from here: in a folder for everybody's files, somebody else may have been first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS_MAY_WRITE:
        raise StorageError(
            f"{parent}: is not a folder of yours that nobody else may write to; remove it, or set {SETTING} to another folder"
        )
    return parent


def _age(folder: Path) -> float:
    """Seconds since it was last asked for; 0 for one that is gone meanwhile."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
