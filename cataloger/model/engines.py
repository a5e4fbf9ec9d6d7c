"""Ways to run a bundle's network, behind one seam: the arguments of a network in, logits out.

PyTorch on GPUs, OpenVINO on CPUs where it is installed (`pip install 'cataloger[openvino]'`), in eight bits where the bundle has
such a network (`quantised`): benchmarks/engines.py and compress.py have the figures. OpenVINO's form of a network is made once per node and kept there; starting from it needs no transformers.
"""

import importlib.util
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cataloger.bundle import INT8, MEMBERS, digest, read_spec
from cataloger.config import Precision
from cataloger.data.batching import Batch
from cataloger.errors import ConfigError
from cataloger.infra import deciding
from cataloger.infra.node_cache import once_per_node
from cataloger.spec import MANY_CATEGORIES

NETWORK = "network.xml"
TEXT = ("input_ids", "attention_mask")


class Engine(Protocol):
    """A network on a device. It computes in the threads that PyTorch has when it is made."""

    name: str
    # Padded tokens per forward pass: enough to keep the chip busy, small enough for its caches (CPU) or memory (GPU).
    token_budget: int
    # How many batches to give it at once, each from a thread of its own.
    streams: int
    # Whether it computes in threads of its own, and not in PyTorch's.
    owns_threads: bool

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits, float32 [rows, categories] on the device.

        Raises RuntimeError or ValueError where it cannot answer: the row that it cannot answer is then looked for.
        """
        ...


def load_engine(folder: Path, device: str, precision: Precision, live: bool = False) -> Engine:
    """The fastest engine there is for a bundle on this device. Raises ConfigError, ModelError.

    A night has large batches, of thousands of shapes; `live` ones are small, and are padded to a few shapes.
    """
    # oneDNN, in PyTorch and OpenVINO alike, keeps the kernels of 1,024 batch shapes, megabytes each, if it is not told before
    # its first one.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if (folder / MEMBERS).exists():
        return Ensemble(folder, device, precision, live)
    there = (folder / INT8).exists()
    if precision == "int8" and not there:
        raise ConfigError("--precision int8: the model has no network in eight bits; make one with jobs/compress.py")
    on_cpu = device == "cpu" and importlib.util.find_spec("openvino") is not None
    if precision == "int8" and not on_cpu:
        raise ConfigError("--precision int8: needs a CPU and the package openvino; leave the flag out")
    int8 = there and on_cpu and precision in ("auto", "int8")
    dtype = resolve_dtype("auto" if int8 else precision, device)
    if on_cpu:
        return OpenVino(folder, dtype, int8, live)
    return Torch(folder, device, dtype)


def without_plans() -> None:
    """For a process that gives PyTorch batches of many shapes on a GPU, before its first one.

    cuDNN's attention makes a plan for each new shape, which takes longer than the batch: most batches have a shape of their own.
    PyTorch's other kernels for attention are as fast and need none.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_bf16(device: str) -> bool:
    """Whether bf16 is fast on this chip, not merely possible."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_dtype(precision: Precision, device: str) -> torch.dtype:
    """Raises ConfigError for bf16 on a GPU that has none."""
    if precision == "bf16" and device == "cuda" and not has_bf16(device):
        raise ConfigError("--precision bf16: this GPU has no bf16; use fp32 or auto")
    use_bf16 = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.bfloat16 if use_bf16 else torch.float32


class Torch:
    """PyTorch, eager."""

    streams, owns_threads = 1, False

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        from cataloger.model.network import load_network

        if device == "cuda":
            without_plans()
        self.name = f"PyTorch {str(dtype).removeprefix('torch.')}"
        self.token_budget = 131_072 if device == "cuda" else 4_096
        self.device = device
        self.network = load_network(folder, dtype).to(device).eval()

    def __call__(self, batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            output = self.network(**{name: self._put(array) for name, array in batch.items()})
            return output.logits.float()  # type: ignore[no-any-return]

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """On the device; to a GPU from pinned memory, without waiting."""
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


class OpenVino:
    """OpenVINO on the CPU: one batch for each thread that PyTorch would use.

    Threads that share a batch wait for each other at every layer, and for whatever else the core does meanwhile.
    """

    token_budget, owns_threads = 4_096, True

    def __init__(self, folder: Path, dtype: torch.dtype, int8: bool = False, live: bool = False) -> None:
        openvino = openvino_module()
        self.arguments = list(example_of(folder))
        self.live = live and set(self.arguments) == set(TEXT)  # pictures and windows are not padded
        hint = "bf16" if dtype == torch.bfloat16 else "f32"  # of int8, for what is not quantised
        self.name = f"OpenVINO {'int8' if int8 else hint}"
        self.streams = torch.get_num_threads()
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": self.streams,
            "NUM_STREAMS": self.streams,
            "ENABLE_CPU_PINNING": False,
            "PERFORMANCE_HINT": "THROUGHPUT",
            # OpenVINO itself would keep those of 5,000; to make them anew takes no time that can be measured. With any of them kept,
            # logits are other ones by some hundredths: labels must not depend on it.
            "CPU_RUNTIME_CACHE_CAPACITY": 0,
        }
        if int8:
            file = folder / INT8
        else:
            # Made once per node; starting from it needs no transformers.
            key = f"{digest(folder)}-{deciding.digest()}"
            file = once_per_node("openvino", key, lambda aside: convert(folder, aside / NETWORK)) / NETWORK
        self.network = openvino.Core().compile_model(str(file), "CPU", settings)
        self.own = threading.local()
        # The first call makes OpenVINO's bridge to NumPy; two threads that make it at once wait for each other for ever.
        self({name: tensor.numpy() for name, tensor in example_of(folder).items()})

    def __call__(self, batch: Batch) -> torch.Tensor:
        if not hasattr(self.own, "request"):
            self.own.request = self.network.create_infer_request()
        arrays = [batch[name] for name in self.arguments]
        arrays = [array.astype(np.int64) if array.dtype == np.bool_ else array for array in arrays]
        rows = None
        if self.live:
            rows, arrays = len(arrays[0]), [padded(array) for array in arrays]
        (logits,) = self.own.request.infer(arrays, share_inputs=True).values()
        return torch.from_numpy(logits[:rows])


class Ensemble:
    """The engines of several bundles: the mean of their calibrated probabilities, as logits."""

    def __init__(self, folder: Path, device: str, precision: Precision, live: bool = False) -> None:
        members = sorted((folder / MEMBERS).glob("*"), key=lambda member: int(member.name))
        self.specs = [read_spec(member) for member in members]
        self.engines = [load_engine(member, device, precision, live) for member in members]
        self.name = " + ".join(engine.name for engine in self.engines)
        self.token_budget = min(engine.token_budget for engine in self.engines)
        self.streams = min(engine.streams for engine in self.engines)
        self.owns_threads = all(engine.owns_threads for engine in self.engines)

    def __call__(self, batch: Batch) -> torch.Tensor:
        many = self.specs[0].head == MANY_CATEGORIES
        total: torch.Tensor | None = (
            None  # one after the other: with many categories, all at once would fill the memory
        )
        for engine, spec in zip(self.engines, self.specs, strict=True):
            logits = engine(batch) / spec.temperature
            found = torch.sigmoid(logits) if many else torch.log_softmax(logits, dim=1)
            total = found if total is None else total + found if many else torch.logaddexp(total, found)
        assert total is not None
        return (total / len(self.engines)).logit(eps=1e-7) if many else total


def padded(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[rows, tokens] with a few more of both: rows like the last one, tokens that are masked."""
    rows, tokens = array.shape
    step = 1 if rows <= 8 else 8 if rows <= 64 else 32
    more = -rows % step, -tokens % (8 if tokens <= 64 else 32)
    return np.pad(np.pad(array, ((0, more[0]), (0, 0)), mode="edge"), ((0, 0), (0, more[1])))


def convert(folder: Path, target: Path) -> None:
    """Write OpenVINO's form of a bundle's network, in float32."""
    from cataloger.model.network import load_network, quiet_transformers

    example = example_of(folder)

    class Logits(torch.nn.Module):
        """Tensors in, one out."""

        def __init__(self) -> None:
            super().__init__()
            self.network = load_network(folder, torch.float32).eval()

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.network(**dict(zip(example, tensors, strict=True))).logits  # type: ignore[no-any-return]

    openvino = openvino_module()
    # Rows, tokens and pictures of any number; those have one size.
    shapes = [
        openvino.PartialShape([-1, *tensor.shape[1:]] if tensor.ndim > 2 else [-1] * tensor.ndim)
        for tensor in example.values()
    ]
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")  # tracing warns of every Python condition; the tests compare the logits
        converted = openvino.convert_model(Logits(), example_input=tuple(example.values()), input=shapes)
    openvino.save_model(converted, str(target), compress_to_fp16=False)


def example_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the network takes: different numbers of rows, tokens and pictures, some masked, so that nothing becomes a constant."""
    spec, example = read_spec(folder), {}
    if spec.text_columns:
        example["input_ids"] = torch.ones(2, 8, dtype=torch.int64)
        example["attention_mask"] = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    if spec.tags:
        example["word_index"] = torch.tensor([[0, 1, -1], [8, 9, 10], [0, 2, 3]])
    if spec.picture:
        size = spec.picture.size
        example["pixel_values"] = torch.zeros(3, 3, size, size, dtype=torch.uint8)
        example["image_index"] = torch.tensor([3, 0])
    return example


def openvino_module() -> Any:
    # OpenVINO's converter would report its use to its makers; a shop's nightly job does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
