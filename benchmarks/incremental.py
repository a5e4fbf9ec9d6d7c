"""What a night costs when little has changed: a full run, then the same catalog with 0%, 1% and 10% of its titles changed.

python benchmarks/incremental.py
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.labeling.result import LabelResult
from yardsticks import make_bundle, report, run, seconds, titles, workroom


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 60_000
    """Distinct titles."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle, table, results = make_bundle(room / "bundle"), titles(config.rows, room), list[LabelResult]()
        rows: list[dict[str, object]] = []
        for changed in (1.0, 0.0, 0.01, 0.1):
            chosen = np.random.default_rng(1).random(len(table)) < changed
            night = [
                f"{title} (new)" if new and rows else title
                for title, new in zip(table.column("title").to_pylist(), chosen, strict=True)
            ]
            pq.write_table(pa.table({"id": table.column("id"), "title": night}), room / "catalog.parquet")
            took = seconds(lambda: results.append(run(bundle, room / "catalog.parquet", room / "labels")))
            forwarded = results[-1].cost.forwarded
            rows.append(
                {
                    "night": f"{changed:.0%} changed" if rows else "first run",
                    "seconds, start-up included": took,
                    "÷ first run": took / float(str(rows[0]["seconds, start-up included"])) if rows else 1.0,
                    "texts through the model": forwarded,
                    "share": forwarded / len(table),
                }
            )
        report("incremental", f"Labelling {len(table):,} titles again", rows, ("night", "seconds, start-up included"))


if __name__ == "__main__":
    main()
