"""Promises: all or nothing, exactly once, resume. Processes are killed with SIGKILL; then the same command is run again."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient

from cataloger.config import LabelConfig
from cataloger.labeling.job import label
from conftest import ROOT, on_ray, published
from drawn import noise
from servers import free_port, mlflow_server

# How soon Ray takes a silent node for lost; by default that is most of a minute.
NOTICED_SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}
pytestmark = pytest.mark.faults
Job = Callable[..., tuple[int, str, str]]
ROWS = 80_000


@pytest.fixture
def catalog(working_folder: Path) -> Path:
    """Ten units."""
    write_catalog(ROWS)
    return working_folder / "catalog"


def write_catalog(rows: int) -> None:
    titles = [f"product {i} of {i % 97}" for i in range(rows)]
    Path("catalog").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": range(rows), "title": titles}), "catalog/part.parquet", row_group_size=10_000)


def parts() -> set[str]:
    return {path.name for path in Path("labels").rglob("part-*.parquet")}


def descendants(name: str) -> Iterator[psutil.Process]:
    """Processes of this test's own Ray; another one on the machine is none of our business."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                yield process


@pytest.mark.parametrize("victim", ["ray::MapWorker(MapBatches(Labeler))", "ray::FlatMap(read)"])
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
    result = label(LabelConfig(catalog=str(catalog), output="labels", model=(str(bundle),), text_columns=("title",)))
    stop.set()
    hunter.join()
    assert killed, "nothing was killed, so nothing was shown"
    assert result.labelled == ROWS
    assert job("verify", "--output", "labels")[0] == 0


def run_driver(bundle: Path, moment: str | None = None, *more: str) -> subprocess.Popen[str]:
    """A driver on the Ray of this session, as on a cluster: it dies, the cluster does not."""
    script = [str(ROOT / "tests/faults/dying_driver.py"), moment] if moment else [str(ROOT / "jobs/label.py")]
    command = [sys.executable, *script, "--catalog", "catalog", "--output", "labels", "--model", str(bundle)]
    environment = on_ray(ray.get_runtime_context().gcs_address)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--text-columns", "title", *more], env=environment, stdout=pipe, stderr=pipe, text=True
    )


def finish(driver: subprocess.Popen[str], within: float = 300) -> tuple[int, str, str]:
    out, err = driver.communicate(timeout=within)
    return driver.returncode, out, err


def published_ids() -> list[int]:
    pointer = json.loads(Path("labels/_latest.json").read_text())
    return sorted(pq.read_table(Path("labels") / pointer["path"], columns=["id"]).column("id").to_pylist())


@pytest.mark.slow
def test_pictures_that_were_labelled_before_a_kill_are_not_labelled_again(
    ray_session: None, working_folder: Path, seeing: Callable[..., Path], job: Job
) -> None:
    bundle, rows = seeing("title"), 20_000
    pictures = [noise(seed) for seed in range(100)]
    columns = {"id": range(rows), "title": [f"product {i}" for i in range(rows)]}
    Path("catalog").mkdir()
    table = pa.table({**columns, "image": [pictures[i % 100] for i in range(rows)]})
    pq.write_table(table, "catalog/part.parquet", row_group_size=5_000)
    driver = run_driver(bundle, "parts=1")
    assert finish(driver)[0] == -signal.SIGKILL
    stamps = {path.name: path.stat().st_mtime_ns for path in Path("labels").rglob("part-*.parquet")}
    assert stamps, "nothing was written, so nothing was shown"
    code, _, err = finish(run_driver(bundle))
    assert code == 0, err
    assert published_ids() == list(range(rows))
    for path in Path("labels").rglob("part-*.parquet"):
        assert stamps.get(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "done twice"
    assert set(published().column("image_status").to_pylist()) == {"ok"}
    assert job("verify", "--output", "labels")[0] == 0


@pytest.mark.slow
def test_a_driver_killed_ten_times_is_finished_by_the_same_command(
    ray_session: None, catalog: Path, bundle: Path, job: Job
) -> None:
    """At seeded moments, and at the worst ones. Finished parts are never done again."""
    choose = random.Random(3)
    write_catalog(2 * ROWS)
    moments: list[str | float] = [
        "data.catalog.open_catalog",
        "labeling.job.plan_units",
        "publishing.parts.finished_parts",
        "infra.runtime.session",
    ]
    # Units that are under way when their driver dies are finished: with more moments than these, too few would be left.
    moments += [
        choose.uniform(1.0, 6.0),
        *["parts=0"] * 3,
        "publishing.snapshot.write_manifest",
        "publishing.pointer.publish",
    ]
    assert len(moments) == 10
    stamps: dict[str, int] = {}
    for moment in moments:
        if isinstance(moment, float):
            driver = run_driver(bundle)
            time.sleep(moment)
            driver.kill()
        else:
            driver = run_driver(bundle, moment)
        code, _, err = finish(driver)
        assert code == -signal.SIGKILL, err
        now = {path.name: path.stat().st_mtime_ns for path in Path("labels").rglob("part-*.parquet")}
        assert {name: now[name] for name in stamps} == stamps, "finished parts are kept"
        stamps = now
        assert not Path("labels/_latest.json").exists()
    assert len(stamps) == 16
    assert list(Path("labels").glob("run=*/_manifest.json")), "the last one died between manifest and pointer"
    code, out, err = finish(run_driver(bundle))
    assert code == 0, err
    assert re.search(r"through the model\s*│\s*0", out), "nothing was left but to turn the pointer"
    assert published_ids() == list(range(2 * ROWS))
    assert job("verify", "--output", "labels")[0] == 0
    runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.job = 'label'", output_format="list")
    assert not [run for run in runs if run.info.status == "RUNNING"], "the next driver closes those of killed ones"


@pytest.mark.slow
def test_of_two_drivers_that_race_one_publishes(ray_session: None, catalog: Path, bundle: Path, job: Job) -> None:
    drivers = [run_driver(bundle, None, "--alternatives", number) for number in "12"]
    ended = [finish(driver) for driver in drivers]
    assert sorted(code for code, _, _ in ended) == [0, 3], ended
    loser = next(err for code, _, err in ended if code == 3)
    assert "was published by somebody else while this one was being made" in loser
    assert published_ids() == list(range(ROWS))
    assert job("verify", "--output", "labels")[0] == 0
    assert len(list(Path("labels").glob("run=*/_manifest.json"))) == 2, "nothing is lost"


@pytest.mark.slow
def test_the_same_command_started_twice_makes_one_whole_run(
    ray_session: None, catalog: Path, bundle: Path, job: Job
) -> None:
    ended = [finish(driver) for driver in [run_driver(bundle), run_driver(bundle)]]
    assert sorted(code for code, _, _ in ended) in ([0, 3], [0, 0]), ended
    if any(code for code, _, _ in ended):
        assert "was published by another driver of the same command" in "".join(err for _, _, err in ended)
    assert published_ids() == list(range(ROWS))
    assert job("verify", "--output", "labels")[0] == 0
    assert len(list(Path("labels").glob("run=*"))) == 1


@pytest.mark.slow
def test_a_killed_mlflow_server_costs_metrics_and_no_labels(
    ray_session: None, catalog: Path, bundle: Path, job: Job, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server(working_folder / "mlflow") as (address, kill):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        driver = run_driver(bundle)
        while not parts() and driver.poll() is None:
            time.sleep(0.01)
        kill()
        code, _, err = finish(driver)
    assert code == 0, err
    assert "does not take metrics" in err
    assert published_ids() == list(range(ROWS))
    assert job("verify", "--output", "labels")[0] == 0
    store = f"sqlite:///{working_folder}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    code, _, err = finish(run_driver(bundle))
    assert code == 0, err
    runs = MlflowClient(store).search_runs(["1"])
    assert sorted(run.info.status for run in runs) == ["KILLED"], "the next driver closes it"


def family(node: Any) -> list[psutil.Process]:
    """A node's raylet and all that it started."""
    (raylet,) = node.all_processes["raylet"]
    process = psutil.Process(raylet.process.pid)
    return [process, *process.children(recursive=True)]


def is_labeler(process: psutil.Process) -> bool:
    try:
        return "Labeler" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_lost_node_costs_nothing_but_time(catalog: Path, bundle: Path, job: Job, working_folder: Path) -> None:
    """SIGKILL of a raylet, with all that runs on its node, in a cluster of three."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=1, include_dashboard=False, dashboard_agent_listen_port=free_port(), _system_config=NOTICED_SOON
        )
        nodes = [cluster.add_node(num_cpus=2, dashboard_agent_listen_port=free_port()) for _ in range(2)]
        with mlflow_server(working_folder / "mlflow") as (mlflow_address, _):
            command = [sys.executable, str(ROOT / "jobs/label.py"), "--catalog", "catalog", "--output", "labels"]
            environment = on_ray(cluster.address, MLFLOW_TRACKING_URI=mlflow_address)
            pipe = subprocess.PIPE
            driver = subprocess.Popen(
                [*command, "--model", str(bundle), "--text-columns", "title"],
                env=environment,
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
            while not parts() and driver.poll() is None:
                time.sleep(0.005)
            there = len(parts())
            labelling = [node for node in nodes if any(map(is_labeler, family(node)))]
            assert labelling, "no actor is on any node"
            for member in family(labelling[0]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            code, _, err = finish(driver)
            assert code == 0, err
        assert there < 10, "the run was over before the node was lost"
    finally:
        cluster.shutdown()
    assert published_ids() == list(range(ROWS))
    assert job("verify", "--output", "labels")[0] == 0
