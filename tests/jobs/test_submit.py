"""`ray job submit --working-dir .` against a local head with a dashboard and token authentication."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import requests
import torch
from safetensors.torch import load_file

import tagged
from conftest import ROOT, free_of_ray
from servers import free_port, kill_with_descendants

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(dashboard address, environment for clients) of a Ray head of its own, ended by PID."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        **free_of_ray(),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
    }
    # Ray's socket paths have little room: pytest's own folder names are too long.
    folder = Path(f"/tmp/rs{os.getpid()}")
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}", f"--temp-dir={folder}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", "--disable-usage-stats"]
    # Its default port belongs to whichever Ray of this machine came first.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    with open(tmp_path_factory.mktemp("head") / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(address, environment["RAY_AUTH_TOKEN"], process)
        yield address, environment
    finally:
        # SIGTERM would take half a minute.
        kill_with_descendants(process)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def wait_for(address: str, token: str, process: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, "ray start ended"
            assert time.monotonic() < deadline, "no dashboard after two minutes"
            time.sleep(1)


def submit(head: tuple[str, dict[str, str]], *command: object, wait: bool = True) -> str:
    address, environment = head
    line = [
        str(BIN / "ray"),
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        str(ROOT),
        *([] if wait else ["--no-wait"]),
        "--",
        "python",
        *map(str, command),
    ]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400)
        # The dashboard answers before the node's agent has reported to it.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    return done.stdout


def test_train_and_label_can_be_submitted(
    head: tuple[str, dict[str, str]], tiny_model: Path, labelled: Path, working_folder: Path
) -> None:
    checkpoints = working_folder / "checkpoints"
    flags = ("--base-model", tiny_model, "--fine-tune", "head", "--epochs", 1, "--max-tokens", 16)
    flags += ("--storage", checkpoints)
    out = submit(head, "jobs/train.py", "--catalog", labelled, *flags, "--model-name", "submitted")
    assert "models:/submitted/1" in out
    base = load_file(tiny_model / "model.safetensors")
    (kept,) = working_folder.glob("checkpoints/*/checkpoint_*/bundle/model.safetensors")
    assert all(torch.equal(weight, base[name[5:]]) for name, weight in load_file(kept).items() if name[:5] == "bert.")
    model = ("--model", "models:/submitted@champion")
    out = submit(head, "jobs/label.py", "--catalog", labelled, "--output", working_folder / "labels", *model)
    assert "1,500" in out
    pointer = json.loads((working_folder / "labels" / "_latest.json").read_text())
    manifest = json.loads((working_folder / "labels" / pointer["manifest"]).read_text())
    assert manifest["labelled"] == 1_500
    assert manifest["model"] == "models:/submitted/1"


def test_explanations_and_groups_can_be_submitted(
    head: tuple[str, dict[str, str]], bundle: Path, labelled: Path, working_folder: Path
) -> None:
    catalog = ("--catalog", labelled, "--model", bundle)
    page = working_folder / "why.html"
    out = submit(head, "jobs/explain.py", *catalog, "--ids", "P0000000003", "--output", page)
    assert "P0000000003:" in out
    assert "P0000000003" in page.read_text()
    groups = ("--group-columns", "brand", "--groups-report", working_folder / "groups.html")
    assert "products by brand" in submit(head, "jobs/evaluate.py", *catalog, *groups)
    assert "By <bdi>brand</bdi>" in (working_folder / "groups.html").read_text()


def test_a_service_can_be_submitted(head: tuple[str, dict[str, str]], bundle: Path, working_folder: Path) -> None:
    port = free_port()
    out = submit(head, "jobs/serve.py", "--model", bundle, "--port", port, wait=False)
    (job,) = set(re.findall(r"raysubmit_\w+", out))
    deadline, answer = time.monotonic() + 240, None
    while answer is None:
        try:
            answer = requests.post(f"http://127.0.0.1:{port}/categorize", json={"title": "red shoes"}, timeout=10)
        except requests.RequestException:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(1)
    assert answer.status_code == 200
    assert answer.json()["category"]
    why = requests.post(f"http://127.0.0.1:{port}/explain", json={"title": "red shoes"}, timeout=60).json()
    assert [word["text"] for word in why["explanations"][0]["words"]] == ["red", "shoes"]
    address, environment = head
    stopped = [str(BIN / "ray"), "job", "stop", "--address", address, job]
    subprocess.run(stopped, env=environment, capture_output=True, timeout=120, check=True)


def test_a_model_of_two_answers_can_be_submitted(
    head: tuple[str, dict[str, str]], tiny_model: Path, working_folder: Path
) -> None:
    catalog = working_folder / "shop.parquet"
    pq.write_table(tagged.shop(200), catalog)
    flags = ("--text-columns", "title", "description", "--label-column", "category_path", "tags")
    flags += ("--base-model", tiny_model, "--fine-tune", "head", "--epochs", 1, "--max-tokens", 16)
    submit(head, "jobs/train.py", "--catalog", catalog, *flags, "--storage", working_folder, "--model-name", "two")
    model = ("--model", "models:/two@champion", "--output", working_folder / "labels")
    submit(head, "jobs/label.py", "--catalog", catalog, *model)
    pointer = json.loads((working_folder / "labels" / "_latest.json").read_text())
    labels = pq.read_table(working_folder / "labels" / pointer["path"])
    assert {"category", "tags"} <= set(labels.column_names)
    assert len(labels) == 200


def test_what_is_uploaded_is_code_and_no_environment_or_data(working_folder: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    target = working_folder / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    names = zipfile.ZipFile(target).namelist()
    assert {"jobs/train.py", "cataloger/training/job.py"} <= set(names)
    assert not [name for name in names if name.split("/")[0] in (".venv", ".git", "tests", "demo", "mlartifacts")]
    assert target.stat().st_size < 2_000_000
