import time
from collections.abc import Iterator

import mlflow
import pytest
from mlflow import MlflowClient

from cataloger.config import EvaluateConfig
from cataloger.errors import TrainingError
from cataloger.infra import alive, tracking

CONFIG = EvaluateConfig(catalog="none", experiment="tracking")
ELSEWHERE = "another-boot pid:[1] 1 1"


@pytest.fixture(autouse=True)
def connected() -> Iterator[None]:
    tracking.connect()
    yield
    for run in mlflow.search_runs(
        experiment_names=["tracking"], filter_string="attributes.status = 'RUNNING'", output_format="list"
    ):
        MlflowClient().set_terminated(run.info.run_id)


def left_open(process: str, silent_seconds: float) -> str:
    """A run whose process was last heard of so long ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alive, "identity", lambda: process)
        with tracking.run("evaluate", "left open", CONFIG, None, {}) as run_id:
            pass
    MlflowClient().set_tag(run_id, tracking.BEAT, str(time.time() - silent_seconds))
    MlflowClient().update_run(run_id, "RUNNING")
    return run_id


def test_runs_of_dead_processes_are_closed_and_no_others() -> None:
    place, _, began = alive.identity().rpartition(" ")
    restarted = f"{place} {int(began) - 1}"  # a container that was started again: its pid is somebody else's now
    soon, late = 2 * tracking.BEAT_SECONDS, 1.1 * tracking.LEASE_SECONDS
    runs = {
        left_open(restarted, 0): "KILLED",
        left_open(alive.identity(), late): "RUNNING",
        left_open(ELSEWHERE, soon): "RUNNING",
        left_open(ELSEWHERE, late): "KILLED",
    }
    tracking.connect()
    assert {run: tracking.status(run) for run in runs} == runs


def test_a_run_says_that_its_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "BEAT_SECONDS", 0.02)
    with tracking.run("evaluate", "beating", CONFIG, None, {}) as run_id:
        tags = mlflow.get_run(run_id).data.tags
        assert tags[tracking.PROCESS] == alive.identity()
        while mlflow.get_run(run_id).data.tags[tracking.BEAT] == tags[tracking.BEAT]:
            time.sleep(0.02)
    assert tracking.status(run_id) == "FINISHED"


def test_a_run_that_another_process_went_on_with_is_left_to_it() -> None:
    found: list[str] = []

    def lose() -> None:
        with tracking.run("evaluate", "taken", CONFIG, None, {}) as run_id:
            found.append(run_id)
            MlflowClient().set_tag(run_id, tracking.PROCESS, ELSEWHERE)
            raise TrainingError("another process trains here now")

    with pytest.raises(TrainingError):
        lose()
    assert tracking.status(found[0]) == "RUNNING"
    assert mlflow.active_run() is None
