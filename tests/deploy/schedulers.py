"""An environment of its own for each scheduler, and a checkout of whose jobs the tests choose the exit codes."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, free_of_ray
from servers import free_port, kill_with_descendants

BIN = Path(sys.executable).parent
JOBS = ("label", "verify", "train", "compare")
# Airflow's own list of what it was tested with. Where it cannot be had, the newest releases that fit.
CONSTRAINTS = "https://raw.githubusercontent.com/apache/airflow/constraints-{version}/constraints-{python}.txt"

JOB = """
import json, os, pathlib, sys, time

checkout, name = pathlib.Path({folder!r}), pathlib.Path(__file__).stem
with open(checkout / "calls", "a") as calls:
    calls.write(json.dumps([name, sys.argv[1:], os.environ.get("MLFLOW_TRACKING_URI")]) + "\\n")
codes = json.loads((checkout / "codes.json").read_text())
code = codes[name].pop(0) if len(codes[name]) > 1 else codes[name][0]
(checkout / "codes.json").write_text(json.dumps(codes))
print("this is", name, flush=True)
while (checkout / "wait").exists():
    time.sleep(0.1)
if code:
    print(f"error: {{name}} has a reason for {{code}}", file=sys.stderr)
sys.exit(code)
"""


def scheduler(name: str) -> Path:
    """The Python of an environment with what `deploy/NAME/requirements.txt` names. Skips where that does not install.

    It is made once, and made again when the pins change.
    """
    folder, pins = ROOT / ".venv" / "schedulers" / name, ROOT / "deploy" / name / "requirements.txt"
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if made_from.exists() and made_from.read_text() == pins.read_text():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
        install += ["--retries=1", "--requirement", pins, *constraints(folder, pins.read_text())]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            pytest.skip(f"{name} does not install here: {(done.stderr.strip() or 'pip says nothing').splitlines()[-1]}")
        made_from.write_text(pins.read_text())
    return python


def constraints(folder: Path, pins: str) -> Sequence[str | Path]:
    """Flags for pip."""
    found = [line.partition("==")[2] for line in pins.splitlines() if line.startswith("apache-airflow==")]
    if not found:
        return ()
    url = CONSTRAINTS.format(version=found[0], python=f"{sys.version_info.major}.{sys.version_info.minor}")
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            (folder / "constraints.txt").write_bytes(answer.read())
    except OSError:
        return ()
    return ("--constraint", folder / "constraints.txt")


class Checkout:
    """A folder that looks like a checkout of cataloger, and whose jobs do nothing but end with an exit code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs").mkdir(parents=True)
        for name in JOBS:
            (folder / "jobs" / f"{name}.py").write_text(JOB.format(folder=str(folder)))
        (folder / ".venv" / "bin").mkdir(parents=True)
        # A link to the link would not find its libraries.
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.ends_with()

    def ends_with(self, **codes: int | list[int]) -> None:
        """Each job ends with its code, or with one after the other."""
        every = {name: codes.get(name, 0) for name in JOBS}
        listed = {name: code if isinstance(code, list) else [code] for name, code in every.items()}
        (self.folder / "codes.json").write_text(json.dumps(listed))
        (self.folder / "calls").write_text("")

    def calls(self) -> list[tuple[str, list[str], str | None]]:
        """Each job that was run, with its flags and the address of MLflow."""
        return [tuple(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]


def clean(**variables: str) -> dict[str, str]:
    """An environment in which a scheduler finds neither this process's Ray nor its modules."""
    kept = {name: value for name, value in free_of_ray().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | variables


def run_python(python: Path, program: str, *arguments: str, environment: Mapping[str, str]) -> str:
    """What a program prints, run by the Python of a scheduler."""
    command = [python, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    return done.stdout


class Head:
    """A Ray of this machine that jobs can be submitted to."""

    def __init__(self, address: str, variables: dict[str, str]) -> None:
        self.address, self.variables = address, variables

    def ask(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.variables['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answered:
            return json.loads(answered.read())

    def jobs(self) -> dict[str, int | None]:
        """The submitted jobs, without what tells their flags apart, and their exit codes."""
        return {
            re.sub(r"-[0-9a-f]{6}(?=$|-\d+$)", "", job["submission_id"]): job["driver_exit_code"]
            for job in self.ask("")
            if job["submission_id"] not in (None, "ready")
        }


@contextlib.contextmanager
def ray_head(folder: Path) -> Iterator[Head]:
    port = free_port()
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
    # Ray's socket paths have little room: pytest's own folder names are too long.
    short = Path(f"/tmp/rd{os.getpid()}")
    command = ["ray", "start", "--head", "--block", "--num-cpus=1", f"--port={free_port()}", f"--temp-dir={short}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    environment = clean(PATH=f"{BIN}:{os.environ['PATH']}", **variables)
    with open(folder / "ray-log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    head, deadline = Head(f"http://127.0.0.1:{port}", variables), time.monotonic() + 120
    try:
        # The dashboard answers before the node's agent, which starts the jobs, has reported to it.
        submit = [BIN / "ray", "job", "submit", "--address", head.address, "--submission-id", "ready", "--", "true"]
        while subprocess.run(submit, env=environment, capture_output=True, timeout=120).returncode:
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "no job runs after two minutes"
            time.sleep(1)
        yield head
    finally:
        kill_with_descendants(process)
        shutil.rmtree(short, ignore_errors=True)


def refused_by(job: str, flags: Sequence[str]) -> str:
    """What the real job says against these flags; nothing, if it takes them."""
    program = (
        "import runpy, sys, _entry\n_entry.run = lambda job: None\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", f"import sys; sys.argv = sys.argv[1:]\n{program}", f"jobs/{job}.py", *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'jobs'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr + done.stdout


SETTINGS: Mapping[str, str] = {
    "catalog": "/shop/catalog",
    "output": "/shop/labels",
    "labelled": "/shop/labelled",
    "storage": "/shop/checkpoints",
    "model_name": "shop",
    "label_flags": "--id-column sku --use-gpu",
}
