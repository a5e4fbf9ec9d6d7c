"""Promises: all or nothing, exactly once, resume. Processes are killed with SIGKILL; then the same command is run again."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, free_of_ray

from cataloger.config import LabelConfig
from cataloger.labeling import label

pytestmark = pytest.mark.faults
Job = Callable[..., tuple[int, str, str]]
ROWS = 40_000


@pytest.fixture
def catalog(working_folder: Path) -> Path:
    """Ten units."""
    titles = [f"product {i} of {i % 97}" for i in range(ROWS)]
    Path("catalog").mkdir()
    pq.write_table(pa.table({"id": range(ROWS), "title": titles}), "catalog/part.parquet", row_group_size=5_000)
    return working_folder / "catalog"


def parts() -> set[str]:
    return {path.name for path in Path("labels").rglob("part-*.parquet")}


def descendants(name: str) -> Iterator[psutil.Process]:
    """Processes of this test's own Ray; another one on the machine is none of our business."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                yield process


@pytest.mark.parametrize("victim", ["ray::MapWorker(MapBatches(Labeler))", "ray::Map(_read)"])
def test_a_killed_actor_or_task_costs_nothing_but_time(
    ray_session: None, catalog: Path, bundle: Path, job: Job, victim: str
) -> None:
    killed: list[int] = []
    stop = threading.Event()

    def kill_the_first() -> None:
        while not killed and not stop.wait(0.01):
            for process in descendants(victim):
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)
                return

    hunter = threading.Thread(target=kill_the_first)
    hunter.start()
    result = label(LabelConfig(catalog=str(catalog), output="labels", model=str(bundle), text_columns=("title",)))
    stop.set()
    hunter.join()
    assert killed, "nothing was killed, so nothing was shown"
    assert result.labelled == ROWS
    assert job("verify", "--output", "labels")[0] == 0


@pytest.mark.slow
def test_a_driver_killed_ten_times_is_finished_by_the_same_command(catalog: Path, bundle: Path, job: Job) -> None:
    """Seeded moments: while it plans, while parts appear, after the last part. Finished parts are never done again."""
    command = [sys.executable, str(ROOT / "jobs" / "label.py"), "--catalog", "catalog", "--output", "labels"]
    command += ["--model", str(bundle), "--text-columns", "title"]
    choose = random.Random(3)
    stamps: dict[str, int] = {}
    for attempt in range(10):
        driver = subprocess.Popen(command, env=free_of_ray(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        driver_process = psutil.Process(driver.pid)
        if attempt < 4:
            time.sleep(choose.uniform(0.2, 6.0))
        else:
            wanted, deadline = len(parts()) + 1, time.monotonic() + 120
            while len(parts()) < wanted and driver.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
        # The whole machine, so to speak: Ray's agents would outlive their driver.
        family_members = [driver_process, *driver_process.children(recursive=True)] if driver.poll() is None else []
        for member in family_members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        driver.wait()
        psutil.wait_procs(family_members, timeout=30)
        now = {path.name: path.stat().st_mtime_ns for path in Path("labels").rglob("part-*.parquet")}
        assert {name: now[name] for name in stamps} == stamps, "finished parts are kept"
        stamps = now
        if not Path("labels/_latest.json").exists():
            continue
        break
    done = subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pointer = json.loads(Path("labels/_latest.json").read_text())
    labels = pq.read_table(Path("labels") / pointer["path"], columns=["id"])
    assert sorted(labels.column("id").to_pylist()) == list(range(ROWS))
    assert job("verify", "--output", "labels")[0] == 0
    import mlflow

    runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.job = 'label'", output_format="list")
    assert not [run for run in runs if run.info.status == "RUNNING"], "the next run closes those of killed drivers"
