"""The memory of a process and of those that it starts."""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray._common.utils import get_default_ray_temp_dir


@dataclass
class Peak:
    """KiB of the process and of the largest of Ray's workers that it started, objects in Ray's spill folder, and seconds of CPU that
    the process took by itself."""

    driver: int = 0
    worker: int = 0
    spilled: int = 0
    seconds: float = 0.0


@contextmanager
def watched(pid: int, every: float = 0.5) -> Iterator[Peak]:
    """Look at a process while the block runs."""
    peak, ended = Peak(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(pid), peak, ended, every))
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _watch(process: psutil.Process, peak: Peak, ended: threading.Event, every: float) -> None:
    session = Path(get_default_ray_temp_dir()) / "session_latest"
    while True:
        with contextlib.suppress(psutil.Error, OSError):  # of processes and folders that are gone by now
            peak.driver = max(peak.driver, heap(process.pid))
            peak.seconds = sum(process.cpu_times()[:2])
            for child in process.children(recursive=True):
                if child.name().startswith("ray::"):
                    peak.worker = max(peak.worker, heap(child.pid))
            if process.pid != os.getpid():
                spilled = sum(file.is_file() for file in session.rglob("ray_spilled_objects*/**/*"))
                peak.spilled = max(peak.spilled, spilled)
        if ended.wait(every):
            return


def heap(pid: int) -> int:
    """KiB of memory of its own: neither the object store, which all share, nor mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
