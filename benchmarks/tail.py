"""What each way to help rare categories changes, on a real catalog with a long tail.

python benchmarks/tail.py
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from sklearn.metrics import f1_score

from cataloger.config import EvaluateConfig, LongTail, TrainConfig
from cataloger.data.text import compose, split_hash, split_position
from cataloger.evaluation.evaluate import evaluate
from cataloger.spec import FORMAT
from cataloger.training.job import train
from yardsticks import report, workroom

REAL = Path(__file__).parents[2] / "shared" / "data" / "fashion10k.parquet"
# The part that the figures of docs/quality.md are scored on stays unseen; the next fifth is scored here.
UNSEEN, SCORED = 0.2, 0.36


@dataclass(frozen=True)
class Config:
    """What to measure."""

    catalog: str = str(REAL)
    """A labelled Parquet file with id, title and category_path."""
    epochs: int = 5
    """Passes over the training rows, for every way alike."""
    rare: int = 20
    """Categories with at most this many training rows are rare."""
    ways: tuple[LongTail, ...] = get_args(LongTail)
    """Values of --long-tail."""
    seeds: tuple[int, ...] = (0,)
    """Each way is trained once per seed; the table has the means."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        table = pq.read_table(config.catalog, columns=["id", "title", "category_path"])
        position = split_position(split_hash(compose(table, ("title",), 32), FORMAT))
        fit = table.filter(pa.array(position >= SCORED))
        pq.write_table(fit, room / "fit.parquet")
        pq.write_table(table.filter(pa.array((position >= UNSEEN) & (position < SCORED))), room / "scored.parquet")
        counts = Counter(fit.column("category_path").to_pylist())
        rare = {category for category, rows in counts.items() if rows <= config.rare}
        rows: list[dict[str, object]] = []
        for way in config.ways:
            scores = np.mean([score(way, seed, config, room, rare) for seed in config.seeds], axis=0)
            names = ("accuracy", "macro F1", "macro F1, rare", "calibration error")
            rows.append({"--long-tail": way, **{name: float(value) for name, value in zip(names, scores, strict=True)}})
            print(rows[-1], flush=True)
        seeds = ", ".join(map(str, config.seeds))
        title = f"{Path(config.catalog).stem}, {config.epochs} epochs, seeds {seeds}; {len(rare)} of {len(counts)} categories have at most {config.rare} rows"
        report("tail", title, rows, ("--long-tail", "macro F1, rare"))


def score(way: LongTail, seed: int, config: Config, room: Path, rare: set[str]) -> tuple[float, float, float, float]:
    """(accuracy, macro F1, macro F1 of the rare categories, calibration error) on the scored part."""
    trained = train(
        TrainConfig(
            catalog=str(room / "fit.parquet"),
            eval_catalog=str(room / "scored.parquet"),
            text_columns=("title",),
            max_tokens=32,
            epochs=config.epochs,
            patience=config.epochs,
            adversarial=0.0,
            level_weights=(),
            long_tail=way,
            seed=seed,
            storage=str(room / "checkpoints"),
            model_name="tail",
        )
    )
    predictions = room / "predictions.parquet"
    found = evaluate(
        EvaluateConfig(catalog=str(room / "scored.parquet"), model=(trained.model_uri,), predictions=str(predictions))
    )
    answers = pq.read_table(predictions)
    true, predicted = answers.column("true_category").to_pylist(), answers.column("category").to_pylist()
    present = sorted(rare & set(true))
    of_rare = float(f1_score(true, predicted, labels=present, average="macro", zero_division=0))
    return found.overall.accuracy, found.overall.macro_f1, of_rare, found.calibration_error


if __name__ == "__main__":
    main()
