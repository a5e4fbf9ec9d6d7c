"""What a large tree costs: titles labelled by MiniLM with 400, 10,000 and 100,000 categories of two levels, published and verified.

python benchmarks/categories.py
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from subprocess import DEVNULL

import pyarrow.parquet as pq
import tyro

import scale
from yardsticks import make_bundle, report, titles, workroom


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 20_000
    """Distinct titles."""
    categories: tuple[int, ...] = (400, 10_000, 100_000)
    """Leaves."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        table = titles(config.rows, room)
        catalog = room / "catalog"
        catalog.mkdir()
        pq.write_table(table, catalog / "part-0.parquet")
        rows: list[dict[str, object]] = []
        for count in config.categories:
            bundle, output = make_bundle(room / f"bundle-{count}", count), room / f"labels-{count}"
            found = scale.measure(catalog, output, bundle)
            (run,) = output.glob("run=*")
            parts = list(run.glob("part-*.parquet"))
            labels = pq.read_table(parts[0], columns=["level_confidences"])
            assert {len(levels) for levels in labels.column(0).to_pylist()} == {2}
            started = time.perf_counter()
            command = [sys.executable, str(scale.JOBS / "verify.py"), "--output", str(output)]
            subprocess.run(command, stdout=DEVNULL, check=True)
            rows.append(
                {
                    "categories": f"{count:,}",
                    "bundle, MB": sum(file.stat().st_size for file in bundle.iterdir()) / 1e6,
                    **{name: found[name] for name in ("seconds", "driver, peak MiB", "largest worker, peak MiB")},
                    "compare and commit, s": found["compare and commit, s"],
                    "bytes per label": sum(part.stat().st_size for part in parts) / config.rows,
                    "verify.py, s": time.perf_counter() - started,
                }
            )
        report("categories", f"{config.rows:,} titles, MiniLM, categories of two levels", rows)


if __name__ == "__main__":
    main()
