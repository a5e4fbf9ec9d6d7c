"""The benchmarks that need a GPU or other libraries are kept ready, at tiny size; and the simulation of a cluster adds up."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from conftest import ROOT, free_of_ray, shared_data


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_at_tiny_size() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--rows",
        "1000",
        "--peer-rows",
        "200",
    ]
    results = ROOT / "benchmarks" / "results" / "gpu-tiny.json"
    others = results.with_name("gpu-tiny-peers.json")
    done = subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=400, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    try:
        rows, peers = (json.loads(file.read_text())["rows"] for file in (results, others))
    finally:
        results.unlink(missing_ok=True)
        others.unlink(missing_ok=True)
    assert rows[0]["catalog"] == "titles"
    assert {row["way"].split(",")[0] for row in peers} >= {"sorted", "transformers.pipeline"}
    assert all(row["rows/s"] > 0 for row in peers)
    assert all(row["forward rows/s"] > 0 and row["whole job, s"] > 0 for row in rows)


def peers(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), *options]
    return subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=550)


def test_peers_that_are_not_installed_are_named_with_the_command_that_installs_them() -> None:
    done = peers("--peers", "fastText", "scikit-learn", "--libraries", "nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "nowhere has no fastText: pip install --no-deps --target nowhere --requirement benchmarks/peers.txt"
    )


@pytest.mark.slow
def test_cataloger_and_peers_of_our_own_environment_are_compared_at_tiny_size() -> None:
    shared_data("instacart.parquet")
    results = ROOT / "benchmarks" / "results" / "peers-tiny.json"
    try:
        done = peers(
            *("--learn-from", "600", "--rows", "1000", "--words-rows", "1000"),
            *("--peers", "scikit-learn", "sentence-transformers"),
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads(results.read_text())["rows"]
        assert results.with_suffix(".png").exists()
    finally:
        results.unlink(missing_ok=True)
        results.with_suffix(".png").unlink(missing_ok=True)
    assert [row["way"] for row in rows[4:]] == ["raw forward pass of MiniLM", "scikit-learn", "sentence-transformers"]
    # Of so few rows the difference of two jobs is noise, which may be below zero; the others are timed by themselves.
    assert all(row["titles/s"] > 0 for row in rows[4:])
    assert all(rows[place]["accuracy"] > 0.1 for place in (0, 5))  # the network has learned for one epoch only


@pytest.fixture(scope="module")
def fleet() -> Any:
    spec = importlib.util.spec_from_file_location("fleet", ROOT / "benchmarks" / "fleet.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fleet"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_a_simulated_night_takes_what_its_parts_add_up_to(fleet: Any) -> None:
    more = {"compare": 1e-6, "driver": 0.01, "waiting": 0.0, "start": 15.0, "begin_to_compare": 5.0}
    work = fleet.Work(1e-6, 2e-6, 3e-6, 4e-6, 5e-6, **more)
    one = fleet.Node("one core", 1, 0, 3.6, 1e12)
    rows = 100 * fleet.ROWS_PER_UNIT
    first = fleet.simulate(fleet.Night(rows), one, 1, work)
    assert first.seconds == pytest.approx(20 + rows * (1 + 3 + 4 + 5 + 1) * 1e-6, rel=0.02)
    assert first.dollars == pytest.approx(first.seconds * 3.6 / 3600, rel=0.02)
    assert first.bottleneck == "cores"
    second = fleet.simulate(fleet.Night(rows, 0.01), one, 1, work)
    assert second.seconds == pytest.approx(20 + rows * (1 + 2 + 0.01 * (3 + 4) + 5 + 2) * 1e-6, rel=0.05)
    gpu = fleet.simulate(fleet.Night(rows), replace(one, gpus=1), 1, replace(work, forward=1e-4))
    assert gpu.bottleneck == "GPUs"
    assert gpu.seconds == pytest.approx(20 + rows * 1e-4 + rows * 1e-6, rel=0.02)


def test_more_machines_take_less_time_and_lost_ones_lose_no_unit(fleet: Any) -> None:
    more = {"compare": 1e-6, "driver": 0.01, "waiting": 0.0, "start": 15.0, "begin_to_compare": 5.0}
    work = fleet.Work(1e-6, 2e-6, 3e-6, 4e-5, 5e-6, **more)
    node = fleet.Node("spot", 4, 0, 1.0, 1e9, starts_in=60.0)
    night = fleet.Night(1e8)
    few, many = (fleet.simulate(night, node, nodes, work).seconds for nodes in (2, 8))
    assert few > 2.5 * many, "the start is the same"
    lost = fleet.simulate(night, replace(node, lost_per_hour=20.0), 2, work)
    assert lost.lost > 0
    assert lost.seconds > few
    slow = fleet.simulate(night, node, 64, replace(work, driver=0.5))
    assert slow.bottleneck == "driver"
    assert slow.seconds > night.units * 0.5
