"""Attributes of WDC-PAVE's offers: tags alone, and tags beside the category, whose names they may then be held to.

python benchmarks/tags.py             # trained on wdc_pave_train, scored once on wdc_pave_test
python benchmarks/tags.py --validate  # trained on four fifths of wdc_pave_train, scored on the others: to choose by
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.data.text import split_hash, split_position
from cataloger.data.texts import TextInput
from cataloger.evaluation.tagging import pairs, value_f1
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.spec import FORMAT
from cataloger.taxonomy import SEPARATOR
from cataloger.training.job import train
from yardsticks import report, workroom

DATA = Path(__file__).parents[2] / "shared" / "data"
TEXTS, TEST = ("title", "description"), 0.2
TAGS, BOTH = "tags alone", "category and tags"
LABELS = {TAGS: ("tags",), BOTH: ("category_path", "tags")}
SCORES = Path(__file__).parent / "results" / "tags_scores.json"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Those with figures in results/tags_scores.json are not trained again."""
    answers: tuple[str, ...] = (TAGS, BOTH)
    """Models to train."""
    validate: bool = False
    """Score a fifth of the training offers in place of the test; nothing is kept."""


def main() -> None:
    config = tyro.cli(Config)
    scores: dict[str, Any] = json.loads(SCORES.read_text()) if SCORES.exists() and not config.validate else {}
    with workroom() as room:
        for seed in config.seeds:
            for what in config.answers:
                if f"{what}, seed {seed}" not in scores:
                    scores[f"{what}, seed {seed}"] = measure(what, seed, config, room)
                    if not config.validate:
                        SCORES.write_text(json.dumps(scores, indent=1))
                    print(what, seed, scores[f"{what}, seed {seed}"], flush=True)
    if not config.validate:
        report("tags", "Attributes of WDC-PAVE's offers", [{"model": name, **found} for name, found in scores.items()])


def measure(what: str, seed: int, config: Config, room: Path) -> dict[str, float]:
    """Value-level F1, as `value_f1` says, of the names that the annotators looked for."""
    folder = learn(what, seed, config.validate, room)
    rows = held_out() if config.validate else pq.read_table(DATA / "wdc_pave_test.parquet")
    spec = read_spec(folder)
    found = {"value F1": scored(Tiers(folder, spec=spec, precision="auto").label(rows.select(TEXTS)), rows)}
    if spec.others:
        free = replace(spec, others=tuple(replace(other, allowed=()) for other in spec.others))
        labels = Tiers(folder, spec=free, precision="auto").label(rows.select(TEXTS))
        found["with names of any category"] = scored(labels, rows)
        right = np.array(labels.column("category").to_pylist()) == np.array(rows.column("category_path").to_pylist())
        found["category, accuracy"] = float(right.mean())
    return found


def learn(what: str, seed: int, validate: bool, room: Path, **others: Any) -> Path:
    """The bundle of a training with its defaults."""
    config = TrainConfig(
        catalog=str(DATA / "wdc_pave_train.parquet"),
        text_columns=TEXTS,
        label_column=LABELS[what],
        test_fraction=TEST if validate else 0.0,
        seed=seed,
        storage=str(room / "checkpoints"),
        model_name=what.replace(" ", "-"),
        **others,
    )
    return fetch_model(train(config).model_uri).folder


def held_out() -> pa.Table:
    """The rows that `test_fraction` keeps from training."""
    rows = pq.read_table(DATA / "wdc_pave_train.parquet")
    keys = TextInput(Path(), TEXTS, 32 * 64).read(rows).values
    return rows.filter(pa.array(split_position(split_hash(keys, FORMAT)) < TEST))


def scored(labels: pa.Table, rows: pa.Table) -> float:
    """Values are equal where their characters are, but for white space around them."""
    given = [
        [(_path(tag["name"], tag["value"]), tag["confidence"]) for tag in row or ()]
        for row in labels.column("tags").to_pylist()
    ]
    true = [[_path(one["name"], one["value"]) for one in row] for row in rows.column("attributes").to_pylist()]
    return value_f1(pairs(true, given, rows.column("asked").to_pylist()))


def _path(name: str, value: str) -> str:
    return f"{name}{SEPARATOR}{value.strip()}"


if __name__ == "__main__":
    main()
