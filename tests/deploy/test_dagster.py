"""`deploy/dagster` in a real Dagster: its structure, and where each exit code of a job leads. And, on a real Ray, how both schedulers run a job."""

import ast
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from schedulers import SETTINGS, Checkout, Head, clean, ray_head, refused_by, run_python, scheduler

from conftest import ROOT

pytestmark = pytest.mark.slow
ASSETS = ROOT / "deploy" / "dagster" / "cataloger_assets.py"

LOAD = """
import importlib.util, json, sys

described = importlib.util.spec_from_file_location("cataloger_assets", sys.argv[1])
module = sys.modules["cataloger_assets"] = importlib.util.module_from_spec(described)
described.loader.exec_module(module)
import dagster as dg
"""
STRUCTURE = f"""{LOAD}
graph = module.defs.resolve_asset_graph()
print("ANSWER", json.dumps({{
    "installed": [name for name in ("ray", "torch", "cataloger") if importlib.util.find_spec(name)],
    "assets": {{key.to_user_string(): sorted(up.to_user_string() for up in graph.get(key).parent_keys) for key in graph.get_all_asset_keys()}},
    "checks": sorted(key.name for key in graph.asset_check_keys),
    "schedules": {{one.job_name: one.cron_schedule for one in module.defs.schedules}},
    "retries": {{one.op.name: one.op.retry_policy.max_retries for one in [*module.defs.assets, *module.defs.asset_checks]}},
}}))
"""
RUNS = f"""{LOAD}
for job in ("nightly", "weekly"):
    defined = module.defs.resolve_job_def(f"cataloger_{{job}}")
    config = {{"ops": {{"labels": {{"config": {{"publish_anyway": True}}}}}}}} if job == "nightly" and len(sys.argv) > 2 else {{}}
    done = defined.execute_in_process(run_config=config, raise_on_error=False, tags={{module.DATE: "2026-11-27"}})
    seen = {{}}
    for event in done.all_events:
        if event.event_type_value in ("STEP_SUCCESS", "STEP_SKIPPED", "STEP_FAILURE", "STEP_RESTARTED", "ASSET_MATERIALIZATION", "ASSET_OBSERVATION"):
            seen.setdefault(event.step_key, []).append(event.event_type_value)
    checks = {{one.check_name: [one.passed, one.severity.value, one.description] for one in done.get_asset_check_evaluations()}}
    print("ANSWER", json.dumps({{"success": done.success, "steps": seen, "checks": checks}}))
"""
SCHEDULES = f"""{LOAD}
from datetime import datetime, timezone

night = datetime(2026, 11, 27, 2, tzinfo=timezone.utc)
with dg.DagsterInstance.local_temp() as instance:
    def asked():
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=night)
        return module.every_night(context)
    print("ANSWER", json.dumps(asked().tags))
    instance.add_run(dg.DagsterRun(job_name="cataloger_nightly", run_id=dg._core.utils.make_new_run_id(), status=dg.DagsterRunStatus.STARTED))
    print("ANSWER", json.dumps(asked().skip_message))
"""


def answers(out: str) -> list[Any]:
    return [json.loads(line.removeprefix("ANSWER ")) for line in out.splitlines() if line.startswith("ANSWER ")]


class Dagster:
    """A Dagster in whose environment nobody has installed anything but Dagster."""

    def __init__(self, folder: Path) -> None:
        self.python, self.checkout = scheduler("dagster"), Checkout(folder / "checkout")
        chosen = {"checkout": str(self.checkout.folder), **SETTINGS}
        named = {f"CATALOGER_{name.upper()}": value for name, value in chosen.items()}
        self.environment = clean(DAGSTER_HOME=str(folder), DAGSTER_DISABLE_TELEMETRY="yes", **named)

    def ask(self, program: str, *arguments: str, **more: str) -> list[Any]:
        environment = self.environment | more
        return answers(run_python(self.python, program, str(ASSETS), *arguments, environment=environment))


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory) -> Dagster:
    return Dagster(tmp_path_factory.mktemp("dagster"))


def test_the_definitions_load_without_ray_and_have_the_structure_that_the_page_shows(dagster: Dagster) -> None:
    (found,) = dagster.ask(STRUCTURE)
    assert found == {
        "installed": [],
        "assets": {"labels": [], "challenger": [], "champion": ["challenger"]},
        "checks": ["fit_to_publish", "whole"],
        "schedules": {"cataloger_nightly": "0 2 * * *", "cataloger_weekly": "0 8 * * 0"},
        "retries": {"labels": 3, "labels_whole": 3, "challenger": 3, "champion": 3},
    }


def test_a_good_night_and_week_and_the_real_jobs_take_the_flags(dagster: Dagster) -> None:
    dagster.checkout.ends_with()
    night, week = dagster.ask(RUNS, CATALOGER_MLFLOW="http://mlflow:5000")
    assert night == {
        "success": True,
        "steps": {"labels": ["ASSET_MATERIALIZATION", "STEP_SUCCESS"], "labels_whole": ["STEP_SUCCESS"]},
        "checks": {"fit_to_publish": [True, "ERROR", None], "whole": [True, "ERROR", None]},
    }
    assert week["steps"] == {name: ["ASSET_MATERIALIZATION", "STEP_SUCCESS"] for name in ("challenger", "champion")}
    calls = dagster.checkout.calls()
    assert [name for name, _, _ in calls] == ["label", "verify", "train", "compare"]
    assert {mlflow for _, _, mlflow in calls} == {"http://mlflow:5000"}
    flags = "--catalog /shop/catalog --output /shop/labels --model models:/shop@champion --id-column sku --use-gpu"
    assert calls[0][1] == flags.split()
    assert [refused_by(name, flags) for name, flags, _ in calls] == ["", "", "", ""]


def test_held_back_and_not_promoted_are_good_ends_that_materialize_nothing(dagster: Dagster) -> None:
    dagster.checkout.ends_with(label=3, compare=1)
    night, week = dagster.ask(RUNS)
    assert night["success"]
    assert night["steps"] == {"labels": ["STEP_SUCCESS"], "labels_whole": ["STEP_SKIPPED"]}
    assert night["checks"] == {"fit_to_publish": [False, "WARN", "held back: label has a reason for 3"]}
    assert week["success"]
    assert week["steps"]["champion"] == ["ASSET_OBSERVATION", "STEP_SUCCESS"]
    dagster.checkout.ends_with()
    night, _ = dagster.ask(RUNS, "anyway")
    assert night["steps"]["labels_whole"] == ["STEP_SUCCESS"]
    assert "--publish-anyway" in dagster.checkout.calls()[0][1]


def test_bad_input_is_red_at_once_and_damaged_labels_are_red(dagster: Dagster) -> None:
    dagster.checkout.ends_with(label=2, train=2)
    for found in dagster.ask(RUNS):
        assert not found["success"]
        assert next(iter(found["steps"].values())) == ["STEP_FAILURE"]
    assert [name for name, _, _ in dagster.checkout.calls()] == ["label", "train"]
    dagster.checkout.ends_with(verify=3)
    night, _ = dagster.ask(RUNS)
    assert not night["success"]
    assert night["checks"]["whole"] == [False, "ERROR", "verify has a reason for 3"]


def test_a_crash_is_tried_again(dagster: Dagster, tmp_path: Path) -> None:
    dagster.checkout.ends_with(label=[4, 1, 0])
    impatient = tmp_path / "cataloger_assets.py"
    impatient.write_text(ASSETS.read_text().replace("delay=300", "delay=0"))
    night, _ = dagster.ask(RUNS.replace("sys.argv[1]", repr(str(impatient))))
    assert night["success"]
    assert night["steps"]["labels"] == ["STEP_RESTARTED", "STEP_RESTARTED", "ASSET_MATERIALIZATION", "STEP_SUCCESS"]


def test_a_night_waits_for_the_one_before(dagster: Dagster) -> None:
    tags, skipped = dagster.ask(SCHEDULES)
    assert tags["cataloger/date"] == "2026-11-27"
    assert skipped == "a run of cataloger_nightly is still going"


def on_ray_in(file: Path) -> str:
    source = file.read_text()
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "on_ray"]
    return str(ast.get_source_segment(source, found))


def test_both_schedulers_run_a_job_on_ray_with_the_same_lines() -> None:
    assert on_ray_in(ASSETS) == on_ray_in(ROOT / "deploy" / "airflow" / "cataloger_dags.py")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture
def on_ray(head: Head, tmp_path: Path) -> tuple[Checkout, Callable[..., subprocess.CompletedProcess[str]]]:
    """A checkout, and what runs one of its jobs as a scheduler does: `run("label-2026-11-27", "label", retried=True)`."""
    checkout = Checkout(tmp_path / "checkout")
    program = f"{on_ray_in(ASSETS)}\nimport sys\non_ray(*sys.argv[1:])"

    def run(
        name: str, job: str, retried: bool = False, address: str = head.address
    ) -> subprocess.CompletedProcess[str]:
        words = (
            name,
            "retried" if retried else "",
            "http://mlflow:5000",
            "python",
            f"jobs/{job}.py",
            "--note",
            "two words",
        )
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=checkout.folder,
            env=clean(RAY_ADDRESS=address, **head.variables),
            capture_output=True,
            text=True,
            timeout=200,
        )

    return checkout, run


def test_a_submitted_job_ends_with_its_own_exit_code(
    head: Head, on_ray: tuple[Checkout, Callable[..., subprocess.CompletedProcess[str]]]
) -> None:
    checkout, run = on_ray
    for code in (1, 3):
        checkout.ends_with(label=code)
        done = run(f"code-{code}", "label")
        assert done.returncode == code, done.stderr
        assert "this is label" in done.stdout
        assert checkout.calls() == [("label", ["--note", "two words"], "http://mlflow:5000")]
        assert head.jobs()[f"code-{code}"] == code
    # Nobody is there to ask: that must not look like "not promoted".
    assert run("nobody", "label", address="http://127.0.0.1:9").returncode == 4


def test_a_retry_takes_what_it_finds_and_anew_is_anew(
    head: Head, on_ray: tuple[Checkout, Callable[..., subprocess.CompletedProcess[str]]]
) -> None:
    checkout, run = on_ray
    checkout.ends_with(train=3)
    assert run("train-1", "train").returncode == 3
    # The scheduler's own machine was lost, and the job came to its end.
    assert run("train-1", "train", retried=True).returncode == 3
    assert len(checkout.calls()) == 1
    # Somebody has mended the catalog, and cleared the task.
    checkout.ends_with(train=[4, 0])
    assert run("train-1", "train").returncode == 4
    # After a crash, a retry is another job.
    assert run("train-1", "train", retried=True).returncode == 0
    assert {name: code for name, code in head.jobs().items() if name.startswith("train-1")} == {
        "train-1": 3,
        "train-1-2": 4,
        "train-1-3": 0,
    }


def test_a_job_that_is_running_is_followed_and_one_that_a_person_stops_says_so(
    head: Head, on_ray: tuple[Checkout, Callable[..., subprocess.CompletedProcess[str]]]
) -> None:
    checkout, run = on_ray
    (checkout.folder / "wait").touch()
    done: list[subprocess.CompletedProcess[str]] = []
    threads = []
    for retried in (False, True):
        threads.append(threading.Thread(target=lambda retried=retried: done.append(run("night", "label", retried))))
        threads[-1].start()
        deadline = time.monotonic() + 100
        while not checkout.calls():
            assert time.monotonic() < deadline, "the job has not begun"
            time.sleep(0.2)
    time.sleep(5)
    (checkout.folder / "wait").unlink()
    for thread in threads:
        thread.join()
    assert [one.returncode for one in done] == [0, 0]
    assert sorted(one.stdout.split()[0] for one in done) == ["following", "started"]
    assert len(checkout.calls()) == 1

    checkout.ends_with()
    (checkout.folder / "wait").touch()
    stopped = threading.Thread(target=lambda: done.append(run("stopped", "label")))
    stopped.start()
    while not checkout.calls():
        time.sleep(0.2)
    ray = [Path(sys.executable).parent / "ray", "job", "stop", "--address", head.address, "stopped"]
    subprocess.run(ray, env=clean(**head.variables), capture_output=True, timeout=120, check=True)
    stopped.join()
    assert done[-1].returncode == 130


def test_a_night_on_the_cluster(dagster: Dagster, head: Head) -> None:
    dagster.checkout.ends_with(label=3, compare=1)
    night, week = dagster.ask(RUNS, CATALOGER_RAY_ADDRESS=head.address, **head.variables)
    assert night["checks"] == {"fit_to_publish": [False, "WARN", "held back: label has a reason for 3"]}
    assert week["steps"]["champion"] == ["ASSET_OBSERVATION", "STEP_SUCCESS"]
    assert head.jobs().items() >= {"label-2026-11-27": 3, "train-2026-11-27": 0, "compare-2026-11-27": 1}.items()


def test_dagsters_own_command_finds_nothing_wrong(dagster: Dagster) -> None:
    command = [dagster.python.parent / "dagster", "definitions", "validate", "-f", ASSETS]
    environment = dagster.environment | {"PATH": f"{dagster.python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
