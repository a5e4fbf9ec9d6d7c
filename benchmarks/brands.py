"""What a category and a brand cost each other: one model of both against a model of each, on fashion10k's titles.

No catalog here has brands in a column. Those of fashion10k stand at the start of its titles, so they are taken from there: the words
that begin at least ten titles. They are given to training as values without a place. Titles of rarer brands teach no brand.

python benchmarks/brands.py
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.evaluation.tagging import pairs, value_f1
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.taxonomy import SEPARATOR
from cataloger.training.job import train
from quality import REAL
from yardsticks import report, workroom

SCORES = Path(__file__).parent / "results" / "brands_scores.json"
CATEGORY, BRAND, BOTH = "category alone", "brand alone", "category and brand"
LABELS = {CATEGORY: ("category_path",), BRAND: ("tags",), BOTH: ("category_path", "tags")}
# Titles that begin alike to be a brand's, and the share of them that must go on alike for the next word to belong to it.
LEAST_TITLES, GOES_ON = 10, 0.8
WHOM = {"men", "mens", "women", "womens", "boys", "girls", "kids", "unisex", "men's", "women's", "boy's", "girl's"}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Those with figures in results/brands_scores.json are not trained again."""
    validate: bool = False
    """Score another fifth, which the final figures do not see; nothing is kept."""
    epochs: int | None = None


def main() -> None:
    config = tyro.cli(Config)
    scores = json.loads(SCORES.read_text()) if SCORES.exists() and not config.validate else {}
    with workroom() as room:
        learnt, scored = split(with_brands(pq.read_table(REAL / "fashion10k.parquet")), config.validate)
        pq.write_table(learnt, room / "learnt.parquet")
        for seed in config.seeds:
            for what in LABELS:
                if (name := f"{what}, seed {seed}") not in scores:
                    scores[name] = measure(what, seed, config, room, scored)
                    if not config.validate:
                        SCORES.write_text(json.dumps(scores, indent=1))
                    print(name, scores[name], flush=True)
    if not config.validate:
        report("brands", "A category and a brand", [{"model": name, **found} for name, found in scores.items()])


def measure(what: str, seed: int, config: Config, room: Path, scored: pa.Table) -> dict[str, float]:
    """Accuracy of the network's categories (its words left aside, as a model of several answers has none), and value F1 of brands."""
    uri = train(
        TrainConfig(
            catalog=str(room / "learnt.parquet"),
            text_columns=("title",),
            max_tokens=32,
            label_column=LABELS[what],
            seed=seed,
            epochs=config.epochs,
            storage=str(room / "checkpoints"),
            model_name=what.replace(" ", "-"),
        )
    ).model_uri
    folder = fetch_model(uri).folder
    labels = Tiers(folder, spec=replace(read_spec(folder), words=None), precision="auto").label(
        scored.select(["title"])
    )
    found = {}
    if "category" in labels.column_names:
        right = np.array(labels.column("category").to_pylist()) == np.array(scored.column("category_path").to_pylist())
        found["category, accuracy"] = float(right.mean())
    if "tags" in labels.column_names:
        given = [
            [(f"{tag['name']}{SEPARATOR}{tag['value']}", tag["confidence"]) for tag in row or ()]
            for row in labels.column("tags").to_pylist()
        ]
        true = [
            [f"{tag['name']}{SEPARATOR}{tag['value']}" for tag in row or ()]
            for row in scored.column("tags").to_pylist()
        ]
        told = [None if row is None else ["brand"] for row in scored.column("tags").to_pylist()]
        kept = [number for number, names in enumerate(told) if names]
        found["brand, value F1"] = value_f1(
            pairs([true[n] for n in kept], [given[n] for n in kept], [told[n] for n in kept])
        )
    return found


def with_brands(rows: pa.Table) -> pa.Table:
    """With a column `tags`: the brand as a value, null where it is too rare to be known."""
    words = [title.split() for title in rows.column("title").to_pylist()]
    counts = Counter(tuple(title[:length]) for title in words for length in range(1, min(5, len(title)) + 1))
    tags = []
    for title in words:
        length = 1
        while (
            length < min(5, len(title))
            and title[length].lower() not in WHOM
            and counts[tuple(title[: length + 1])] >= GOES_ON * counts[tuple(title[:length])]
        ):
            length += 1
        known = counts[tuple(title[:length])] >= LEAST_TITLES
        tags.append([{"name": "brand", "value": " ".join(title[:length])}] if known else None)
    kind = pa.list_(pa.struct({"name": pa.string(), "value": pa.string()}))
    return rows.append_column("tags", pa.array(tags, kind))


def split(rows: pa.Table, validate: bool) -> tuple[pa.Table, pa.Table]:
    """(rows to learn from, rows to score), by distinct titles: a fifth is scored, another is left out of both where one validates."""
    titles, place = np.unique(np.array(rows.column("title").to_pylist()), return_inverse=True)
    part = np.random.default_rng(7).permutation(len(titles))[place] * 5 // len(titles)
    scored = 1 if validate else 0
    return rows.filter(pa.array((part != 0) & (part != scored))), rows.filter(pa.array(part == scored))


if __name__ == "__main__":
    main()
