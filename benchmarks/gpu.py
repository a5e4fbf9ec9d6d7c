"""BERT-base (random weights) on one GPU: the forward pass against a measured matmul, end to end against the forward pass, and other ways.

python benchmarks/gpu.py                                   # needs a GPU
python benchmarks/gpu.py --device cpu --size tiny --rows 500 --peer-rows 100   # does it run?
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import tyro
from transformers import AutoTokenizer, BertConfig, BertModel

from cataloger.data.batching import Tokens
from cataloger.data.text import compose
from cataloger.infra import runtime
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import Spec
from labeling import piped, plain_loop
from yardsticks import REAL, forward_rate, report, seconds, steady_state, titles, tokens_of, workroom

BATCHES = {"cpu": (32, 128), "cuda": (128, 512, 2_048)}
SHAPES = {
    "base": BertConfig(),
    "tiny": BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    size: Literal["base", "tiny"] = "base"
    """BERT-base, or a model for trying the script."""
    rows: int = 1_000_000
    """Rows of each catalog; the real titles are repeated with a number until there are as many."""
    peer_rows: int = 50_000
    """So many of them for the other ways; 0 leaves these out."""
    libraries: str = ".venv/peers"
    """Folder with Infinity (benchmarks/peers.txt); it is left out where it is not installed."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room, runtime.session():
        bundle = make_bundle(room, SHAPES[config.size])
        matmul = matmul_rate(config.device)
        rows: list[dict[str, object]] = []
        others: list[dict[str, object]] = []
        for name, table in catalogs(config.rows, room).items():
            tokens = tokens_of(bundle, table.slice(0, 200_000).column("title").combine_chunks(), 128)
            forward = forward_rate(bundle, tokens, config.device)
            flops = forward * flops_per_row(tokens, SHAPES[config.size])
            steady, took, result = steady_state(bundle, table, room)
            texts = by_length(table.slice(0, config.peer_rows).column("title"))
            others += [
                {
                    "catalog": name,
                    "way": way,
                    "rows/s": rate,
                    "cataloger ÷ this": steady / rate,
                    "÷ forward": rate / forward,
                }
                for way, rate in (peers(bundle, texts, config) if texts else {}).items()
            ]
            print(f"{name}: {result.cost.describe(result.seconds)}", flush=True)
            rows.append(
                {
                    "catalog": name,
                    "tokens per row": float(tokens.lengths.mean()),
                    "forward rows/s": forward,
                    "forward tokens/s": forward * float(tokens.lengths.mean()),
                    "TFLOP/s": flops / 1e12,
                    "÷ matmul": flops / matmul,
                    "end to end rows/s": steady,
                    "÷ forward": steady / forward,
                    "whole job, s": took,
                }
            )
        report(f"gpu-{config.size}", f"BERT-{config.size}; bf16 matmul {matmul / 1e12:,.1f} TFLOP/s", rows)
        if others:
            report(f"gpu-{config.size}-peers", f"BERT-{config.size}, warm: other ways, each at its best", others)


def by_length(texts: pa.ChunkedArray) -> list[str]:
    """The longest first, so that batches have texts of like lengths, and the first batch takes the most memory."""
    order = np.argsort(pc.utf8_length(texts).to_numpy(), kind="stable")[::-1]
    found: list[str] = texts.take(pa.array(order)).to_pylist()
    return found


def peers(bundle: Path, texts: list[str], config: Config) -> dict[str, float]:
    """Rows/s of each way, each with its best batch."""

    def best(rate: Callable[[int], float]) -> tuple[float, int]:
        return max((rate(size), size) for size in BATCHES[config.device])

    rates = {}
    loop, size = best(lambda size: plain_loop(bundle, texts, torch.bfloat16, size, config.device))
    rates[f"sorted, batches of {size} rows (NeMo Curator's way)"] = loop
    pipe, size = best(lambda size: piped(bundle, texts, torch.bfloat16, size, config.device))
    rates[f"transformers.pipeline, sorted, batches of {size}"] = pipe
    sys.path.append(config.libraries)
    if importlib.util.find_spec("infinity_emb"):
        from learners import by_infinity, speed

        way = by_infinity(bundle, texts[::10], config.device, BATCHES[config.device])
        rates[f"Infinity, {way.settings}"] = speed(way.predict, texts)
        way.stop()
    return rates


def make_bundle(room: Path, shape: BertConfig) -> Path:
    torch.manual_seed(0)
    BertModel(shape).save_pretrained(room / "base")
    AutoTokenizer.from_pretrained(base_model_folder("minilm")).save_pretrained(room / "base")
    paths = [f"Department {i // 20} > Category {i}" for i in range(400)]
    spec = Spec(tuple(sorted(paths)), ("title",), 128, "mean", "none")
    save_bundle(room / "bundle", new_classifier(room / "base", spec), room / "base", spec)
    return room / "bundle"


def catalogs(rows: int, room: Path) -> dict[str, pa.Table]:
    """Texts of real lengths, all different."""
    sources = {"titles": titles(None, room).column("title").combine_chunks()}
    described = REAL.parent / "mwpd2020" / "train.parquet"
    if described.exists():
        table = pq.read_table(described, columns=["title", "description"])
        sources["titles and descriptions"] = compose(table, ("title", "description"), 128).drop_null()
    made = {}
    for name, texts in sources.items():
        some = texts.take(pa.array(np.arange(rows) % len(texts))).to_pylist()
        numbered = [f"{number} {text}" for number, text in enumerate(some)]
        made[name] = pa.table({"id": pa.array(range(rows)), "title": numbered})
    return made


def flops_per_row(tokens: Tokens, shape: BertConfig) -> float:
    """Multiplications and additions of the encoder, two per multiply-add, mean over the rows (Kaplan et al. 2020, table 1).

    Per layer and token: 4 projections of width² and 2 of width × inner, and 2 × length × width for scores and values.
    """
    width, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    lengths = tokens.lengths.astype(np.float64)
    per_token = 2 * (4 * width**2 + 2 * width * inner) + 2 * 2 * lengths * width
    return float((layers * lengths * per_token).mean())


def matmul_rate(device: str) -> float:
    """FLOP/s of a large bf16 matrix product: the most a model could reach."""
    side = 8_192 if device == "cuda" else 256
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()

    multiply(3)
    return 20 * 2 * side**3 / seconds(lambda: multiply(20))


if __name__ == "__main__":
    main()
