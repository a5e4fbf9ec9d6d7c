"""The pointer that readers follow, and the protocol that keeps it right while drivers crash, race and prune.

    OUTPUT/_latest.json       names the published run; the only thing that ever changes, in one atomic step
    OUTPUT/_pruned/<run>      a tombstone: this run must not be published any more

A driver looks at the pointer (`look`), then chooses its run (`choose`: never a tombstoned one), makes it, and turns the
pointer only if nobody has meanwhile (`publish`). Pruning writes tombstones, rewrites the pointer to the same run, and
only then deletes. So a driver that chose its run before the tombstone finds the pointer rewritten, looks again, and
sees the tombstone; one that comes later sees it at once and takes the next free id. No order of these steps, and no
crash between them, leaves readers with a run that is not whole; tests/test_protocol.py tries them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cataloger.errors import ConflictError, PublishError, StorageError
from cataloger.infra.storage import Location
from cataloger.publishing import snapshot

LATEST = "_latest.json"
PRUNED = "_pruned"


@dataclass(frozen=True)
class Pointer:
    """What a pointer says at least: a run, and where it lies, which is beside the pointer. Raises ValueError."""

    run: str
    path: str
    manifest: str
    withdrawn: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.run):
            raise ValueError("run: is not the id of a run")
        if self.path != f"run={self.run}":
            raise ValueError("path: is not the folder of its run")
        if self.manifest != f"run={self.run}/{snapshot.MANIFEST}":
            raise ValueError("manifest: is not the one of its run")


@dataclass(frozen=True)
class Seen:
    """The pointer as it was: its version in the store and the run it names; both None before the first publication.

    `withdrawn` has the inputs of runs that a person replaced by another, and when: no job publishes these of its own accord.
    """

    version: str | None
    run: str | None
    withdrawn: Mapping[str, str] = field(default_factory=dict)
    table: str | None = None
    """The table that follows the labels, where one does (`delivery`)."""
    published: str | None = None
    """When the run was."""


def look(output: Location) -> Seen:
    """Raises StorageError when the pointer is damaged."""
    version = (output / LATEST).version()
    if version is None:
        return Seen(None, None)
    found = _read(output)
    return Seen(version, found["run"], found.get("withdrawn", {}), found.get("table"), found.get("published"))


def published(output: Location, seen: Seen) -> dict[str, Any] | None:
    """The manifest of the published run, or None before the first one. Raises StorageError when it is damaged."""
    if seen.run is None:
        return None
    if not snapshot.is_complete(output, seen.run):
        raise StorageError(
            f"{output}: run {seen.run} is published and has no manifest; publish another one (python jobs/publish.py "
            f"--output {output} --run ID), or remove {output / LATEST} to begin anew"
        )
    return snapshot.read_manifest(output, seen.run)


def choose(output: Location, run: str, seen: Seen) -> str:
    """The id to make this run under: its own, or the next (`ID-2`, …) where that one was pruned."""
    dead = tombstones(output) - {seen.run}
    names = [run, *(f"{run}-{attempt}" for attempt in range(2, len(dead) + 3))]
    return next(name for name in names if name not in dead)


def publish(output: Location, run: str, seen: Seen) -> None:
    """Point readers at a complete run, unless the pointer names another one than when it was `seen`. Raises PublishError."""
    _publish(output, run, seen, {})


def replace(output: Location, run: str, seen: Seen) -> None:
    """The same, as a person's decision: no job is to publish what was published until now, unless it is asked to."""
    whole = seen.run is not None and snapshot.is_complete(output, seen.run)
    until_now = {snapshot.inputs_of(output, str(seen.run)): _now()} if whole else {}
    _publish(output, run, seen, until_now)


def _publish(output: Location, run: str, seen: Seen, withdrawn: Mapping[str, str]) -> None:
    """`withdrawn` are inputs that were not so before."""
    while True:
        if run != seen.run and (output / PRUNED / run).exists():
            raise PublishError(f"run {run} was pruned while it was being made; run the same command again")
        mine = snapshot.inputs_of(output, run)
        others = {inputs: when for inputs, when in {**seen.withdrawn, **withdrawn}.items() if inputs != mine}
        named = {"run": run, "path": f"run={run}", "manifest": f"run={run}/{snapshot.MANIFEST}"}
        table = {"table": seen.table} if seen.table else {}
        if _turn(output, {**named, "published": _now(), "withdrawn": others, **table}, seen):
            return
        now = look(output)
        if not withdrawn and mine in now.withdrawn and mine not in seen.withdrawn:
            raise PublishError(
                f"run {run}: was replaced by a person while this one was being made; readers have run {now.run} now. To publish it after all, "
                "run again with --publish-anyway"
            )
        if now.run == run:
            raise PublishError(f"run {run} was published by another driver of the same command; nothing is left to do")
        if now.run != seen.run:
            raise PublishError(
                f"run {run}: run {now.run} was published by somebody else while this one was being made; this one is "
                "complete and not published: run the same command again to publish it"
            )
        seen = now


def follow(output: Location, table: str | None) -> None:
    """Say which table follows the labels from now on, or that none does."""
    while (seen := look(output)).run is not None and seen.table != table:
        about = {key: value for key, value in _read(output).items() if key != "table"}
        if _turn(output, {**about, **({"table": table} if table else {}), "followed": _now()}, seen):
            return


def prune(output: Location, runs: Sequence[str], seen: Seen) -> bool:
    """Remove these runs for good; False when the pointer was turned since it was `seen`: choose again.

    The published run is never among them. Nothing is removed before the first publication.
    """
    if seen.run is None or seen.run in runs:
        return False
    for run in runs:
        (output / PRUNED / run).write(b"")
    if not _turn(output, {**_read(output), "pruned": _now()}, seen):
        return False  # perhaps one of them was published just before its tombstone: that one stays
    for run in runs:
        snapshot.run_folder(output, run).delete()
    return True


def tombstones(output: Location) -> set[str]:
    return {info.base_name for info in (output / PRUNED).files()}


def _read(output: Location) -> dict[str, Any]:
    return snapshot.read_record(output / LATEST, Pointer)


def _turn(output: Location, pointer: Mapping[str, Any], seen: Seen) -> bool:
    """Whether the pointer still was as `seen`, and now is this one."""
    try:
        (output / LATEST).replace(json.dumps(pointer, indent=1).encode(), seen.version)
    except ConflictError:
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat()  # to the microsecond: no two pointers are alike
