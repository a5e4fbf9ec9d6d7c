"""Time and memory from 10^6 to 10^8 generated rows, with a tiny model: what the pipeline itself costs; and of catalogs of pictures.

python benchmarks/scale.py
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import tyro
from transformers import AutoTokenizer, BertConfig, BertModel

import images
import memory
from cataloger.bundle import read_spec
from cataloger.infra.storage import locate
from cataloger.labeling import reuse
from cataloger.labeling.reuse import Published
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec
from yardsticks import report, seconds, workroom

JOBS = Path(__file__).parents[1] / "jobs"
ROWS_PER_FILE, PICTURES_PER_FILE = 500_000, 5_000


@dataclass(frozen=True)
class Config:
    """What to measure."""

    exponents: tuple[int, ...] = (6, 7, 8)
    """Powers of ten."""
    pictures: tuple[int, ...] = (5_000, 50_000)
    """Pictures, all different, with the bundled network."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = tiny_bundle(room)
        rows = list[dict[str, object]]()
        for exponent in config.exponents:
            for night in nights(10**exponent, room, bundle):
                rows.append(night)
                # As they come: the largest take an hour.
                report("scale", "Generated rows through a model of one narrow layer", rows)
        if config.pictures:
            sees = images.make_bundle(room / "sees")
            rows = [
                {"pictures": f"{count:,}", **measure(write_pictures(count, room), room / f"seen-{count}", sees)}
                for count in config.pictures
            ]
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


def write_titles(rows: int, room: Path, change: Callable[[pa.Table], pa.Table] | None = None) -> Path:
    catalog = room / f"catalog-{rows}"
    catalog.mkdir()
    for start in range(0, rows, ROWS_PER_FILE):
        ids = np.arange(start, min(rows, start + ROWS_PER_FILE))
        table = pa.table({"id": ids, "title": [f"product {i} colour {i % 89} size {i % 41}" for i in ids.tolist()]})
        pq.write_table(change(table) if change else table, catalog / f"part-{start // ROWS_PER_FILE:05d}.parquet")
    return catalog


def changed(table: pa.Table) -> pa.Table:
    """Nine rows of a thousand have another title, and one is gone: so the units are cut elsewhere."""
    place = table.column("id").to_numpy() % 1_000
    titles = table.column("title").combine_chunks()
    titles = pc.if_else(pa.array(place < 9), pc.binary_join_element_wise(titles, "new", " "), titles)
    return table.set_column(1, "title", titles).filter(pa.array(place != 500))


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


def nights(rows: int, room: Path, bundle: Path) -> Iterator[dict[str, object]]:
    """A first night, and one at 1% changed, with what it takes to verify them; then what each node would do if it looked into the whole
    of the published run."""
    output = room / f"labels-{rows}"
    for name, change in (("first", None), ("1% changed", changed)):
        catalog = write_titles(rows, room, change)
        found = measure(catalog, output, bundle)
        started = time.perf_counter()
        command = [sys.executable, str(JOBS / "verify.py"), "--output", str(output)]
        with subprocess.Popen(command, stdout=DEVNULL) as job, memory.watched(job.pid) as peak:
            assert job.wait() == 0
        verified = {"verify.py, s": time.perf_counter() - started, "verify.py, peak MiB": peak.driver / 1024}
        shutil.rmtree(catalog)
        sorted_whole = (
            whole_run(output, bundle, room) if change else {"whole run sorted, s": "", "whole run sorted, GB": ""}
        )
        yield {"rows": f"{rows:,}", "night": name, **found, **verified, **sorted_whole}
    shutil.rmtree(output)


def whole_run(output: Path, bundle: Path, room: Path) -> dict[str, object]:
    """To read and sort the published run, as each node had to before sketches told where the rows of a unit are."""
    run = json.loads((output / "_latest.json").read_text())["run"]
    manifest = json.loads((output / f"run={run}" / "_manifest.json").read_text())
    folder = locate(str(output / f"run={run}"))
    published = Published(run, folder, manifest["units"], manifest["labelled"], manifest["config"]["alternatives"])
    with tempfile.TemporaryDirectory(dir=room) as aside:
        took = seconds(lambda: reuse._build(published, read_spec(bundle), Path(aside)))
        size = sum(file.stat().st_size for file in Path(aside).iterdir())
    return {"whole run sorted, s": took, "whole run sorted, GB": size / 1e9}


def measure(catalog: Path, output: Path, bundle: Path) -> dict[str, object]:
    rows = sum(pq.read_metadata(file).num_rows for file in catalog.iterdir())
    command = [sys.executable, str(JOBS / "label.py"), "--catalog", str(catalog), "--output", str(output)]
    started = time.time()
    with subprocess.Popen([*command, "--model", str(bundle)], stdout=DEVNULL) as job, memory.watched(job.pid) as peak:
        assert job.wait() == 0
    took = time.time() - started
    pointer = output / "_latest.json"
    run = output / json.loads(pointer.read_text())["path"]
    manifest = json.loads((run / "_manifest.json").read_text())
    assert manifest["rows"] == rows
    written = sorted(part.stat().st_mtime for part in run.glob("part-*.parquet"))
    return {
        "seconds": took,
        "µs per row": 1e6 * took / rows,
        "until the first part, s": written[0] - started,
        "steady state, µs per row": 1e6 * (written[-1] - written[0]) / rows * len(written) / max(1, len(written) - 1),
        "compare and commit, s": pointer.stat().st_mtime - written[-1],
        "CPU of the driver, s": peak.seconds,
        "rows through the model": float(forwarded(run)),
        "driver, peak MiB": peak.driver / 1024,
        "largest worker, peak MiB": peak.worker / 1024,
        "objects spilled": float(peak.spilled),
    }


def forwarded(run: Path) -> int:
    """Texts that the network answered, by the parts of a run."""
    footers = (pq.read_metadata(part).metadata or {} for part in run.glob("part-*.parquet"))
    return sum(json.loads(footer[b"cataloger.counts"])["forwarded"] for footer in footers)


if __name__ == "__main__":
    main()
