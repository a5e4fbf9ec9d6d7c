"""Time and memory from 10^5 to 10^7 generated rows, with a tiny model: what the pipeline itself costs; and of catalogs of pictures.

python benchmarks/scale.py
"""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from ray._common.utils import get_default_ray_temp_dir
from transformers import AutoTokenizer, BertConfig, BertModel

import images
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec
from yardsticks import report, workroom

JOB = Path(__file__).parents[1] / "jobs" / "label.py"
ROWS_PER_FILE, PICTURES_PER_FILE = 500_000, 5_000


@dataclass(frozen=True)
class Config:
    """What to measure."""

    exponents: tuple[int, ...] = (5, 6, 7)
    """Powers of ten."""
    pictures: tuple[int, ...] = (5_000, 50_000)
    """Pictures, all different, with the bundled network."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = tiny_bundle(room)
        rows = [measure(write_titles(10**exponent, room), 10**exponent, bundle) for exponent in config.exponents]
        if rows:
            report("scale", "Generated rows through a model of one narrow layer", rows, ("rows", "seconds"))
        if config.pictures:
            sees = images.make_bundle(room / "sees")
            rows = [measure(write_pictures(count, room), count, sees) for count in config.pictures]
            report("scale_pictures", "Pictures through EfficientNet-Lite0", rows)


def tiny_bundle(room: Path) -> Path:
    """One layer of 32: the forward pass is next to nothing."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**shape)).save_pretrained(room / "base")
    AutoTokenizer.from_pretrained(base_model_folder("minilm")).save_pretrained(room / "base")
    paths = [f"Department {i // 20} > Category {i}" for i in range(100)]
    spec = Spec(tuple(sorted(paths)), ("title",), 32, "mean", "none")
    save_bundle(room / "bundle", new_classifier(room / "base", spec), room / "base", spec)
    return room / "bundle"


def write_titles(rows: int, room: Path) -> Path:
    catalog = room / f"catalog-{rows}"
    catalog.mkdir()
    for start in range(0, rows, ROWS_PER_FILE):
        ids = np.arange(start, min(rows, start + ROWS_PER_FILE))
        table = pa.table({"id": ids, "title": [f"product {i} colour {i % 89} size {i % 41}" for i in ids.tolist()]})
        pq.write_table(table, catalog / f"part-{start // ROWS_PER_FILE:05d}.parquet")
    return catalog


def write_pictures(rows: int, room: Path) -> Path:
    """Those of grocerystore, or drawn ones, again and again: a number behind the end of the file makes each another one."""
    found = images.pictures(5_000, room).column("image").to_pylist()
    catalog = room / f"pictures-{rows}"
    catalog.mkdir()
    for start in range(0, rows, PICTURES_PER_FILE):
        ids = range(start, min(rows, start + PICTURES_PER_FILE))
        different = [found[row % len(found)] + row.to_bytes(4) for row in ids]
        table = pa.table({"id": pa.array(ids), "image": pa.array(different, pa.binary())})
        pq.write_table(table, catalog / f"part-{start // PICTURES_PER_FILE:05d}.parquet", row_group_size=500)
    return catalog


def measure(catalog: Path, rows: int, bundle: Path) -> dict[str, object]:
    output = catalog.with_name(f"{catalog.name}-labels")
    command = [sys.executable, str(JOB), "--catalog", str(catalog), "--output", str(output), "--model", str(bundle)]
    started = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = {"driver": 0, "worker": 0, "spilled": 0}
    watcher = threading.Thread(target=watch, args=(job.pid, peak), daemon=True)
    watcher.start()
    assert job.wait() == 0
    took = time.perf_counter() - started
    watcher.join()
    pointer = json.loads((output / "_latest.json").read_text())
    assert json.loads((output / pointer["manifest"]).read_text())["labelled"] == rows
    return {
        "rows": f"{rows:,}",
        "seconds": took,
        "µs per row": 1e6 * took / rows,
        "driver, peak MiB": float(peak["driver"] >> 10),
        "largest worker, peak MiB": float(peak["worker"] >> 10),
        "objects spilled": float(peak["spilled"]),
    }


def watch(pid: int, peak: dict[str, int]) -> None:
    """Peak memory of the driver and of its largest worker in KiB, and objects in Ray's spill folder."""
    driver, session = psutil.Process(pid), Path(get_default_ray_temp_dir()) / "session_latest"
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        try:
            peak["driver"] = max(peak["driver"], heap(pid))
            for child in driver.children(recursive=True):
                if child.name().startswith("ray::"):
                    peak["worker"] = max(peak["worker"], heap(child.pid))
        except (psutil.Error, OSError):
            pass
        peak["spilled"] = max(
            peak["spilled"], sum(file.is_file() for file in session.rglob("ray_spilled_objects*/**/*"))
        )
        time.sleep(0.5)


def heap(pid: int) -> int:
    """KiB of memory of its own: neither the object store, which all share, nor mapped files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
