"""Memory and time of a training of 10^6 to 10^7 generated rows, with a network of one narrow layer: what the rows themselves cost.

python benchmarks/learning.py
"""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from mlflow import MlflowClient

import memory
import scale
from yardsticks import report, workroom

CATEGORIES = 100


@dataclass(frozen=True)
class Config:
    """What to measure."""

    exponents: tuple[int, ...] = (6, 7)
    """Powers of ten."""
    workers: str = "1"
    """As `train.py --num-workers` takes it."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        scale.tiny_bundle(room)
        rows: list[dict[str, object]] = []
        for exponent in config.exponents:
            catalog = room / f"labelled-{exponent}"
            scale.write_titles(10**exponent, room, with_categories).rename(catalog)
            found = measure(catalog, room, config.workers)
            rows.append({"rows": f"{10**exponent:,}", "workers": config.workers, **found})
            shutil.rmtree(catalog)
            report("learning", "One epoch over generated rows, a network of one narrow layer", rows)


def with_categories(table: pa.Table) -> pa.Table:
    """The category of a row goes by its number, and so can be told by its colour and its size."""
    number = table.column("id").to_numpy() % CATEGORIES
    paths = np.array([f"Department {i // 20} > Category {i}" for i in range(CATEGORIES)])
    return table.append_column("category_path", pa.array(paths[number]))


def measure(catalog: Path, room: Path, workers: str) -> dict[str, object]:
    job = ["train.py", "--catalog", str(catalog), "--text-columns", "title", "--base-model", str(room / "base")]
    more = ["--max-tokens", "32", "--epochs", "1", "--adversarial", "0", "--num-workers", workers]
    more += ["--model-name", catalog.name, "--experiment", catalog.name, "--storage", str(room / "checkpoints")]
    command = [sys.executable, str(scale.JOBS / job[0]), *job[1:], *more]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=DEVNULL) as process, memory.watched(process.pid) as peak:
        assert process.wait() == 0
    took = time.perf_counter() - started
    client = MlflowClient()
    experiment = client.get_experiment_by_name(catalog.name)
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    rates = [point.value for point in client.get_metric_history(run.info.run_id, "tokens_per_second")]
    rows = sum(pq.read_metadata(file).num_rows for file in catalog.iterdir())
    return {
        "seconds": took,
        "µs per row": 1e6 * took / rows,
        "tokens/s, median": float(np.median(rates)),
        "driver, peak MiB": peak.driver / 1024,
        "largest worker, peak MiB": peak.worker / 1024,
        "objects spilled": float(peak.spilled),
    }


if __name__ == "__main__":
    main()
