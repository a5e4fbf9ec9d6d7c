"""The same sorted batches through every engine: why OpenVINO runs on CPUs, and what lost.

python benchmarks/engines.py        # ONNX Runtime as well, where onnx, onnxscript and onnxruntime are installed
"""

import importlib.util
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from cataloger.data.batching import Batch, pack
from cataloger.model import engines, quantised
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
            "PyTorch eager, int8": dynamic_int8(bundle),
        }
        if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
            ways |= {
                "ONNX Runtime, fp32": OnnxRuntime(bundle, room, False),
                "ONNX Runtime, int8": OnnxRuntime(bundle, room, True),
            }
        quantised.quantise(bundle, [tokens.batch(chosen) for chosen in pack(tokens.lengths, 1_024, len(tokens))][::4])
        ways["OpenVINO, int8"] = engines.OpenVino(bundle, torch.bfloat16, int8=True)
        rows: list[dict[str, object]] = []
        for way, engine in ways.items():
            batches = [tokens.batch(chosen) for chosen in pack(tokens.lengths, engine.token_budget, len(tokens))]
            run_all(engine, batches[::5])
            best = min(seconds(lambda engine=engine, batches=batches: run_all(engine, batches)) for _ in range(2))  # type: ignore[misc]
            first = float(str(rows[0]["rows/s"])) if rows else config.rows / best
            rows.append({"engine": way, "rows/s": config.rows / best, "÷ PyTorch fp32": config.rows / best / first})
        report("engines", f"{config.rows:,} titles, MiniLM, batches sorted and ready", rows, ("engine", "rows/s"))


def dynamic_int8(bundle: Path) -> engines.Engine:
    """Weights in whole numbers, and activations as they come."""
    engine = engines.Torch(bundle, "cpu", torch.float32)
    engine.network = torch.ao.quantization.quantize_dynamic(engine.network, {nn.Linear}, dtype=torch.qint8)
    return engine


class OnnxRuntime:
    """The bundle's network as its makers run it: fused by their optimiser, and in whole numbers by their dynamic quantisation."""

    token_budget, owns_threads, streams = 4_096, True, 1

    def __init__(self, bundle: Path, room: Path, int8: bool) -> None:
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.transformers import optimizer

        class Logits(nn.Module):
            def __init__(self, network: Any) -> None:
                super().__init__()
                self.network = network

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                return self.network(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]

        self.name = f"ONNX Runtime {'int8' if int8 else 'fp32'}"
        network = engines.Torch(bundle, "cpu", torch.float32).network
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
        file = room / f"{self.name}.onnx"
        torch.onnx.export(
            Logits(network), (), str(file), kwargs=example, dynamic_shapes=dict.fromkeys(example, sizes), dynamo=True
        )
        found = optimizer.optimize_model(str(file), "bert", num_heads=12, hidden_size=384)
        found.save_model_to_file(str(file))
        if int8:
            quantize_dynamic(str(file), str(file.with_suffix(".int8.onnx")))
            file = file.with_suffix(".int8.onnx")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])

    def __call__(self, batch: Batch) -> torch.Tensor:
        given = {name: batch[name].astype("int64") for name in ("input_ids", "attention_mask")}
        return torch.from_numpy(self.session.run(None, given)[0])


def run_all(engine: engines.Engine, batches: list[Batch]) -> None:
    with ThreadPoolExecutor(engine.streams) as pool:
        deque(pool.map(engine, batches), maxlen=0)


if __name__ == "__main__":
    main()
