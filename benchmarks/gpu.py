"""BERT-base (random weights) on one GPU: the forward pass against a measured matmul, and end to end against the forward pass.

python benchmarks/gpu.py                                   # needs a GPU
python benchmarks/gpu.py --device cpu --size tiny --rows 500   # does it run?
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
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
from yardsticks import REAL, forward_rate, report, seconds, steady_state, titles, tokens_of, workroom

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


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room, runtime.session():
        bundle = make_bundle(room, SHAPES[config.size])
        matmul = matmul_rate(config.device)
        rows: list[dict[str, object]] = []
        for name, table in catalogs(config.rows, room).items():
            tokens = tokens_of(bundle, table.slice(0, 200_000).column("title").combine_chunks(), 128)
            forward = forward_rate(bundle, tokens, config.device)
            flops = forward * flops_per_row(tokens, SHAPES[config.size])
            steady, took, result = steady_state(bundle, table, room)
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
