"""cluster.yaml is what `ray up` accepts and what the README promises."""

import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from conftest import ROOT

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_it_fits_the_schema_that_ships_with_ray() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CLUSTER, "max_worker": 3}, schema)


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
