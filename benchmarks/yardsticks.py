"""What the benchmarks share: real titles, a model of full size, the raw forward pass, and tables with a picture."""

import json
import logging
import os
import platform
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from cataloger.config import LabelConfig, Precision, SampleConfig
from cataloger.data.batching import Batch, Tokens, pack
from cataloger.data.sample import generate
from cataloger.data.texts import TextInput
from cataloger.labeling.job import label
from cataloger.labeling.result import LabelResult
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec

REAL = Path(__file__).parents[2] / "shared" / "data" / "scale_mix"
# As long as MiniLM can read: no title is cut, so the few long ones cost whoever pads to them what they cost in practice.
MAX_TOKENS = 512
RESULTS = Path(__file__).parent / "results"


@contextmanager
def workroom() -> Iterator[Path]:
    """A folder for as long as the benchmark runs, with the jobs' MLflow store in it; the jobs report problems only."""
    logging.getLogger("cataloger").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        yield Path(folder)


def titles(rows: int | None, room: Path) -> pa.Table:
    """`rows` distinct real titles in a seeded order, or all rows as they are; generated ones where there are no real ones."""
    if REAL.exists():
        table = pq.read_table(REAL, columns=["title"])
    else:
        generate(SampleConfig(rows=2 * (rows or 100_000), output=str(room / "sample")))
        table = pq.read_table(room / "sample", columns=["title"])
    column = table.column("title").combine_chunks().drop_null()
    if rows is not None:
        column = column.unique()
        column = column.take(pa.array(np.random.default_rng(0).permutation(len(column))[:rows]))
    return pa.table({"id": pa.array(range(len(column))), "title": column})


def make_bundle(folder: Path, categories: int = 400) -> Path:
    """MiniLM with mean pooling and a fresh head: a label costs the same whether it is right or wrong."""
    paths = [f"Department {i // 20} > Category {i}" for i in range(categories)]
    base = base_model_folder("minilm")
    spec = Spec(tuple(sorted(paths)), ("title",), MAX_TOKENS, "mean", "none")
    torch.manual_seed(0)
    model = new_classifier(base, spec)
    # A wide head, so that the labels differ.
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    save_bundle(folder, model, base, spec)
    return folder


def tokens_of(folder: Path, texts: pa.Array, max_tokens: int = MAX_TOKENS) -> Tokens:
    return TextInput(folder, (), max_tokens).encode(texts)


def forward_rate(folder: Path, tokens: Tokens, device: str = "cpu", precision: Precision = "auto") -> float:
    """Rows/s of the forward pass alone: batches are sorted and padded, and the device is warm before the clock starts."""
    predictor = Predictor(folder, device, precision)
    batches = pack(tokens.lengths, predictor.token_budget, predictor.row_budget)
    ready = [tokens.batch(rows) for rows in batches]

    def forward(chosen: list[Batch]) -> None:
        with ThreadPoolExecutor(predictor.engine.streams) as pool:
            deque(pool.map(predictor.engine, chosen), maxlen=0)
        if device == "cuda":
            torch.cuda.synchronize()

    # A GPU that has not seen a shape yet is slower with it, whoever asks: the yardstick is what it can do.
    forward(ready if device == "cuda" else ready[:: max(1, len(ready) // 8)])
    return len(tokens) / seconds(lambda: forward(ready))


def run(bundle: Path, catalog: Path, output: Path) -> LabelResult:
    """The labelling job as a user runs it, Ray's start-up included."""
    return label(LabelConfig(catalog=str(catalog), output=str(output), model=(str(bundle),), text_columns=("title",)))


def steady_state(bundle: Path, table: pa.Table, room: Path) -> tuple[float, float, LabelResult]:
    """(rows/s that the second half of the rows took, seconds of the whole job, its result).

    One job with half of the rows, one with all: start-up and end are in both and cancel.
    """
    took, results = [], []
    for rows in (len(table) // 2, len(table)):
        pq.write_table(table.slice(0, rows), room / f"{rows}.parquet")
        output = Path(tempfile.mkdtemp(dir=room))
        took.append(
            seconds(lambda rows=rows, output=output: results.append(run(bundle, room / f"{rows}.parquet", output)))
        )  # type: ignore[misc]
    return (len(table) - len(table) // 2) / (took[1] - took[0]), took[1], results[1]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def machine() -> str:
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{torch.get_num_threads()} threads on {model}{gpu}"


def report(name: str, title: str, rows: list[dict[str, object]], bars: tuple[str, str] | None = None) -> None:
    """A table on the terminal, the same as JSON, and with `bars` = (label, value) a picture, in benchmarks/results."""
    table = Table(title=f"{title}\n{machine()}")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*map(_shown, row.values()))
    Console(width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "title": title, "rows": rows}, indent=1))
    if bars:
        label, value = bars
        figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2), layout="constrained")
        drawn = axes.barh([str(row[label]) for row in rows], [float(str(row[value])) for row in rows], color="#0072B2")
        axes.bar_label(drawn, [_shown(row[value]) for row in rows], padding=4)
        axes.invert_yaxis()
        axes.set_xlabel(value)
        figure.suptitle(title, fontsize=10)  # over the whole width: the labels may take half of it
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(RESULTS / f"{name}.png", dpi=120)


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
