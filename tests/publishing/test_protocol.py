"""Promise: whatever drivers, prunings and rollbacks do at the same time, and wherever they crash, readers see one whole run.

Every actor is a thread that stops before each of its accesses to the store. Hypothesis chooses who takes the next step,
who crashes, and who joins in; after every step the output is read as a reader would.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cataloger.data.units import Segment, Unit
from cataloger.errors import CatalogerError, PublishError
from cataloger.infra.storage import Location, locate
from cataloger.publishing import pointer, snapshot, upkeep
from cataloger.publishing.parts import finished_parts, write_part

UNITS = [Unit(0, (Segment("x", 0, 0, 3),)), Unit(1, (Segment("x", 0, 3, 2),))]
IDS = [[0, 1, 2], [3, 4]]
ABOUT = {"catalog": "c", "catalog_fingerprint": "f", "model": "m", "model_digest": "d", "config": {"id_column": "id"}}


class Crash(BaseException):
    """The actor's machine is gone: no cleaning up beyond what the kernel does."""


class Actor(threading.Thread):
    """Runs `work`, one access to the store at a time."""

    here = threading.local()

    error: Exception | None

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.next = ""
        self.work, self.crashed, self.done, self.error = work, False, False, None
        self.go, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self.stopped.acquire()

    def run(self) -> None:
        Actor.here.actor = self
        try:
            self.pause()
            with contextlib.suppress(CatalogerError):
                self.work()
        except Crash:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.done = True
            self.stopped.release()

    def pause(self, access: str = "") -> None:
        self.next = access
        self.stopped.release()
        self.go.acquire()
        if self.crashed:
            raise Crash

    def step(self) -> None:
        if not self.done:
            self.go.release()
            self.stopped.acquire()
            if self.error:
                raise self.error

    def to_the_brink(self) -> None:
        """Up to, not including, the next access that changes the store."""
        self.step()
        while not self.done and self.next not in ("write", "replace", "delete"):
            self.step()

    def to_the_end(self) -> None:
        while not self.done:
            self.step()

    def crash(self) -> None:
        self.crashed = True
        self.step()


@pytest.fixture(scope="module", autouse=True)
def one_access_at_a_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("exists", "files", "read", "write", "version", "replace", "delete"):
            original: Callable[..., object] = getattr(Location, name)

            def stepped(
                *args: object, original: Callable[..., object] = original, name: str = name, **more: object
            ) -> object:
                actor = getattr(Actor.here, "actor", None)
                if actor is None:
                    return original(*args, **more)
                actor.pause(name)
                Actor.here.actor = None  # what it does inside is one access
                try:
                    return original(*args, **more)
                finally:
                    Actor.here.actor = actor

            patch.setattr(Location, name, stepped)
        patch.setattr(os, "fsync", lambda _: None)
        yield


def drive(output: Location, inputs: str) -> None:
    """What labeling.label does to the output."""
    seen = pointer.look(output)
    run = pointer.choose(output, inputs, seen)
    folder = snapshot.run_folder(output, run)
    if not snapshot.is_complete(output, run):
        parts = {unit: part for unit, (part, _) in finished_parts(folder, UNITS, 1).items()}
        for unit in UNITS:
            if unit.index not in parts:
                rows = IDS[unit.index]
                labels = pa.table({"id": rows[1:], "category": [inputs] * (len(rows) - 1)})
                rejects = pa.table({"id": rows[:1], "reason": ["r"]})
                parts[unit.index] = write_part(
                    folder, unit.index, labels, rejects, {"forwarded": len(rows)}, {"run": run}
                )
        snapshot.write_manifest(output, run, UNITS, parts, {**ABOUT, "inputs": inputs})
    if seen.run != run:
        pointer.publish(output, run, seen)


def prune(output: Location) -> None:
    upkeep.prune(output, 1)


def roll_back(output: Location) -> None:
    seen = pointer.look(output)
    others = [run.run for run in upkeep.list_runs(output) if run.complete and not run.published]
    if others:
        pointer.replace(output, others[-1], seen)


def read(folder: Path) -> str | None:
    """What a reader sees, checked: every id once, in the files that the manifest lists. The inputs it was made from."""
    if not (folder / "_latest.json").exists():
        return None
    named = json.loads((folder / "_latest.json").read_text())
    manifest = json.loads((folder / named["manifest"]).read_text())
    labels = pq.read_table(folder / named["path"])
    rejects = pq.read_table(folder / named["path"] / "_rejects")
    assert sorted(labels["id"].to_pylist() + rejects["id"].to_pylist()) == [0, 1, 2, 3, 4]
    assert set(labels["category"].to_pylist()) == {manifest["inputs"]}, "never two runs in one"
    assert (manifest["labelled"], manifest["rejects"], manifest["run"]) == (3, 2, named["run"])
    return str(manifest["inputs"])


JOIN = st.tuples(st.sampled_from(["monday", "tuesday", "prune", "prune", "roll back"]), st.just(0), st.just(0))
MOVE = st.tuples(st.sampled_from(["brink", "brink", "step", "end", "crash"]), st.integers(0, 2), st.integers(1, 6))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
# Pruned between its manifest and its pointer: the tombstone must stop it, not the missing files.
@example(True, [("monday", 0, 0), ("brink", 0, 5), ("prune", 0, 0), ("brink", 1, 3), ("end", 0, 1), ("end", 1, 1)])
@given(st.booleans(), st.lists(st.one_of(JOIN, MOVE, MOVE), min_size=4, max_size=40))
def test_no_interleaving_and_no_crash_shows_readers_anything_but_one_whole_run(
    yesterday: bool, moves: list[tuple[str, int, int]]
) -> None:
    room = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    output, actors, before = locate(str(room)), [], None
    works = {"monday": lambda: drive(output, "monday"), "tuesday": lambda: drive(output, "tuesday")}
    works |= {"prune": lambda: prune(output), "roll back": lambda: roll_back(output)}
    try:
        if yesterday:
            drive(output, "sunday")
        for what, number, times in moves:
            if what in works:
                actors = [*[actor for actor in actors if not actor.done][-3:], Actor(works[what])]
                continue
            if not actors:
                continue
            chosen = actors[number % len(actors)]
            move = {"step": chosen.step, "brink": chosen.to_the_brink, "end": chosen.to_the_end, "crash": chosen.crash}[
                what
            ]
            for _ in range(times):
                move()
            now = read(room)
            assert now or not before, "labels that were published stay published"
            before = now
        for actor in actors:
            actor.crash()
        # The morning after: the same command finishes the work, and one pruning leaves nothing of the dead.
        drive(output, "monday")
        assert read(room) == "monday"
        prune(output)
        assert read(room) == "monday"
        left = list(room.glob("run=*"))
        assert len(left) <= 2, "the published run, and the newest where that is another one"
        assert all((run / "_manifest.json").exists() for run in left)
        assert not list(room.rglob("_writing-*"))
    finally:
        for actor in actors:
            actor.crash()
        shutil.rmtree(room)


def test_a_rollback_stands_against_a_driver_that_had_begun_before(tmp_path: Path) -> None:
    """Two drivers of one command: one publishes, a person goes back, and then the other one is done."""
    output = locate(str(tmp_path))
    drive(output, "sunday")
    seen = pointer.look(output)
    drive(output, "monday")
    pointer.replace(output, str(seen.run), pointer.look(output))
    with pytest.raises(PublishError, match="was replaced by a person while this one was being made"):
        pointer.publish(output, "monday", seen)
    now = pointer.look(output)
    assert now.run == seen.run
    assert set(now.withdrawn) == {"monday"}


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_that_readers_have_is_not_written_again(tmp_path: Path, complete: bool) -> None:
    """Where whoever comes second could reach more pictures."""
    output, folder = locate(str(tmp_path)), snapshot.run_folder(locate(str(tmp_path)), "seeing")
    labels, rejects = pa.table({"id": [1, 2]}), pa.table({"id": [0], "reason": ["the picture is unreachable"]})
    one = (Unit(0, (Segment("x", 0, 0, 3),)),)
    part = write_part(folder, 0, labels, rejects, {"forwarded": 3, "unreachable": 1}, {"run": "seeing"})
    if complete:
        snapshot.write_manifest(output, "seeing", one, {0: part}, {**ABOUT, "inputs": "seeing"})
    again = write_part(folder, 0, pa.table({"id": [0, 1, 2]}), rejects.slice(0, 0), {"forwarded": 3}, {"run": "seeing"})
    assert (again == part) is complete
    assert ((folder / "_rejects" / "part-00000.parquet").exists()) is complete
