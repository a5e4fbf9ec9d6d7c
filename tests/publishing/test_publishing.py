"""Listing, rollback, pruning and verification of an output folder, through the jobs."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cataloger.data.units import Segment, Unit
from cataloger.errors import PublishError
from cataloger.infra.storage import locate
from cataloger.publishing import pointer, snapshot
from cataloger.publishing.parts import write_part

Job = Callable[..., tuple[int, str, str]]
UNITS = [Unit(0, (Segment("x", 0, 0, 3),)), Unit(1, (Segment("x", 0, 3, 2),))]


def make(run: str, publish: bool = True) -> Path:
    output = locate("labels")
    folder = snapshot.run_folder(output, run)
    parts = {}
    for unit, rows, rejected in [(0, 3, 0), (1, 1, 1)]:
        labels = pa.table({"id": range(rows), "category": ["A"] * rows})
        rejects = pa.table({"id": range(rejected), "reason": ["r"] * rejected})
        parts[unit] = write_part(folder, unit, labels, rejects, {"forwarded": rows}, {"run": run})
    about = {
        "model": "m",
        "model_digest": "d",
        "catalog": "gone",
        "catalog_fingerprint": "f",
        "config": {"id_column": "id"},
    }
    snapshot.write_manifest(output, run, UNITS, parts, about)
    if publish:
        pointer.publish(output, run, pointer.look(output))
    return Path("labels") / f"run={run}"


def current() -> str:
    return str(json.loads(Path("labels/_latest.json").read_text())["run"])


def test_rollback_in_one_command(working_folder: Path, job: Job) -> None:
    make("monday"), make("tuesday")
    code, out, _ = job("publish", "--output", "labels", "--run", "monday")
    assert code == 0
    assert current() == "monday"
    assert [line.split("│")[2].strip() for line in out.splitlines() if "monday" in line] == ["published"]
    code, _, err = job("publish", "--output", "labels", "--run", "sunday")
    assert (code, current()) == (2, "monday")
    assert "sunday" in err
    assert "monday, tuesday" in err or "tuesday, monday" in err


def test_prune_keeps_the_newest_and_the_published_and_removes_orphans(working_folder: Path, job: Job) -> None:
    for number, run in enumerate(["a", "b", "c", "d"]):
        manifest = make(run) / "_manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "created": f"2026-11-2{number}"}))
    (make("dead", publish=False) / "_manifest.json").unlink()
    Path("labels/run=d/_writing-0123").write_text("half")
    job("publish", "--output", "labels", "--run", "a")
    code, out, err = job("publish", "--output", "labels", "--prune", 2)
    assert code == 0, err
    assert sorted(folder.name for folder in Path("labels").glob("run=*")) == ["run=a", "run=c", "run=d"]
    assert not list(Path("labels").rglob("_writing*"))
    assert current() == "a"
    assert "dead" not in out


def test_verify_finds_every_kind_of_damage(working_folder: Path, job: Job) -> None:
    folder = make("r")
    code, out, _ = job("verify", "--output", "labels")
    assert code == 0
    assert "5 rows in 3 files" in out
    whole = (folder / "part-00000.parquet").read_bytes()

    def damaged(sentence: str) -> None:
        code, _, err = job("verify", "--output", "labels")
        assert code == 3
        assert sentence in err
        (folder / "part-00000.parquet").write_bytes(whole)

    (folder / "part-00000.parquet").write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    damaged("part-00000.parquet: sha256 differ")
    (folder / "part-00000.parquet").write_bytes(whole[:-3])
    damaged("part-00000.parquet")
    (folder / "part-00000.parquet").unlink()
    damaged("part-00000.parquet")
    (folder / "part-00007.parquet").write_bytes(whole)
    damaged("part-00007.parquet: not in the manifest")
    (folder / "part-00007.parquet").unlink()
    for left in ("_writing-0123", "_rejects/_writing-4567"):
        (folder / left).write_bytes(b"what a killed writer left")
    assert job("verify", "--output", "labels")[0] == 0


def test_of_two_drivers_one_publishes(working_folder: Path) -> None:
    make("yesterday")
    output = locate("labels")
    seen = pointer.look(output)
    make("mine", publish=False), make("theirs", publish=False)
    pointer.publish(output, "theirs", seen)
    with pytest.raises(PublishError, match="run theirs was published by somebody else"):
        pointer.publish(output, "mine", seen)
    assert current() == "theirs"
    assert snapshot.is_complete(output, "mine"), "nothing is lost"


def test_an_empty_or_damaged_output_is_named(working_folder: Path, job: Job) -> None:
    for name in ("publish", "verify"):
        code, _, err = job(name, "--output", "nowhere")
        assert code == 2
        assert "nowhere" in err


def test_an_output_that_lies_in_a_folder_named_like_a_run_is_listed_by_its_own(
    working_folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run=x").mkdir()
    monkeypatch.chdir("run=x")
    make("monday")
    code, out, err = job("publish", "--output", "labels")
    assert code == 0, err
    assert [line.split("│")[1].strip() for line in out.splitlines() if "│" in line] == ["monday"]
