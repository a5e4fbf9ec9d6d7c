"""Two answers from one model against a model for each: fashion10k's categories, and its brands as tags that are found by their value.

The brand of a title is what stands before the first word that says for whom it is ("Peter England Men Party Blue Jeans").

python benchmarks/together.py
"""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.config import TrainConfig
from cataloger.data.text import split_hash, split_position
from cataloger.data.texts import TextInput
from cataloger.evaluation.tagging import pairs, value_f1
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.spec import FORMAT
from cataloger.taxonomy import SEPARATOR
from cataloger.training.job import train
from quality import NETWORK, apart
from yardsticks import report, workroom

REAL = Path(__file__).parents[2] / "shared" / "data" / "fashion10k.parquet"
FOR_WHOM = re.compile(r"^(.+?)\s+(?:Men|Women|Boys|Girls|Unisex|Kids|Boy|Girl|Kid)\b", re.IGNORECASE)
BRAND, TEST, TEXTS = "Brand", 0.2, ("title",)
CATEGORY, TAGS, BOTH = "category alone", "brand alone", "category and brand"
LABELS = {CATEGORY: ("category_path",), TAGS: ("attributes",), BOTH: ("category_path", "attributes")}
OF_CATEGORY, OF_BRAND = "category, accuracy", "brand, value F1"
SCORES = Path(__file__).parent / "results" / "together_scores.json"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Those with figures in results/together_scores.json are not trained again."""
    answers: tuple[str, ...] = tuple(LABELS)
    """Models to train."""


def main() -> None:
    config = tyro.cli(Config)
    scores: dict[str, dict[str, float]] = json.loads(SCORES.read_text()) if SCORES.exists() else {}
    with workroom() as room:
        pq.write_table(with_brands(pq.read_table(REAL)), room / "catalog.parquet")
        for seed, what in itertools.product(config.seeds, config.answers):
            if f"{what}, seed {seed}" not in scores:
                scores[f"{what}, seed {seed}"] = measure(what, seed, room)
                SCORES.write_text(json.dumps(scores, indent=1))
                print(what, seed, scores[f"{what}, seed {seed}"], flush=True)
    rows = [
        {"model": name, **{what: one.get(what, "") for what in (OF_CATEGORY, OF_BRAND)}} for name, one in scores.items()
    ]
    report("together", "One model of two answers, and two models", rows)


def with_brands(rows: pa.Table) -> pa.Table:
    """With a column of tags by value, as a shop has them: without a place in the text."""
    found = [FOR_WHOM.match(title or "") for title in rows.column("title").to_pylist()]
    tags = [[{"name": BRAND, "value": one[1]}] if one else [] for one in found]
    kind = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
    return rows.append_column("attributes", pa.array(tags, kind))


def measure(what: str, seed: int, room: Path) -> dict[str, float]:
    """Accuracy of the network's categories, and the value-level F1 of the brands, on the fifth that training never saw."""
    config = TrainConfig(
        catalog=str(room / "catalog.parquet"),
        text_columns=TEXTS,
        label_column=LABELS[what],
        max_tokens=32,
        test_fraction=TEST,
        seed=seed,
        storage=str(room / "checkpoints"),
        model_name=what.replace(" ", "-"),
    )
    folder = fetch_model(train(config).model_uri).folder
    rows = pq.read_table(room / "catalog.parquet")
    keys = TextInput(Path(), TEXTS, 32).read(rows).values
    rows = rows.filter(pa.array(split_position(split_hash(keys, FORMAT)) < TEST))
    # Several answers have no words beside them: what they cost is told by networks alone.
    labels = Tiers(apart(folder, room / f"{what}-{seed}").get(NETWORK, folder), precision="auto").label(rows)
    found = {}
    if "category_path" in LABELS[what]:
        right = np.array(labels.column("category").to_pylist()) == np.array(rows.column("category_path").to_pylist())
        found[OF_CATEGORY] = float(right.mean())
    if "attributes" in LABELS[what]:
        given = [
            [(f"{tag['name']}{SEPARATOR}{tag['value']}", tag["confidence"]) for tag in row or ()]
            for row in labels.column("attributes").to_pylist()
        ]
        true = [
            [f"{tag['name']}{SEPARATOR}{tag['value']}" for tag in row] for row in rows.column("attributes").to_pylist()
        ]
        found[OF_BRAND] = value_f1(pairs(true, given, [[BRAND]] * len(rows)))
    return found


if __name__ == "__main__":
    main()
