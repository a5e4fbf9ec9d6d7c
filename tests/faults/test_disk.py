"""Promise: a full disk stops the job with a sentence; with room again, the same command goes on where it was."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_session")]
ROWS = 40_000


@pytest.fixture
def small_disk(working_folder: Path) -> Iterator[Path]:
    """A file system of 1 MB at `labels`."""
    disk = working_folder / "labels"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_stops_the_job_and_the_same_command_goes_on(
    small_disk: Path, job: Callable[..., tuple[int, str, str]], bundle: Path
) -> None:
    titles = [f"product {i} of {i % 97}" for i in range(ROWS)]
    Path("c").mkdir()
    pq.write_table(pa.table({"id": range(ROWS), "title": titles}), "c/part.parquet")
    flags = ("--catalog", "c", "--output", "labels", "--model", bundle, "--text-columns", "title")
    code, _, err = job("label", *flags)
    assert code == 2, err
    assert "No space left on device; make room and run the same command again" in err
    assert "Traceback" not in err
    assert not (small_disk / "_latest.json").exists()
    assert not list(small_disk.rglob("_writing-*"))
    finished = {path.name: path.stat().st_mtime_ns for path in small_disk.rglob("part-*.parquet")}
    assert finished
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, _, err = job("label", *flags)
    assert code == 0, err
    now = {path.name: path.stat().st_mtime_ns for path in small_disk.rglob("part-*.parquet")}
    assert {name: now[name] for name in finished} == finished, "finished parts are kept"
    pointer = json.loads((small_disk / "_latest.json").read_text())
    assert len(pq.read_table(small_disk / pointer["path"])) == ROWS
    assert job("verify", "--output", "labels")[0] == 0
