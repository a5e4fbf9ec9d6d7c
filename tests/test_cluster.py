"""cluster.yaml is what `ray up` accepts and what docs/cluster.md promises."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.command_runner import _with_environment_variables, _with_interactive

from conftest import ROOT
from servers import free_port, wait_for

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.mark.parametrize("name", ["cluster", "cluster-cpu", "cluster-gcp"])
def test_it_fits_the_schema_that_ships_with_ray(name: str) -> None:
    cluster = yaml.safe_load((ROOT / f"{name}.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 3}, schema)


@pytest.mark.parametrize("name", ["cluster-cpu", "cluster-gcp"])
def test_its_variants_differ_in_their_machines_alone(name: str) -> None:
    text = (ROOT / f"{name}.yaml").read_text()
    variant = yaml.safe_load(text)
    for key in CLUSTER.keys() - {"cluster_name", "provider", "available_node_types"}:
        assert variant[key] == CLUSTER[key], key
    head, *workers = (variant["available_node_types"][kind] for kind in variant["available_node_types"])
    assert head["resources"] == {"CPU": 0}
    assert [(worker["min_workers"], worker["max_workers"]) for worker in workers] == [(0, 8)]
    assert variant["cluster_name"] != CLUSTER["cluster_name"]
    assert [text.count(f"EDIT {number}:") for number in (1, 2, 3)] == [1, 1, 1]


def test_the_head_runs_no_work_and_gpu_workers_scale_from_zero_on_spot() -> None:
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    worker = CLUSTER["available_node_types"]["gpu_worker"]
    assert head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0 < worker["max_workers"] <= CLUSTER["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_nothing_listens_to_the_world_and_no_key_is_in_the_file() -> None:
    commands = "\n".join(CLUSTER["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "mlflow server --host 127.0.0.1" in commands
    text = (ROOT / "cluster.yaml").read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "AWS_SECRET" not in text
    assert all("IamInstanceProfile" in node["node_config"] for node in CLUSTER["available_node_types"].values())
    assert text.count("EDIT 1") == text.count("EDIT 3") == 1, "three places to edit"


def test_the_pinned_environment_is_the_one_that_is_installed() -> None:
    assert CLUSTER["file_mounts"]["/home/ubuntu/constraints.txt"] == "constraints.txt"
    assert any("pip install -q -r ~/constraints.txt" in command for command in CLUSTER["setup_commands"])
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert {"ray", "torch", "transformers", "mlflow", "pyarrow", "s3fs"} <= {pin.split("==")[0] for pin in pins}


MLFLOW = """
import http.server, os, sys
open(os.environ["CALLS"], "a").write(" ".join(["mlflow", *sys.argv[1:]]) + "\\n")
open(os.environ["HOME"] + "/pid", "w").write(str(os.getpid()))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


def test_the_head_starts_mlflow_once_and_ray_each_time(working_folder: Path) -> None:
    home, port, calls = working_folder, free_port(), working_folder / "calls"
    for name, text in {
        "ray": f'#!/bin/sh\necho "ray $*" >> {calls}\n',
        "mlflow": f"#!{sys.executable}\n{MLFLOW}",
    }.items():
        (home / "bin").mkdir(exist_ok=True)
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    (home / ".bashrc").write_text("export PATH=$HOME/bin:$PATH\n")
    environment = {**os.environ, "HOME": str(home), "CALLS": str(calls)}

    def ray_up() -> None:
        """What Ray types into the head's shell, on another port."""
        for command in CLUSTER["head_start_ray_commands"]:
            typed = _with_environment_variables(command.replace("5000", str(port)), {"RAY_OVERRIDE_RESOURCES": {}})
            line = " ".join(_with_interactive(typed))
            subprocess.run(["bash", "-c", line], env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)

    def stop_mlflow() -> None:
        os.kill(int((home / "pid").read_text()), signal.SIGKILL)

    def answers() -> None:
        wait_for(f"http://127.0.0.1:{port}/health", None, 20)

    try:
        ray_up(), answers(), ray_up()
        stop_mlflow()
        (home / "pid").unlink()
        # A server that the second time had started needlessly has said so by the time that this one answers.
        ray_up(), answers()
    finally:
        if (home / "pid").exists():
            stop_mlflow()
    called = [line.split()[:2] for line in calls.read_text().splitlines()]
    assert called.count(["mlflow", "server"]) == 2, "the first time, and when it had ended"
    assert called.count(["ray", "start"]) == called.count(["ray", "stop"]) == 3
