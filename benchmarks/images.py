"""How fast a catalog of pictures is labelled: the whole job against the network alone on pixels that are ready.

python benchmarks/images.py
"""

import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from cataloger.bundle import Spec
from cataloger.config import LabelConfig, SampleConfig
from cataloger.data.batching import pack
from cataloger.data.images import decode
from cataloger.data.inputs import input_of
from cataloger.data.sample import generate
from cataloger.labeling.job import label
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.sight import EMBEDDED, sight_of
from yardsticks import report, seconds, workroom

REAL = Path(__file__).parents[2] / "shared" / "data" / "grocerystore.parquet"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 5_000
    """Pictures: of grocerystore, or drawn ones where it is not there."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        table = pictures(config.rows, room)
        bundle = make_bundle(room / "bundle")
        sample = table.slice(0, min(512, len(table)))
        forward = forward_rate(bundle, sample)
        decoding = len(sample) / seconds(lambda: decode_all(sample))
        took, results = [], []
        # The first job of all is for what is made once: it does not count.
        for rows in (64, len(table) // 2, len(table)):
            catalog, output = room / f"{rows}.parquet", tempfile.mkdtemp(dir=room)
            pq.write_table(table.slice(0, rows), catalog, row_group_size=1_000)
            about = LabelConfig(catalog=str(catalog), output=output, model=str(bundle), max_reject_fraction=1)
            took.append(seconds(lambda about=about: results.append(label(about))))  # type: ignore[misc]
        steady = (len(table) - len(table) // 2) / (took[2] - took[1])
    found = {
        "pictures": len(table),
        "decoded/s, one core": round(decoding),
        "forward pass alone, pictures/s": round(forward, 1),
        "labelled/s, steady": round(steady, 1),
        "of the forward pass": round(steady / forward, 3),
        "whole job, s": round(took[2], 1),
    }
    report("images", "Labelling pictures with EfficientNet-Lite0", [found])


def pictures(rows: int, room: Path) -> pa.Table:
    """Different ones, in a seeded order."""
    if REAL.exists():
        table = pq.read_table(REAL, columns=["image"])
    else:
        generate(SampleConfig(rows=rows, output=str(room / "sample"), images=True))
        table = pq.read_table(room / "sample", columns=["image"])
    column = table.column("image").combine_chunks().drop_null().unique()
    column = column.take(pa.array(np.random.default_rng(0).permutation(len(column))[:rows]))
    return pa.table({"id": pa.array(range(len(column))), "image": column})


def make_bundle(folder: Path) -> Path:
    """The bundled network with a fresh head for 81 categories."""
    sight = sight_of(EMBEDDED)
    spec = Spec(tuple(f"Shelf {n}" for n in range(81)), (), 64, "mean", "none", picture=sight.picture("image"))
    torch.manual_seed(0)
    save_bundle(folder, new_classifier(Path(), spec, sight), Path(), spec)
    return folder


def forward_rate(bundle: Path, table: pa.Table) -> float:
    """Pictures/s of the engine, whose batches are ready before the clock starts."""
    predictor = Predictor(bundle, "cpu", "auto")
    given = input_of(predictor.spec, bundle)
    encoded = given.encode(given.read(table).values)
    ready = [encoded.batch(rows) for rows in pack(encoded.costs, predictor.token_budget, predictor.row_budget)]

    def forward() -> None:
        with ThreadPoolExecutor(predictor.engine.streams) as pool:
            deque(pool.map(predictor.engine, ready), maxlen=0)

    forward()
    return len(encoded) / min(seconds(forward) for _ in range(3))


def decode_all(table: pa.Table) -> None:
    picture = sight_of(EMBEDDED).picture("image")
    for data in table.column("image").to_pylist():
        decode(data, picture)


if __name__ == "__main__":
    main()
