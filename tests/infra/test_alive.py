import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cataloger.infra.alive import identity, is_dead
from conftest import ROOT

SAY_WHO = "from cataloger.infra.alive import identity; print(identity(), flush=True); input()"
# As in a container: the first process of a pid namespace of its own.
IN_CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@contextmanager
def another(*prefix: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that lives for as long as the block runs, and who it says it is."""
    command = [*prefix, sys.executable, "-c", SAY_WHO]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def container() -> list[str]:
    if subprocess.run([*IN_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no pid namespaces")
    return IN_CONTAINER


def test_a_process_is_alive_until_it_ends() -> None:
    assert is_dead(identity()) is False
    with another() as (process, who):
        assert who != identity()
        assert is_dead(who) is False
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(who) is True, "killed, and its parent has not asked yet"
    assert is_dead(who) is True


def test_a_pid_that_another_process_has_now_is_not_the_one_that_had_it() -> None:
    place, _, began = identity().rpartition(" ")
    assert is_dead(f"{place} {int(began) - 1}") is True


def test_of_other_machines_nothing_is_known() -> None:
    _, namespace, pid, began = identity().split(" ")
    assert is_dead(f"another-boot {namespace} {pid} {began}") is None
    assert is_dead(f"? {namespace} {pid} {began}") is None


def test_a_stopped_process_is_alive() -> None:
    with another() as (process, who):
        process.send_signal(signal.SIGSTOP)
        assert is_dead(who) is False


def test_containers_are_told_apart() -> None:
    """All their processes have the same host name and pid."""
    prefix = container()
    ask = f"from cataloger.infra.alive import is_dead; print(is_dead({identity()!r}))"
    with another(*prefix) as (_, first), another(*prefix) as (_, second):
        assert first.split(" ")[2] == second.split(" ")[2] == "1"
        assert first != second
        assert is_dead(first) is None, "it lives where we cannot look"
        asked = subprocess.run([*prefix, sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True)
        assert asked.stdout == "None\n", asked.stderr
