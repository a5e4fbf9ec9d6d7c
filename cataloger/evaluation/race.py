"""How long models take for a text, timed in turns in one process: figures of separate runs differ by what else a machine does."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray

from cataloger.bundle import Spec, digest, load_tokenizer, read_spec, tokenize
from cataloger.data.batching import Tokens
from cataloger.data.catalog import open_catalog
from cataloger.data.text import compose
from cataloger.data.units import plan_units, read_units
from cataloger.evaluation.predictions import About
from cataloger.infra import runtime
from cataloger.infra.runtime import ActorShape
from cataloger.labeling.stream import Model
from cataloger.model.registry import ModelSource

TEXTS = 512
ROUNDS = 5


def seconds_per_text(
    sources: Sequence[ModelSource], about: About, text_columns: tuple[str, ...] | None, *, use_gpu: bool
) -> list[float]:
    """Of each model the fastest of five rounds on about 512 rows of the catalog it was evaluated on, the same for all.

    Each reads the `text_columns` it was trained on, where there are no others. Needs a running Ray. Raises CatalogerError.
    """
    models = [Model(read_spec(one.folder), digest(one.folder), [runtime.share_folder(one.folder)]) for one in sources]
    texts = [sampled_texts(about, model.spec, text_columns) for model in models]
    shape = runtime.labelling_shape(use_gpu)
    task = ray.remote(_race).options(num_cpus=shape.cpus, num_gpus=shape.gpus)
    with runtime.errors_of_tasks():
        found: list[float] = ray.get(task.remote(models, texts, shape))
    return found


def sampled_texts(about: About, spec: Spec, text_columns: tuple[str, ...] | None) -> pa.Array:
    """About 512 texts, spread over the first unit of the catalog; fewer where rows have none. Raises CatalogError."""
    columns = text_columns or spec.text_columns
    catalog = open_catalog(about.catalog, about.id_column, columns)
    ((_, table),) = read_units(catalog.location.filesystem, plan_units(catalog)[:1], catalog.schema)
    table = table.take(pa.array(np.unique(np.linspace(0, len(table) - 1, TEXTS).astype(int))))
    return compose(table, columns, spec.max_tokens).drop_null()


def _race(models: list[Model], texts: list[pa.Array], shape: ActorShape) -> list[float]:
    import torch

    from cataloger.model.predictor import Bundle

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
                best[place] = min(best[place], (time.perf_counter() - started) / max(1, len(own)))
    return best
