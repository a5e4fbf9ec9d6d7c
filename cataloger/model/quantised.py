"""A network in whole numbers of eight bits: OpenVINO's form of it, quantised by nncf, beside the weights of a bundle.

It is a form for CPUs: where there is none, or no OpenVINO, the bundle's network answers as ever.
"""

import contextlib
import importlib.util
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cataloger.bundle import INT8
from cataloger.data.batching import Batch
from cataloger.model.engines import NETWORK, convert, example_of, openvino_module

# What is left in floating point, step by step, where whole numbers change too many answers: nothing; what brings a layer's widest
# vectors back to its width, whose few large values cost all others their precision; attention as well. (To leave the last layer, alone
# or with the first of these, helped less.)
WIDE, ATTENTION = r"output\.dense|ffn\.lin2|wo/", r"query|key|value|[qkv]_lin|attn"
ATTEMPTS = ("", WIDE, f"{WIDE}|{ATTENTION}")


def missing_package() -> str | None:
    """That it takes, and that is not installed."""
    return next((name for name in ("openvino", "nncf") if importlib.util.find_spec(name) is None), None)


def quantise(folder: Path, batches: Sequence[Batch], kept: str = "") -> list[str]:
    """Put the network of a bundle into it in eight bits as well, its ranges by these batches.

    (names of the linear maps that stay in floating point: those that `kept`, one of ATTEMPTS, finds)
    """
    openvino = openvino_module()
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as aside:
        convert(folder, Path(aside, NETWORK))
        network = openvino.Core().read_model(str(Path(aside, NETWORK)))
        names = [node.get_friendly_name() for node in network.get_ops() if node.get_type_name() == "MatMul"]
        left = [name for name in names if kept and re.search(kept, name)]
        arguments = list(example_of(folder))
        given = nncf.Dataset([[batch[name] for name in arguments] for batch in batches], _arrays)
        # It shows bars of its own, which say nothing of how long the job takes.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = nncf.quantize(
                network,
                given,
                # Symmetric: products of whole numbers need no correction by their offsets then.
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            )
        openvino.save_model(found, str(folder / INT8), compress_to_fp16=False)
    return left


def _arrays(batch: list[Any]) -> list[Any]:
    return [array.astype("int64") if array.dtype == bool else array for array in batch]
