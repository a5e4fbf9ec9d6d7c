"""What pins and rules cost a night: the time per unit beside reading it and asking words about it, and the memory of a process.

python benchmarks/decisions.py
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.curation import pins as pinning
from cataloger.curation.conditions import Contains, OneOf
from cataloger.curation.decisions import Decisions
from cataloger.curation.pins import FILE, PinFile
from cataloger.curation.rules import Rule
from cataloger.data.ngrams import ngrams
from cataloger.data.text import compose, hash_texts
from quality import REAL
from yardsticks import report, seconds

ROUNDS = 3


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 65_536
    """Of a unit."""
    rules: int = 1_000
    pins: int = 1_000_000


def main() -> None:
    config = tyro.cli(Config)
    table = pq.read_table(REAL / "instacart.parquet", columns=["title", "category_path"])
    table = table.take(pa.array(np.arange(config.rows) % len(table)))
    words = sorted(
        {word for title in table.column("title").to_pylist() for word in title.lower().split() if len(word) > 3}
    )
    rng, paths = np.random.default_rng(0), sorted(set(table.column("category_path").to_pylist()))
    chosen = rng.choice(words, config.rules, replace=False).tolist()
    rules = tuple(
        Rule(
            f"rule {number}",
            Contains("title", word) if number % 2 else OneOf("title", (word,)),
            "category",
            (paths[number % len(paths)],),
        )
        for number, word in enumerate(chosen)
    )
    marking = Decisions(rules, None)
    rows: list[dict[str, object]] = []
    read = best(lambda: hash_texts(compose(table, ["title"], 64)))
    asked = best(lambda: ngrams(table.column("title").combine_chunks().cast(pa.large_string())))
    rows.append({"what": "compose and hash the texts of a unit", "seconds": read, "÷ n-grams": read / asked, "MiB": ""})
    rows.append({"what": "n-grams of a unit", "seconds": asked, "÷ n-grams": 1.0, "MiB": ""})
    took = best(lambda: marking.mark(table, table.column("title")))
    rows.append({"what": f"{config.rules:,} rules", "seconds": took, "÷ n-grams": took / asked, "MiB": ""})
    with tempfile.TemporaryDirectory() as folder:
        pins = pa.table(
            {
                "id": pa.array([f"P{number:010}" for number in range(config.pins)], pa.large_string()),
                "category_path": pa.array([paths[number % len(paths)] for number in range(config.pins)]),
            }
        )
        pinning._write(pins, Path(folder) / FILE)
        ids = pa.array([f"P{number:010}" for number in rng.integers(0, 10 * config.pins, config.rows).tolist()])
        before = anonymous()
        file = PinFile(Path(folder) / FILE)
        file.find(ids)
        more = anonymous() - before
        took = best(lambda: file.find(ids))
        size = (Path(folder) / FILE).stat().st_size / 2**20
        rows.append(
            {
                "what": f"{config.pins:,} pins, {size:,.0f} MiB on disk",
                "seconds": took,
                "÷ n-grams": took / asked,
                "MiB": more,
            }
        )
    report(
        "decisions",
        f"Pins and rules, a unit of {config.rows:,} products, one process; MiB beside the mapped file",
        rows,
    )


def anonymous() -> float:
    """MiB of this process that are no mapped file's."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) / 2**10


def best(work: object) -> float:
    return min(seconds(work) for _ in range(ROUNDS))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
