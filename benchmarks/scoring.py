"""Seconds and memory of the driver for the scores of generated predictions: an evaluation, and a comparison of two models.

python benchmarks/scoring.py --rows 1000000
"""

import functools
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from cataloger.evaluation import comparison, report, significance, slices
from cataloger.evaluation.predictions import About, Predictions

CATEGORIES = 400


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 1_000_000
    """Predictions to generate."""
    samples: int = 20
    """Bootstrap samples of the comparison."""


def main() -> None:
    config = tyro.cli(Config)
    first, second = (
        step(f"predictions of model {seed}", config.rows, lambda seed=seed: said(config.rows, seed)) for seed in (1, 2)
    )
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        with mlflow.start_run():
            scores = step("scores", config.rows, lambda: report.score(first, "none"))
            step("report and pictures", config.rows, lambda: report.log_scores(scores, first, ""))
    for module, name in ((comparison, "differences"), (slices, "accuracy_difference")):
        setattr(module, name, functools.partial(getattr(significance, name), samples=config.samples))
    step(
        f"comparison, {config.samples} samples",
        config.rows,
        lambda: comparison.compare_predictions(first, second, ("one", "two")),
    )


def said(rows: int, seed: int) -> Predictions:
    """Of a model that is right on four rows of five; both models answer the same rows."""
    names = np.array([f"Department {i // 20} > Shelf {i // 5} > Category {i}" for i in range(CATEGORIES)])
    true = np.random.default_rng(0).integers(CATEGORIES, size=rows)
    random = np.random.default_rng(seed)
    given = np.where(random.random(rows) < 0.8, true, random.integers(CATEGORIES, size=rows))
    columns = {
        "row": pa.array(np.arange(rows)),
        "id": pa.array(np.arange(rows)),
        "text": pc.binary_join_element_wise("product", pa.array(np.arange(rows)).cast(pa.string()), " "),
        "written": pa.array(names).take(pa.array(true)),
        "category": pa.array(names).take(pa.array(given)),
        "confidence": pa.array(random.random(rows).astype(np.float32)),
        "needs_review": pa.array(random.random(rows) < 0.2),
        "seen": pa.nulls(rows, pa.bool_()),
    }
    about = About("m", "c", "f", "id", "category_path", "all", tuple(names.tolist()), 1.0)
    return Predictions.of(pa.table(columns), {name: name for name in names.tolist()}, about)


def step(name: str, rows: int, work: Callable[[], Any]) -> Any:
    """Says what it took; the memory is by how much the process's highest mark rose."""
    before, started = peak(), time.perf_counter()
    found = work()
    rise = (peak() - before) / rows
    print(f"{name:30} {time.perf_counter() - started:7.1f} s  {rise:7.0f} bytes per row more at the peak")
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
