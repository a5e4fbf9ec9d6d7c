"""The same sorted batches through every engine: why OpenVINO runs on CPUs, and what lost.

python benchmarks/engines.py
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import tyro

from cataloger.data.batching import Batch, pack
from cataloger.model import engines
from yardsticks import make_bundle, report, seconds, titles, tokens_of, workroom


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 4_000
    """Distinct titles."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = make_bundle(room / "bundle")
        tokens = tokens_of(bundle, titles(config.rows, room).column("title").combine_chunks())
        compiled = engines.Torch(bundle, "cpu", torch.bfloat16)
        compiled.network = torch.compile(compiled.network, dynamic=True)
        ways: dict[str, engines.Engine] = {
            "PyTorch eager, fp32": engines.Torch(bundle, "cpu", torch.float32),
            "PyTorch eager, bf16": engines.Torch(bundle, "cpu", torch.bfloat16),
            "torch.compile, bf16": compiled,
            "OpenVINO, fp32": engines.OpenVino(bundle, torch.float32),
            "OpenVINO, bf16": engines.OpenVino(bundle, torch.bfloat16),
        }
        rows: list[dict[str, object]] = []
        for way, engine in ways.items():
            batches = [tokens.batch(chosen) for chosen in pack(tokens.lengths, engine.token_budget, len(tokens))]
            run_all(engine, batches[::5])
            best = min(seconds(lambda engine=engine, batches=batches: run_all(engine, batches)) for _ in range(2))  # type: ignore[misc]
            first = float(str(rows[0]["rows/s"])) if rows else config.rows / best
            rows.append({"engine": way, "rows/s": config.rows / best, "÷ PyTorch fp32": config.rows / best / first})
        report("engines", f"{config.rows:,} titles, MiniLM, batches sorted and ready", rows, ("engine", "rows/s"))


def run_all(engine: engines.Engine, batches: list[Batch]) -> None:
    with ThreadPoolExecutor(engine.streams) as pool:
        deque(pool.map(engine, batches), maxlen=0)


if __name__ == "__main__":
    main()
