"""`deploy/airflow` in a real Airflow: its structure, and where each exit code of a job leads."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from schedulers import SETTINGS, Checkout, clean, ray_head, refused_by, run_python, scheduler

from conftest import ROOT

pytestmark = pytest.mark.slow
DAGS = ROOT / "deploy" / "airflow" / "cataloger_dags.py"

STRUCTURE = """
import importlib.util, json, sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(sys.argv[1])
print("ANSWER", json.dumps({
    "errors": bag.import_errors,
    "installed": [name for name in ("ray", "torch", "cataloger") if importlib.util.find_spec(name)],
    "dags": {
        dag.dag_id: {
            "schedule": dag.timetable.expression,
            "catchup": dag.catchup,
            "max_active_runs": dag.max_active_runs,
            "params": dag.params.dump(),
            "tasks": {
                task.task_id: {
                    "after": sorted(task.upstream_task_ids),
                    "rule": str(getattr(task.trigger_rule, "value", task.trigger_rule)),
                    "retries": task.retries,
                    "outlets": [outlet.name for outlet in task.outlets],
                }
                for task in dag.tasks
            },
        }
        for dag in bag.dags.values()
    },
}))
"""
# Airflow takes seconds to import: one process runs all.
RUNS = """
import json, os, sys
from datetime import datetime, timedelta, timezone
from airflow.dag_processing.dagbag import DagBag

dags = DagBag(sys.argv[1]).dags
for dag in dags.values():
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=0)
kept = dict(os.environ)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.clear()
    os.environ.update(kept | asked["environment"])
    when = datetime.fromisoformat(asked["night"]).replace(tzinfo=timezone.utc)
    run = dags[asked["dag"]].test(logical_date=when, run_after=when, run_conf=asked["conf"])
    tasks = {task.task_id: [str(task.state), task.try_number] for task in run.get_task_instances()}
    print("ANSWER", json.dumps({"run": str(run.state), "tasks": tasks}), flush=True)
"""


def answer(out: str) -> Any:
    return json.loads(out.rpartition("ANSWER ")[2].splitlines()[0])


class Airflow:
    """An Airflow with its own folder and SQLite, in which nobody has installed anything but Airflow."""

    def __init__(self, folder: Path) -> None:
        self.python, self.dags = scheduler("airflow"), folder / "dags"
        self.checkout = Checkout(folder / "checkout")
        self.dags.mkdir()
        shutil.copy(DAGS, self.dags)
        self.environment = clean(
            AIRFLOW_HOME=str(folder),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            AIRFLOW__CORE__DAGS_FOLDER=str(self.dags),
            AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
        )
        run_python(self.python, "from airflow.utils.db import initdb; initdb()", environment=self.environment)
        self.process = subprocess.Popen(
            [self.python, "-c", RUNS, self.dags],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def structure(self) -> Any:
        return answer(run_python(self.python, STRUCTURE, str(self.dags), environment=self.environment))

    def run(self, dag: str, night: str, conf: Mapping[str, bool] | None = None, **settings: str) -> tuple[Any, str]:
        """States and tries of the tasks, and the log."""
        chosen = {"checkout": str(self.checkout.folder), **SETTINGS, **settings}
        environment = {f"AIRFLOW_VAR_CATALOGER_{name.upper()}": value for name, value in chosen.items() if value}
        environment |= {name: value for name, value in settings.items() if name.startswith("RAY_")}
        asked = {"dag": f"cataloger_{dag}", "night": night, "conf": conf or {}, "environment": environment}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        lines: list[str] = []
        while not lines or not lines[-1].startswith("ANSWER "):
            line = self.process.stdout.readline()
            assert line, "".join(lines)[-5_000:]
            lines.append(line)
        return answer("".join(lines)), "".join(lines)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    running = Airflow(tmp_path_factory.mktemp("airflow"))
    yield running
    running.process.communicate()


def test_the_dags_import_without_ray_and_have_the_structure_that_the_page_shows(airflow: Airflow) -> None:
    found = airflow.structure()
    assert found["errors"] == {}
    assert found["installed"] == []
    night, week = found["dags"]["cataloger_nightly"], found["dags"]["cataloger_weekly"]
    for dag in (night, week):
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1)
        # Each task after a branch has the branch alone before it: none is skipped because of another one.
        assert {task["rule"] for task in dag["tasks"].values()} == {"all_success"}
        assert {task["retries"] for task in dag["tasks"].values()} == {3}
    assert (night["schedule"], week["schedule"]) == ("0 2 * * *", "0 8 * * 0")
    assert night["params"] == {"publish_anyway": False}
    assert {name: task["after"] for name, task in night["tasks"].items()} == {
        "label": [],
        "verify": ["label"],
        "held_back": ["label"],
    }
    assert {name: task["after"] for name, task in week["tasks"].items()} == {
        "train": [],
        "compare": ["train"],
        "promoted": ["compare"],
        "not_promoted": ["compare"],
    }
    told = {name: task["outlets"] for dag in (night, week) for name, task in dag["tasks"].items() if task["outlets"]}
    assert told == {"verify": ["cataloger_labels"], "promoted": ["cataloger_champion"]}


def test_a_good_night_is_verified_and_the_real_jobs_take_its_flags(airflow: Airflow) -> None:
    airflow.checkout.ends_with()
    found, _ = airflow.run("nightly", "2026-11-27", mlflow="http://mlflow:5000")
    assert found == {
        "run": "success",
        "tasks": {"label": ["success", 1], "verify": ["success", 1], "held_back": ["skipped", 0]},
    }
    label, verify = airflow.checkout.calls()
    flags = "--catalog /shop/catalog --output /shop/labels --model models:/shop@champion --id-column sku --use-gpu"
    assert label == ("label", flags.split(), "http://mlflow:5000")
    assert verify == ("verify", ["--output", "/shop/labels"], "http://mlflow:5000")
    assert [refused_by(name, flags) for name, flags, _ in (label, verify)] == ["", ""]


def test_a_night_that_is_held_back_is_green_and_says_why_and_what_to_do(airflow: Airflow) -> None:
    airflow.checkout.ends_with(label=3)
    found, log = airflow.run("nightly", "2026-11-28")
    assert found["run"] == "success"
    assert found["tasks"] == {"label": ["success", 1], "verify": ["skipped", 0], "held_back": ["success", 1]}
    assert "held back: label has a reason for 3" in log
    assert "/shop/labels/run=…/_report.html" in log
    airflow.checkout.ends_with()
    found, _ = airflow.run("nightly", "2026-11-28T09:00", {"publish_anyway": True})
    assert found["tasks"]["verify"] == ["success", 1]
    (label, flags, _), _ = airflow.checkout.calls()
    assert flags[-3:] == ["--id-column", "sku", "--use-gpu"]
    assert "--publish-anyway" in flags
    assert not refused_by(label, flags)


@pytest.mark.parametrize(("night", "code"), [("2026-11-29", 2), ("2026-11-30", 130)])
def test_what_a_retry_does_not_help_is_red_at_once(airflow: Airflow, night: str, code: int) -> None:
    airflow.checkout.ends_with(label=code)
    found, log = airflow.run("nightly", night)
    assert found["run"] == "failed"
    assert found["tasks"]["label"] == ["failed", 1]
    assert f"jobs/label.py ended with exit code {code}: label has a reason for {code}" in log
    assert len(airflow.checkout.calls()) == 1


def test_a_crash_is_tried_again_and_damaged_labels_are_red(airflow: Airflow) -> None:
    airflow.checkout.ends_with(label=[4, 1, 0], verify=3)
    found, _ = airflow.run("nightly", "2026-12-01")
    assert found["run"] == "failed"
    assert found["tasks"] == {"label": ["success", 3], "verify": ["failed", 1], "held_back": ["skipped", 0]}
    assert [name for name, _, _ in airflow.checkout.calls()] == ["label", "label", "label", "verify"]


def test_a_model_that_is_not_better_is_a_good_end(airflow: Airflow) -> None:
    airflow.checkout.ends_with(compare=1)
    found, _ = airflow.run("weekly", "2026-11-29")
    states = {name: state for name, (state, _) in found["tasks"].items()}
    assert found["run"] == "success"
    assert states == {"train": "success", "compare": "success", "promoted": "skipped", "not_promoted": "success"}
    airflow.checkout.ends_with()
    found, _ = airflow.run("weekly", "2026-12-06")
    states = {name: state for name, (state, _) in found["tasks"].items()}
    assert states == {"train": "success", "compare": "success", "promoted": "success", "not_promoted": "skipped"}
    assert [(name, refused_by(name, flags)) for name, flags, _ in airflow.checkout.calls()] == [
        ("train", ""),
        ("compare", ""),
    ]


def test_a_setting_that_is_missing_is_named(airflow: Airflow) -> None:
    found, log = airflow.run("nightly", "2026-12-02", output="")
    assert found["tasks"]["label"] == ["failed", 1]
    assert "set the Airflow variable cataloger_output" in log


def test_the_real_job_is_started_with_its_own_python(airflow: Airflow) -> None:
    found, log = airflow.run(
        "nightly", "2026-12-03", checkout=str(ROOT), catalog=f"{os.getcwd()}/nothing", label_flags=""
    )
    assert found["tasks"]["label"] == ["failed", 1]
    assert "jobs/label.py ended with exit code 2" in log


def test_a_task_that_is_ended_ends_its_job(airflow: Airflow) -> None:
    airflow.checkout.ends_with()
    waits = airflow.checkout.folder / "wait"
    waits.touch()

    def end() -> None:
        deadline = time.monotonic() + 60
        while not airflow.checkout.calls() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(airflow.process.pid, signal.SIGTERM)
        waits.unlink()

    ending = threading.Thread(target=end)
    ending.start()
    found, log = airflow.run("nightly", "2026-12-06")
    ending.join()
    assert "jobs/label.py ended with exit code -15" in log
    assert found["tasks"]["label"] == ["success", 2]


def test_a_job_on_the_cluster_is_a_branch_too(airflow: Airflow, tmp_path: Path) -> None:
    airflow.checkout.ends_with(label=[4, 3])
    with ray_head(tmp_path) as head:
        found, log = airflow.run("nightly", "2026-12-04", ray_address=head.address, **head.variables)
        assert found["tasks"] == {"label": ["success", 2], "verify": ["skipped", 0], "held_back": ["success", 1]}, log
        assert "held back: label has a reason for 3" in log
        # A retry, after a crash.
        assert head.jobs() == {"label-2026-12-04": 4, "label-2026-12-04-2": 3}
        own = {job["submission_id"] for job in head.ask("")} - {None, "ready"}
        assert all(re.fullmatch(r"label-2026-12-04-[0-9a-f]{6}(-2)?", name) for name in own), (
            "its flags are in its name"
        )
