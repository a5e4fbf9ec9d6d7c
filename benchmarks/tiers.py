"""Words first, the network for the rest: how many rows a night answers for one forward pass, and how well.

python benchmarks/tiers.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import read_spec
from cataloger.data.text import compose, split_hash, split_position
from cataloger.spec import FORMAT
from quality import BOTH, BY_WORDS, NETWORK, REAL, SETTINGS, apart, learn, score
from yardsticks import forward_rate, report, run, steady_state, tokens_of, workroom

# fashion10k's validation rows, of which there are 800, cannot show that tiers cost less than the default of .002.
RISK = {"fashion10k": 0.005, "instacart": 0.002}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = tuple(RISK)
    """Catalogs."""
    rows: int = 60_000
    """Titles to label."""
    seed: int = 0
    """Of the training."""
    bundle: str | None = None
    """A model of the one catalog, trained before with this risk and without the rows to score."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        rows: list[dict[str, object]] = [{"catalog": name, **measure(name, config, room)} for name in config.sets]
    report(
        "tiers", f"{config.rows:,} titles that training never saw, words altered: tiers and MiniLM's forward pass", rows
    )


def measure(name: str, config: Config, room: Path) -> dict[str, Any]:
    """Rows/s of both in one run, and the accuracy of each on the catalog's own rows that training never saw."""
    bundle = Path(config.bundle) if config.bundle else learn(name, config.seed, room, tier_risk=RISK[name])
    models, found = apart(bundle, room / name), read_spec(bundle).words
    assert found
    table = altered(name, config.rows)
    tokens = tokens_of(bundle, table.column("title").combine_chunks(), SETTINGS[name]["max_tokens"])
    pq.write_table(table.slice(0, 2_000), room / "few.parquet")
    run(bundle, room / "few.parquet", room / f"labels-of-few-{name}")  # the page cache is warm
    before = forward_rate(models[NETWORK], tokens)
    rate, took, result = steady_state(bundle, table, room)
    alone, *_ = steady_state(models[NETWORK], table, room)
    forward = (before + forward_rate(models[NETWORK], tokens)) / 2  # the machine may have changed its speed meanwhile
    accuracy = {who: score(name, folder, room).overall.accuracy for who, folder in models.items()}
    return {
        "certificate": found.certificate,
        "words alone, of the altered": result.cost.alone / max(1, result.cost.asked),
        "forward pass, rows/s": forward,
        "job, tiers": rate,
        "job, network alone": alone,
        "tiers ÷ forward pass": rate / forward,
        "whole job ÷ forward pass": len(table) / took / forward,
        "accuracy of tiers": accuracy[BOTH],
        "of both, every row": score(name, bundle, room, tiers="off").overall.accuracy,
        "of the network": accuracy[NETWORK],
        "of words": accuracy[BY_WORDS],
    }


def altered(name: str, count: int) -> pa.Table:
    """The catalog's rows that training never saw, again and again, each time with another word of a title from the same category."""
    settings = SETTINGS[name]
    table = pq.read_table(REAL / f"{name}.parquet", columns=["title", "category_path"]).drop_null()
    texts = compose(table, settings["text_columns"], settings["max_tokens"])
    held_out = split_position(split_hash(texts, FORMAT)) < settings["test_fraction"]
    table = table.filter(pa.array(held_out))
    draw, words = np.random.default_rng(0), [title.split() for title in table.column("title").to_pylist()]
    places: dict[str, list[int]] = {}
    for place, category in enumerate(table.column("category_path").to_pylist()):
        places.setdefault(category, []).append(place)
    titles = dict.fromkeys(" ".join(title) for title in words)
    while len(titles) < count:
        for mine in places.values():
            for place, other in zip(mine, draw.permutation(mine).tolist(), strict=True):
                new = list(words[place])
                if new and words[other]:
                    new[draw.integers(len(new))] = words[other][draw.integers(len(words[other]))]
                titles[" ".join(new)] = None
    chosen = pa.array(titles).take(pa.array(draw.permutation(len(titles))[:count]))
    return pa.table({"id": pa.array(range(count)), "title": chosen.filter(pc.is_valid(chosen))})


if __name__ == "__main__":
    main()
