"""The check at the end of the tests finds what it is there to find."""

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from leftovers import none_left

SLEEP = ["-c", "import time; time.sleep(60)"]


def test_a_process_that_is_left_fails_the_tests_and_is_ended() -> None:
    with pytest.raises(AssertionError, match="still running"), none_left(grace_seconds=0.5):
        left = subprocess.Popen([sys.executable, *SLEEP])
    assert not psutil.pid_exists(left.pid)


def test_a_worker_of_ray_is_ended() -> None:
    with none_left(grace_seconds=0.5):
        left = subprocess.Popen(["ray::IDLE", *SLEEP], executable=sys.executable)
    assert not psutil.pid_exists(left.pid)


def test_a_large_temporary_file_fails_the_tests() -> None:
    with pytest.raises(AssertionError, match="left in the folder for temporary files"), none_left():
        Path(tempfile.gettempdir(), "large").write_bytes(bytes(2 << 20))
