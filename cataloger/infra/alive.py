"""Which process it is that does something, and whether it still lives.

A host's name and a pid do not say: a container that is started again has those of the one before, and its successor on
another machine has others. The kernel's boot, the pid namespace, the pid and when the process began do.
"""

import os
import socket
from pathlib import Path

UNKNOWN = "?"


def identity() -> str:
    """This process, as four words that no other process has, here or elsewhere: for `is_dead`."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        pid, _, began = _stat("self")
    except OSError:
        pid, boot = -1, ""
    if pid != os.getpid():  # there is no /proc, or it shows another namespace, where our neighbours have other numbers
        return f"{UNKNOWN} {socket.gethostname()} {os.getpid()} {UNKNOWN}"
    return f"{boot} {namespace} {pid} {began}"


def is_dead(process: str) -> bool | None:
    """Whether the process with that identity is over; None where that cannot be told from here."""
    words, here = process.split(" "), identity().split(" ")
    if words[:2] != here[:2] or UNKNOWN in words:
        return None
    pid, began = words[2:]
    try:
        _, state, found = _stat(pid)
    except OSError:
        return _is_free(int(pid))
    # Nobody has asked yet how a killed process ended: in a container it may stay in /proc for as long as that runs.
    return state in "ZX" or found != began


def _stat(pid: str) -> tuple[int, str, str]:
    """(pid, state, when it began in clock ticks since the boot). Raises OSError for a process that is not there."""
    number, _, rest = Path(f"/proc/{pid}/stat").read_text().partition(" (")
    fields = rest.rpartition(") ")[2].split()  # a program's name may hold anything
    return int(number), fields[0], fields[19]


def _is_free(pid: int) -> bool | None:
    """Whether no process has this number; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return None
    return False
