"""What a person watching a long job sees: a bar with rows/s and time left, or a line now and then in a log file."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """Counts rows; `advance_to` shows them."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self.started = self.last_line = time.monotonic()
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(title, total=total, note="")

    def advance_to(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        rate = done / max(1e-9, time.monotonic() - self.started)
        text = f"{rate:,.0f} rows/s  {note}".strip()
        if self.bar:
            self.bar.update(self.task, completed=done, note=text)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES and done:
            self.last_line = time.monotonic()
            left = (self.total - done) / max(1e-9, rate)
            log.info("%s: %s of %s rows, %s, %.0f s left", self.title, f"{done:,}", f"{self.total:,}", text, left)


@contextmanager
def meter(title: str, total: int) -> Iterator[Meter]:
    """A meter on the terminal for as long as the block runs."""
    shown = Meter(title, total)
    if shown.bar:
        with shown.bar:
            yield shown
    else:
        yield shown


class Board:
    """Carries the progress of remote workers to the driver."""

    def __init__(self) -> None:
        self.state = (0, "")

    def post(self, done: int, note: str) -> None:
        self.state = (done, note)

    def read(self) -> tuple[int, str]:
        return self.state


@contextmanager
def remote_meter(title: str, total: int) -> Iterator[Any]:
    """Like `meter`, fed by whoever calls `board.post.remote(done, note)` on the yielded actor."""
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    stop = threading.Event()
    with meter(title, total) as shown:

        def follow() -> None:
            while not stop.wait(0.5):
                shown.advance_to(*ray.get(board.read.remote()))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield board
        finally:
            stop.set()
            thread.join()
            ray.kill(board)
