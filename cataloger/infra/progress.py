"""What a person watching a long job sees: a bar with rows/s and time left, or a line now and then in a log file."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cataloger.errors import CatalogerError

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0

StepMetric = tuple[str, float, int, int]  # name, value, Unix time in milliseconds, step


class Meter:
    """Counts rows; `advance_to` shows them."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.first, self.done, self.note = title, total, 0, 0, ""
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

    def begin_at(self, done: int, note: str) -> None:
        """What is done already counts for no rate."""
        self.first, self.started = done, time.monotonic()
        log.info("%s: %s", self.title, note)

    @property
    def seconds(self) -> float:
        """Since the meter was started."""
        return time.monotonic() - self.started

    def advance_to(self, done: int, note: str = "") -> None:
        self.done, self.note = done, note
        rate = max(0, done - self.first) / max(1e-9, self.seconds)
        text = f"{rate:,.0f} rows/s  {note}".strip()
        if self.bar:
            self.bar.update(self.task, completed=done, note=text)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES and done > self.first:
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
    """Carries what remote workers report to the driver: rows done and a note, and metrics for MLflow."""

    def __init__(self) -> None:
        self.state = (0, "")
        self.begun: tuple[int, str] | None = None
        self.metrics: list[StepMetric] = []
        self.reason: CatalogerError | None = None

    def give_up(self, reason: CatalogerError) -> None:
        """Make the workers stop, and the driver raise this; one that a worker raises is retried as if a machine had died."""
        self.reason = self.reason or reason

    def reason_to_give_up(self) -> CatalogerError | None:
        return self.reason

    def go_on(self, done: int, note: str, metrics: list[StepMetric]) -> None:
        """Not from the beginning: with so many rows done, and these metrics of before."""
        self.begun = (done, note)
        self.post(done, note, metrics)

    def post(self, done: int, note: str, metrics: list[StepMetric]) -> None:
        self.state = (done, note)
        self.metrics += metrics

    def take(self) -> tuple[tuple[int, str] | None, int, str, list[StepMetric]]:
        """(where it went on, if it did since the last call), the state now, and the metrics since then."""
        metrics, self.metrics = self.metrics, []
        begun, self.begun = self.begun, None
        return (begun, *self.state, metrics)


@contextmanager
def remote_meter(title: str, total: int, log_metrics: Callable[[list[StepMetric]], None]) -> Iterator[Any]:
    """Like `meter`, fed by whoever calls `board.post.remote(done, note, metrics)` on the yielded actor.

    Workers reach the driver through Ray alone: the MLflow server may listen on the driver's localhost only.
    """
    # On the driver's node: it may not be lost with another one.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    stop = threading.Event()
    with meter(title, total) as shown:

        def take() -> None:
            begun, done, note, metrics = ray.get(board.take.remote())
            if begun:
                shown.begin_at(*begun)
            shown.advance_to(done, note)
            if metrics:
                log_metrics(metrics)

        def follow() -> None:
            while not stop.wait(0.5):
                take()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield board
        finally:
            stop.set()
            thread.join()
            take()
            ray.kill(board)
