"""Promise: training goes on from its last checkpoint after any process is killed, and its loss curve shows no trace of it."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from mlflow import MlflowClient
from pyarrow.fs import FileSelector
from test_kills import NOTICED_SOON, descendants, family
from transformers import AutoTokenizer, BertConfig, BertModel, set_seed

import tagged
from cataloger.compression.job import compress
from cataloger.config import CompressConfig, TrainConfig
from cataloger.infra.storage import locate
from cataloger.training.job import train
from conftest import ROOT, losses, on_ray
from drawn import shop
from servers import free_port, mlflow_server

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Tiny, with dropout: where a run goes on, its random numbers have to as well."""
    folder = tmp_path_factory.mktemp("base")
    set_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**shape)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def settings(base: Path, labelled: Path, name: str) -> dict[str, object]:
    return {
        "catalog": str(labelled),
        "base_model": str(base),
        "epochs": 2,
        "batch_size": 16,
        "adversarial": 0.0,
        "max_tokens": 24,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "checkpoint_minutes": 0.0,
        "experiment": "survival",
        "model_name": name,
    }


# All that has a state of its own beside the weights, or a part in the loss curve.
STATEFUL = {"pretrain_epochs": 1, "level_weights": "auto", "adversarial": 0.5, "average_decay": 0.9}


@pytest.fixture(scope="module")
def undisturbed(base: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    storage = tmp_path_factory.mktemp("undisturbed")
    calm = {**settings(base, labelled, "undisturbed"), **STATEFUL, "storage": str(storage), "checkpoint_minutes": 10.0}
    return curves(train(TrainConfig(**calm)).run_id)  # type: ignore[arg-type]


def curves(run_id: str) -> dict[str, np.ndarray]:
    """The last value at every step, of the losses and of the validation of the averaged weights; no step was done twice but for the last few."""
    found = {}
    for name in ("pretrain_loss", "train_loss", "val_loss", "val_level_1_accuracy"):
        history = MlflowClient().get_metric_history(run_id, name)
        last = {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}
        found[name] = np.array([last[step] for step in sorted(last)])
        assert sum(metric.step == min(last) for metric in history) == 1, f"{name} began again"
    return found


def check_the_same(found: dict[str, np.ndarray], undisturbed: dict[str, np.ndarray]) -> None:
    for name, curve in undisturbed.items():
        np.testing.assert_allclose(found[name], curve, rtol=1e-4, err_msg=name)


def notes(storage: str) -> list[str]:
    """What Ray Train's controllers know of checkpoints and their metrics; one looks after its workers now and then.

    The checkpoints themselves are not listed: they come and go meanwhile.
    """
    folder = locate(storage)
    trainings = folder.filesystem.get_file_info(FileSelector(folder.path, allow_not_found=True))
    known = [folder / info.base_name / "checkpoint_manager_snapshot.json" for info in trainings if not info.is_file]
    return [note.read().decode() for note in known if note.exists()]


def kept(storage: str = "checkpoints") -> set[str]:
    """The checkpoints that are known."""
    pattern = r"checkpoint_dir_name\W+(checkpoint_[\w.-]+)"
    return {name for note in notes(storage) for name in re.findall(pattern, note)}


def train_and_kill_the_worker(options: dict[str, object], name: str) -> tuple[str, list[object]]:
    """(run id, what was killed) of a training with its checkpoints in `name`, whose worker is killed after the checkpoint of its first validation and another one."""
    return kill_a_worker_of(lambda: train(TrainConfig(**options, storage=name)).run_id, name)  # type: ignore[arg-type]


def kill_a_worker_of(training: Callable[[], str], name: str, another: bool = True) -> tuple[str, list[object]]:
    """(run id, what was killed), `another` being whether to wait for a checkpoint after that of the first validation."""
    killed: list[object] = []
    over = threading.Event()

    def hunt() -> None:
        while not any("val_loss" in note for note in notes(name)):
            if over.wait(0.01):
                return
        before = kept(name)
        while not killed and not over.wait(0.01):
            for worker in descendants("RayTrainWorker") if kept(name) - before or not another else ():
                worker.send_signal(signal.SIGKILL)
                killed.append(worker)

    with ThreadPoolExecutor() as pool:
        hunter = pool.submit(hunt)
        try:
            run_id = training()
        finally:
            over.set()
    if error := hunter.exception():
        print("the hunt ended with", repr(error))
    return run_id, killed


def test_a_killed_worker_goes_on_where_it_was(base: Path, labelled: Path, undisturbed: dict[str, np.ndarray]) -> None:
    """Pretraining is done by then."""
    for name in ("worker-killed", "worker-killed-again", "worker-killed-at-last"):
        run_id, killed = train_and_kill_the_worker({**settings(base, labelled, name), **STATEFUL}, name)
        check_the_same(curves(run_id), undisturbed)
        if killed:
            return
    raise AssertionError("nothing was killed, so nothing was shown")


def test_a_worker_that_is_killed_while_validation_rows_are_learnt_goes_on_with_that(base: Path, labelled: Path) -> None:
    """It begins with the averaged weights of the epoch before, and what validation made of the levels."""
    folding = {
        **settings(base, labelled, "folding"),
        "epochs": 1,
        "average_decay": 0.9,
        "level_weights": "auto",
        "fold_back": True,
    }
    calm = train(TrainConfig(**{**folding, "storage": "calm", "checkpoint_minutes": 10.0}))  # type: ignore[arg-type]
    for name in ("folding-killed", "folding-killed-again", "folding-killed-at-last"):
        run_id, killed = train_and_kill_the_worker(folding, name)
        for curve in ("train_loss", "fold_back_loss"):
            np.testing.assert_allclose(losses(run_id, curve), losses(calm.run_id, curve), rtol=1e-4)
        if killed:
            return
    raise AssertionError("nothing was killed, so nothing was shown")


def test_a_killed_worker_that_sees_goes_on_with_the_same_pictures(
    base: Path, tiny_sight: Path, working_folder: Path
) -> None:
    """Altered in the same ways, and left out of the same rows."""
    pq.write_table(pa.table(shop(400, 0)), "labelled.parquet")
    sees = {**settings(base, Path("labelled.parquet"), "sees"), "text_columns": ("title",), "image_column": "image"}
    sees |= {"image_model": str(tiny_sight), "image_augmentation": "strong", "learning_rate": 1e-3}
    calm = train(TrainConfig(**{**sees, "storage": "calm", "checkpoint_minutes": 10.0}))  # type: ignore[arg-type]
    for name in ("sees-killed", "sees-killed-again", "sees-killed-at-last"):
        run_id, killed = train_and_kill_the_worker(sees, name)
        np.testing.assert_allclose(losses(run_id), losses(calm.run_id), rtol=1e-4)
        if killed:
            return
    raise AssertionError("nothing was killed, so nothing was shown")


def test_a_killed_worker_of_several_answers_goes_on_with_all_of_them(base: Path, working_folder: Path) -> None:
    """Also with how much each of them counts, which is learnt."""
    pq.write_table(tagged.shop(400), "labelled.parquet")
    several = {**settings(base, Path("labelled.parquet"), "several"), "text_columns": ("title", "description")}
    several |= {"label_column": ("category_path", "seasons", "tags"), "learning_rate": 1e-3}
    calm = train(TrainConfig(**{**several, "storage": "calm", "checkpoint_minutes": 10.0}))  # type: ignore[arg-type]
    for name in ("several-killed", "several-killed-again", "several-killed-at-last"):
        run_id, killed = train_and_kill_the_worker(several, name)
        np.testing.assert_allclose(losses(run_id), losses(calm.run_id), rtol=1e-4, atol=1e-4)
        if killed:
            return
    raise AssertionError("nothing was killed, so nothing was shown")


def test_a_killed_worker_of_a_student_goes_on_with_its_lessons(
    base: Path, labelled: Path, working_folder: Path
) -> None:
    calm = {**settings(base, labelled, "killed-teacher"), "epochs": 1, "checkpoint_minutes": 10.0, "storage": "calm"}
    teacher = train(TrainConfig(**calm)).model_uri  # type: ignore[arg-type]

    def student(name: str) -> str:
        return compress(CompressConfig(str(labelled), (teacher,), layers=1, epochs=3, storage=name)).run_id

    undisturbed = losses(student("calm"))
    for name in ("student-killed", "student-killed-again", "student-killed-at-last"):
        run_id, killed = kill_a_worker_of(lambda name=name: student(name), name, another=False)  # type: ignore[misc]
        np.testing.assert_allclose(losses(run_id), undisturbed, rtol=1e-4)
        if killed:
            return
    raise AssertionError("nothing was killed, so nothing was shown")


def test_a_killed_driver_is_gone_on_with_by_the_same_command(
    base: Path, labelled: Path, undisturbed: dict[str, np.ndarray], s3: str
) -> None:
    """From checkpoints on S3, those of the other tests lie on the disk; killed after the first, of pretraining."""
    storage, name = f"{s3}/checkpoints", "driver-killed"
    options = {**settings(base, labelled, name), **STATEFUL}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    flags.append(f"--storage={storage}")
    command = [sys.executable, str(ROOT / "jobs/train.py"), *flags]
    environment = on_ray(ray.get_runtime_context().gcs_address)
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not kept(storage) and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it was over before it could be killed"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming the training" in done.stderr
    assert re.search(r"train: goes on after step \d+", done.stderr), done.stderr
    (run,) = mlflow.search_runs(
        experiment_names=["survival"], filter_string=f"params.model_name = '{name}'", output_format="list"
    )
    assert run.info.status == "FINISHED", "one run, with one curve"
    check_the_same(curves(run.info.run_id), undisturbed)
    assert 1 <= len(kept(storage)) <= 3, "two by their score, and the newest"


def test_training_grows_with_the_cluster_and_outlives_a_lost_node(
    tiny_model: Path, labelled: Path, working_folder: Path
) -> None:
    """Of `--num-workers 1:2` one starts, a second joins when there is room, and the first is lost with its node.

    Without dropout: each worker draws its own, so that another number of them would give another curve.
    """
    from ray.cluster_utils import Cluster

    long = {**settings(tiny_model, labelled, "node-lost"), "epochs": 6, "learning_rate": 5e-4}
    calm = train(TrainConfig(**{**long, "checkpoint_minutes": 10.0, "storage": "undisturbed"}))  # type: ignore[arg-type]
    script = "import runpy, sys; sys.path.insert(0, sys.argv[1] + '/jobs'); import cataloger.training.job as training; "
    script += "training.LOOK_FOR_WORKERS_SECONDS = 1.0; script = sys.argv.pop(1) + '/jobs/train.py'; "
    script += "runpy.run_path(script, run_name='__main__')"
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in long.items()]
    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=0, include_dashboard=False, dashboard_agent_listen_port=free_port(), _system_config=NOTICED_SOON
        )
        first = cluster.add_node(num_cpus=1, dashboard_agent_listen_port=free_port())
        with mlflow_server(working_folder / "mlflow") as (address, _):
            driver = subprocess.Popen(
                [sys.executable, "-c", script, str(ROOT), *flags, "--num-workers=1:2"],
                # Where Ray has not yet noticed the loss, it waits so long for a worker that cannot come.
                env=on_ray(cluster.address, MLFLOW_TRACKING_URI=address, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="10"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            wait_for_it(driver, lambda: bool(kept()))
            second = cluster.add_node(num_cpus=1, dashboard_agent_listen_port=free_port())
            wait_for_it(driver, lambda: len(workers(first)) == len(workers(second)) == 1)
            before = kept()
            wait_for_it(driver, lambda: bool(kept() - before))
            for member in family(first):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            assert driver.poll() is None, "it was over before the node was lost"
            _, err = driver.communicate(timeout=300)
            assert driver.returncode == 0, err
            client = MlflowClient(address)
            (run,) = client.search_runs(["1"], "params.model_name = 'node-lost'")
            history = client.get_metric_history(run.info.run_id, "train_loss")
    finally:
        cluster.shutdown()
    last = {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}
    assert sum(metric.step == 1 for metric in history) == 1, "it did not begin again"
    found, expected = np.array([last[step] for step in sorted(last)]), losses(calm.run_id)
    assert len(found) == len(expected)
    # Two workers add up their gradients in another order; at a low rate hundreds of steps make little of that.
    assert np.median(abs(found / expected - 1)) < 0.005, "the same rows in the same order"


def workers(node: Any) -> list[psutil.Process]:
    found = []
    for process in family(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_it(driver: "subprocess.Popen[str]", it: Callable[[], bool]) -> None:
    while not it():
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.02)
