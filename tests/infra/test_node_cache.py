import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cataloger.errors import StorageError
from cataloger.infra import node_cache
from cataloger.infra.node_cache import first_time, once_per_node, working_folder
from conftest import ROOT

KILLED = """
import os, sys
from cataloger.infra.node_cache import once_per_node, working_folder

def make(folder):
    (folder / "half").write_bytes(b"x")
    os.kill(os.getpid(), 9)

with working_folder("download"):
    once_per_node("carry", "killed", make)
"""


@pytest.fixture(autouse=True)
def cache(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATALOGER_CACHE", str(working_folder / "cache"))
    return working_folder / "cache" / f"cataloger-{os.getuid()}"


def make(folder: Path) -> None:
    (folder / "made").write_text("once")


def test_what_a_killed_process_left_is_removed_by_the_next_one(cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    assert len([left for left in cache.iterdir() if "~" in left.name]) == 2
    with working_folder("download") as mine:
        assert [left for left in cache.iterdir() if "~" in left.name] == [mine]
        with working_folder("download") as other:
            assert mine.is_dir(), "living processes keep theirs"
            assert mine != other
    assert once_per_node("carry", "killed", make).joinpath("made").read_text() == "once"
    assert sorted(left.name for left in cache.iterdir()) == ["carry-killed", "carry.lock"]


def test_what_nobody_asked_for_goes_when_something_new_is_made(cache: Path) -> None:
    yesterday, used = once_per_node("carry", "yesterday", make), once_per_node("carry", "used", make)
    other = once_per_node("model", "other", make)
    day = time.time() - 24 * 3600
    for folder in (yesterday, used, other):
        os.utime(folder, (day, day))
    assert once_per_node("carry", "used", make, 6 * 3600) == used
    once_per_node("carry", "tonight", make, 6 * 3600)
    assert (yesterday.exists(), used.exists(), other.exists()) == (False, True, True)


def test_a_folder_that_others_may_write_to_is_not_trusted(cache: Path) -> None:
    once_per_node("model", "m", make)
    assert cache.stat().st_mode & 0o777 == 0o700
    (cache / "model-planted").mkdir()
    cache.chmod(0o777)
    once_per_node("model", "m", make)
    assert (cache.stat().st_mode & 0o777, os.listdir(cache / "model-m")) == (0o700, ["made"])
    assert not (cache / "model-planted").exists()
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to(cache.with_name("elsewhere"))
    with pytest.raises(StorageError, match=r"is not a folder of yours.*CATALOGER_CACHE"):
        once_per_node("model", "m", make)


def test_a_full_disk_is_a_sentence_and_leaves_nothing(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"cannot be filled: .*make room .*CATALOGER_CACHE"):
        once_per_node("carry", "large", fill)
    assert os.listdir(cache) == ["carry.lock"]


def test_something_is_done_for_the_first_time_once(cache: Path) -> None:
    assert [first_time("broken", key) for key in ("a", "b", "a")] == [True, True, False]
    past = time.time() - 2 * 24 * 3600
    os.utime(cache / "broken-a", (past, past))
    assert first_time("broken", "a"), "a night and a half later it is another matter"


def test_somebody_elses_folder_is_not_trusted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once_per_node("model", "m", make)
    real = Path.lstat

    def of_somebody(path: Path) -> os.stat_result:
        found = list(real(path))
        found[4] = os.getuid() + 1
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", of_somebody)
    with pytest.raises(StorageError, match="is not a folder of yours"):
        once_per_node("model", "m", make)
    assert node_cache.SETTING == "CATALOGER_CACHE"
