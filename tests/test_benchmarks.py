"""The benchmark that needs a GPU is kept ready: here on the CPU, at tiny size."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT, free_of_ray


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
    ]
    results = ROOT / "benchmarks" / "results" / "gpu-tiny.json"
    done = subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=400, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    try:
        rows = json.loads(results.read_text())["rows"]
    finally:
        results.unlink(missing_ok=True)
    assert rows[0]["catalog"] == "titles"
    assert all(row["forward rows/s"] > 0 and row["whole job, s"] > 0 for row in rows)
