"""How long models take for a text, timed in turns in one process: figures of separate runs differ by what else a machine does."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray

from cataloger import runtime
from cataloger.batching import Tokens
from cataloger.bundle import digest, load_tokenizer, read_spec, tokenize
from cataloger.predictions import Predictions
from cataloger.registry import ModelSource
from cataloger.runtime import ActorShape
from cataloger.stream import Model

TEXTS = 512
ROUNDS = 5


def seconds_per_text(sources: Sequence[ModelSource], said: Sequence[Predictions], *, use_gpu: bool) -> list[float]:
    """Of each model the fastest of five rounds on about 512 of its evaluated texts. Needs a running Ray."""
    models = [Model(read_spec(one.folder), digest(one.folder), [runtime.share_folder(one.folder)]) for one in sources]
    texts = []
    for one in said:
        places = np.unique(np.linspace(0, len(one.table) - 1, TEXTS).astype(int))
        texts.append(one.table.column("text").take(pa.array(places)).combine_chunks())
    shape = runtime.labelling_shape(use_gpu)
    task = ray.remote(_race).options(num_cpus=shape.cpus, num_gpus=shape.gpus)
    with runtime.errors_of_tasks():
        found: list[float] = ray.get(task.remote(models, texts, shape))
    return found


def _race(models: list[Model], texts: list[pa.Array], shape: ActorShape) -> list[float]:
    import torch

    from cataloger.model import Bundle

    torch.set_num_threads(shape.threads)
    bundles = [Bundle(model.folder(), shape.device, "auto") for model in models]
    tokens = [
        Tokens.from_arrow(tokenize(load_tokenizer(model.folder(), model.spec.max_tokens), own))
        for model, own in zip(models, texts, strict=True)
    ]
    best = [float("inf")] * len(models)
    for number in range(ROUNDS + 1):
        for place, (bundle, own) in enumerate(zip(bundles, tokens, strict=True)):
            started = time.perf_counter()
            bundle.predict(own)
            if number:  # the first round is for kernels that are made when they are needed
                best[place] = min(best[place], (time.perf_counter() - started) / len(own))
    return best
