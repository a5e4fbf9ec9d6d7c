"""Labelling against its ceiling, the raw forward pass, and against the recipes in common use. One run, the same titles.

python benchmarks/labeling.py                 # 60,000 distinct titles; minutes on two cores
python benchmarks/labeling.py --whole         # and all 234,227 rows of scale_mix, start-up included
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import tyro
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from cataloger.infra import runtime
from yardsticks import (
    MAX_TOKENS,
    forward_rate,
    make_bundle,
    report,
    run,
    seconds,
    steady_state,
    titles,
    tokens_of,
    workroom,
)

CEILING = "raw forward pass, sorted, tokens ready"
STEADY = "cataloger, steady state"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 60_000
    """Distinct titles for this project and the ceiling."""
    slow_rows: int = 2_000
    """How many of them the slow recipes get."""
    whole: bool = False
    """Also label the catalog as it is, with its repeats."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = make_bundle(room / "bundle")
        table = titles(config.rows, room)
        few = table.slice(0, config.slow_rows)
        pq.write_table(few, room / "few.parquet")
        tokens = tokens_of(bundle, table.column("title").combine_chunks())
        rates = {CEILING: forward_rate(bundle, tokens)}
        run(bundle, room / "few.parquet", room / "labels-of-few")  # MLflow's tables are made, the page cache is warm
        rates[STEADY], took, result = steady_state(bundle, table, room)
        rates["cataloger, whole wall time"] = len(table) / took
        print(f"cataloger: {result.cost.describe(took)}")
        if config.whole:
            everything = titles(None, room)
            pq.write_table(everything, room / "everything.parquet")
            took = seconds(lambda: run(bundle, room / "everything.parquet", room / "all-labels"))
            rates[f"cataloger, whole wall time, all {len(everything):,} rows with their repeats"] = (
                len(everything) / took
            )
        # The machine may have changed its speed meanwhile.
        again = forward_rate(bundle, tokens)
        print(f"forward pass before and after: {rates[CEILING]:,.0f}, {again:,.0f} rows/s")
        rates[CEILING] = (rates[CEILING] + again) / 2
        texts = few.column("title").to_pylist()
        rates["sorted by length, fp32, batches of 32 rows"] = len(few) / seconds(lambda: sort_by_length(bundle, texts))
        rates["transformers.pipeline, its defaults"] = len(few) / seconds(lambda: run_pipeline(bundle, texts))
        rates["transformers.pipeline, batch_size=32"] = len(few) / seconds(lambda: run_pipeline(bundle, texts, 32))
        rates["Ray Data documentation recipe"] = documentation_recipe(bundle, room / "few.parquet", room / "plain")
        rows: list[dict[str, object]] = [
            {
                "way": way,
                "rows/s": rate,
                "÷ ceiling": rate / rates[CEILING],
                "cataloger ÷ this": rates[STEADY] / rate,
            }
            for way, rate in rates.items()
        ]
        report("labeling", f"Labelling {len(table):,} distinct product titles with MiniLM", rows, ("way", "rows/s"))


def sort_by_length(bundle: Path, texts: list[str]) -> None:
    """Sorted by length, a fixed number of rows per batch, fp32: what NeMo Curator's classifiers do."""
    tokenizer = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(bundle, trust_remote_code=True).eval()
    texts = sorted(texts, key=len, reverse=True)
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                texts[start : start + 32], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(1)


def run_pipeline(bundle: Path, texts: list[str], batch_size: int | None = None) -> None:
    classify = pipeline("text-classification", str(bundle), trust_remote_code=True)
    classify(texts, truncation=True, **({"batch_size": batch_size} if batch_size else {}))


class Predictor:
    """As in the Ray Data documentation on batch inference: tokenize with padding, predict, in one `map_batches`."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(2)
        self.tokenizer = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)
        self.model = AutoModelForSequenceClassification.from_pretrained(bundle, trust_remote_code=True).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        started = time.perf_counter()
        encoded = self.tokenizer(
            list(batch["title"]), padding="longest", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        labels = logits.argmax(1).numpy()
        each = (time.perf_counter() - started) / len(labels)
        return {"id": batch["id"], "label": labels, "seconds": np.full(len(labels), each)}


def documentation_recipe(bundle: Path, catalog: Path, output: Path) -> float:
    """Rows/s while its actor is at work: start-up, reading and writing are not held against it."""
    with runtime.session():
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.read_parquet(str(catalog)).map_batches(
            Predictor,
            fn_constructor_args=(str(bundle),),
            batch_size=1_024,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).write_parquet(str(output))
    spent = pq.read_table(output, columns=["seconds"]).column(0).to_numpy()
    return float(len(spent) / spent.sum())


if __name__ == "__main__":
    main()
