"""Going on from a trained model, against a training from the start: new labels and new categories arrive, or the catalog is another one.

python benchmarks/continuing.py
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.training.job import TrainResult, train
from extend import split
from yardsticks import report, seconds, workroom

# Of the rows, those that had labels yesterday, and of the categories, those that nobody had then.
YESTERDAY, NEW = 0.8, 0.05


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 12_000
    """Labelled products of instacart today."""
    keep_old: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.0)
    other_rows: tuple[int, ...] = (500, 2_000)
    """Labelled products of another catalog, fashion10k, to begin with a model of instacart."""
    epochs: int | None = None
    """Of trainings from the start; by default what training chooses."""
    seed: int = 0


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        rows = new_labels(config, room)
        print(*rows, sep="\n", flush=True)
        report("continuing", "New labels and new categories: a fifth of the rows, a twentieth of the categories", rows)
        others = [
            other_catalog(count, base, config, room)
            for count, base in itertools.product(config.other_rows, ("minilm", "models:/yesterday/1"))
        ]
        if others:
            report("continuing_others", "Another catalog as a start", others)


def new_labels(config: Config, room: Path) -> list[dict[str, object]]:
    learnt, test = split("instacart")
    rng = np.random.default_rng(config.seed)
    today = learnt.take(pa.array(rng.permutation(len(learnt))[: config.rows]))
    paths = today.column("category_path")
    every = sorted(set(paths.to_pylist()))
    new = pa.array(sorted(rng.choice(every, round(len(every) * NEW), replace=False).tolist()))
    had = pc.and_(pc.invert(pc.is_in(paths, new)), pa.array(rng.random(len(today)) < YESTERDAY))
    scored = test.filter(pc.is_in(test.column("category_path"), pa.array(every)))

    def figures(how: str, result: TrainResult, took: float) -> dict[str, object]:
        folder = fetch_model(result.model_uri).folder
        network = replace(read_spec(folder), words=None)
        side = pc.is_in(scored.column("category_path"), new)
        found = {
            what: pc.equal(
                Tiers(folder, spec=spec, precision="auto").label(scored).column("category"),
                scored.column("category_path"),
            )
            for what, spec in (("network", network), ("both", read_spec(folder)))
        }
        return {
            "how": how,
            "seconds": took,
            "validation, network": result.metrics["val_network_accuracy"],
            "validation, both": result.metrics["val_accuracy"],
            "network, old categories": pc.mean(found["network"].filter(pc.invert(side))).as_py(),
            "network, new categories": pc.mean(found["network"].filter(side)).as_py(),
            "both, all": pc.mean(found["both"]).as_py(),
        }

    def learn(how: str, table: pa.Table, name: str, **more: Any) -> dict[str, object]:
        row = figures(how, *trained(table, name, config, room, **more))
        print(row, flush=True)
        return row

    return [
        learn("yesterday's", today.filter(had), "yesterday"),
        learn("from the start", today, "full"),
        learn("goes on, all rows", today, "all", **GOES_ON),
        *(
            learn(f"goes on, --keep-old {kept:g}", today, f"kept-{kept:g}", keep_old=kept, **GOES_ON)
            for kept in config.keep_old
        ),
    ]


GOES_ON: dict[str, Any] = {"base_model": "models:/yesterday/1", "epochs": None}


def trained(table: pa.Table, name: str, config: Config, room: Path, **more: Any) -> tuple[TrainResult, float]:
    pq.write_table(table, room / f"{name}.parquet")
    about = TrainConfig(
        catalog=str(room / f"{name}.parquet"),
        text_columns=("title",),
        max_tokens=32,
        storage=str(room / "checkpoints"),
        model_name=name,
        seed=config.seed,
        **({"epochs": config.epochs} | more),
    )
    results: list[TrainResult] = []
    took = seconds(lambda: results.append(train(about)))
    return results[0], took


def other_catalog(rows: int, base: str, config: Config, room: Path) -> dict[str, object]:
    """Accuracy of the network alone on a fifth of fashion10k."""
    learnt, test = split("fashion10k")
    name = f"fashion-{rows}-{'instacart' if base.startswith('models:') else base}"
    result, took = trained(learnt.slice(0, rows), name, config, room, base_model=base)
    folder = fetch_model(result.model_uri).folder
    labels = Tiers(folder, spec=replace(read_spec(folder), words=None), precision="auto").label(test)
    right = pc.mean(pc.equal(labels.column("category"), test.column("category_path"))).as_py()
    row: dict[str, object] = {"rows": rows, "begins with": base, "seconds": took, "accuracy, network": right}
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
