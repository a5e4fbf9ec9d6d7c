"""Labelling against its ceiling, the raw forward pass, and against the ways in common use, each also at its best. One run, the same titles.

python benchmarks/labeling.py                 # 60,000 distinct titles; minutes on two cores
python benchmarks/labeling.py --whole         # and all 234,227 rows of scale_mix, start-up included
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import tyro
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from cataloger.bundle import read_spec
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
    other_rows: int = 2_000
    """How many of them the other ways get."""
    whole: bool = False
    """Also label the catalog as it is, with its repeats."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = make_bundle(room / "bundle")
        table = titles(config.rows, room)
        few = table.slice(0, config.other_rows)
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
        by_length = few.take(pa.array(np.argsort(pc.utf8_length(few.column("title")).to_numpy(), kind="stable")[::-1]))
        pq.write_table(by_length, room / "sorted.parquet")
        best = by_length.column("title").to_pylist()
        rates["sorted by length, batches of 32 rows, fp32"] = plain_loop(bundle, best, torch.float32)
        rates["sorted by length, batches of 32 rows, bf16"] = plain_loop(bundle, best, torch.bfloat16)
        rates["transformers.pipeline, its defaults"] = piped(bundle, texts, torch.float32, None)
        rates["transformers.pipeline, batch_size=32"] = piped(bundle, texts, torch.float32, 32)
        rates["transformers.pipeline, batch_size=32, sorted, bf16"] = piped(bundle, best, torch.bfloat16, 32)
        rates["Ray Data documentation recipe"] = recipe(bundle, room / "few.parquet", room / "plain", 1_024, "float32")
        rates["the same, batches of 32, sorted, bf16"] = recipe(
            bundle, room / "sorted.parquet", room / "best", 32, "bfloat16"
        )
        each = float(tokens.lengths.mean())
        rows: list[dict[str, object]] = [
            {
                "way": way,
                "rows/s": rate,
                "tokens/s": rate * each,
                "÷ ceiling": rate / rates[CEILING],
                "cataloger ÷ this": rates[STEADY] / rate,
            }
            for way, rate in rates.items()
        ]
        report("labeling", f"Labelling {len(table):,} distinct product titles with MiniLM", rows, ("way", "rows/s"))


def rate_of(texts: list[str], answer: Callable[[list[str]], object], size: int = 32, every: int = 10) -> float:
    """Rows/s of all texts, after every tenth batch has warmed it up: loading is not held against it."""
    for start in range(0, len(texts), every * size):
        answer(texts[start : start + size])
    return len(texts) / seconds(lambda: answer(texts))


def plain_loop(bundle: Path, texts: list[str], dtype: torch.dtype, size: int = 32, device: str = "cpu") -> float:
    """A fixed number of rows per batch: with sorted texts, what NeMo Curator's classifiers do."""
    tokenizer = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(bundle, trust_remote_code=True, dtype=dtype)
    model, limit = model.to(device).eval(), read_spec(bundle).max_tokens

    def answer(texts: list[str]) -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), size):
                some = texts[start : start + size]
                batch = tokenizer(some, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)
                found.append(
                    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(1)
                )
        return torch.cat(found).cpu()  # a GPU is waited for once

    return rate_of(texts, answer, size, every_of(device))


def piped(bundle: Path, texts: list[str], dtype: torch.dtype, batch_size: int | None, device: str = "cpu") -> float:
    classify = pipeline("text-classification", str(bundle), trust_remote_code=True, dtype=dtype, device=device)
    more = {"batch_size": batch_size} if batch_size else {}
    cut = {"truncation": True, "max_length": read_spec(bundle).max_tokens}
    return rate_of(texts, lambda texts: classify(texts, **cut, **more), batch_size or 32, every_of(device))


def every_of(device: str) -> int:
    """How many batches there are for each that warms it up: a GPU is slower with each shape that it has not seen."""
    return 1 if device == "cuda" else 10


class Recipe:
    """As in the Ray Data documentation on batch inference: tokenize with padding, predict, in one `map_batches`."""

    def __init__(self, bundle: str, dtype: str) -> None:
        torch.set_num_threads(2)
        self.tokenizer = AutoTokenizer.from_pretrained(bundle, trust_remote_code=True)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            bundle, trust_remote_code=True, dtype=dtype
        ).eval()

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


def recipe(bundle: Path, catalog: Path, output: Path, batch_size: int, dtype: str) -> float:
    """Rows/s while its actor is at work: start-up, reading and writing are not held against it, nor its first batch."""
    with runtime.session():
        ray.data.DataContext.get_current().enable_progress_bars = False
        ray.data.read_parquet(str(catalog)).map_batches(
            Recipe,
            fn_constructor_args=(str(bundle), dtype),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).write_parquet(str(output))
    spent = pq.read_table(output, columns=["seconds"]).column(0).to_numpy()
    warm = spent[min(batch_size, len(spent) // 2) :]
    return float(len(warm) / warm.sum())


if __name__ == "__main__":
    main()
