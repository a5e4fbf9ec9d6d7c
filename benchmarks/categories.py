"""What a deep tree costs: titles labelled by MiniLM with 400, 10,000 and 100,000 categories of three levels, published and verified.

python benchmarks/categories.py
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL

import pyarrow.parquet as pq
import torch
import tyro

import scale
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec
from yardsticks import MAX_TOKENS, report, titles, workroom


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
            bundle, output = deep_tree(room / f"bundle-{count}", count), room / f"labels-{count}"
            found = scale.measure(catalog, output, bundle)
            (run,) = output.glob("run=*")
            parts = list(run.glob("part-*.parquet"))
            labels = pq.read_table(parts[0], columns=["level_confidences"])
            assert {len(levels) for levels in labels.column(0).to_pylist()} == {3}
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
        report("categories", f"{config.rows:,} titles, MiniLM, categories of three levels", rows)


def deep_tree(folder: Path, categories: int) -> Path:
    """MiniLM with a fresh head that is wide, so that the labels differ."""
    paths = [f"Department {i // 400} > Aisle {i // 20} > Category {i}" for i in range(categories)]
    base = base_model_folder("minilm")
    spec = Spec(tuple(sorted(paths)), ("title",), MAX_TOKENS, "mean", "none")
    torch.manual_seed(0)
    model = new_classifier(base, spec)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    save_bundle(folder, model, base, spec)
    return folder


if __name__ == "__main__":
    main()
