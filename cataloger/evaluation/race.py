"""How long models take for a text, timed in turns in one process: figures of separate runs differ by what else a machine does."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray

from cataloger.bundle import digest, read_spec
from cataloger.data.catalog import open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import plan_units
from cataloger.evaluation.predictions import About
from cataloger.infra import runtime, spread
from cataloger.infra.runtime import ActorShape
from cataloger.labeling.packed import Model
from cataloger.model.registry import ModelSource
from cataloger.model.tiers import Tiers
from cataloger.spec import Spec

TEXTS = 512
ROUNDS = 5


def seconds_per_text(
    sources: Sequence[ModelSource],
    about: About,
    text_columns: tuple[str, ...] | None,
    image_column: str | None,
    *,
    use_gpu: bool,
) -> list[float]:
    """Of each model the fastest of five rounds on about 512 rows of the catalog it was evaluated on, the same for all.

    Each reads the columns it was trained on, where there are no others. Needs a running Ray. Raises CatalogerError.
    """
    specs = [read_spec(one.folder) for one in sources]
    specs = [spec.reading(text_columns, image_column if spec.picture else None) for spec in specs]
    models = [
        Model(spec, digest(one.folder), [runtime.share_folder(one.folder)])
        for spec, one in zip(specs, sources, strict=True)
    ]
    samples = sampled_rows(about, specs)
    shape = runtime.labelling_shape(use_gpu)
    task = ray.remote(_race).options(num_cpus=shape.cpus, num_gpus=shape.gpus)
    with spread.errors_of_tasks():
        found: list[float] = ray.get(task.remote(models, samples, shape))
    return found


def sampled_rows(about: About, specs: Sequence[Spec]) -> list[tuple[pa.Table, str]]:
    """(about 512 rows, spread over the first unit of the catalog, and the same ones for every model; its folder). Raises CatalogError."""
    catalogs = [open_catalog(about.catalog, about.id_column, spec.text_columns, picture=spec.picture) for spec in specs]
    first = [plan_units(catalog)[0] for catalog in catalogs]
    # A unit of a model that sees is shorter.
    shortest = min(unit.rows for unit in first)
    rows = pa.array(np.unique(np.linspace(0, shortest - 1, TEXTS).astype(int)))
    found = []
    for catalog, unit in zip(catalogs, first, strict=True):
        ((_, table),) = read_units(catalog.location.filesystem, [unit], catalog.schema)
        found.append((table.take(rows), catalog.base))
    return found


def _race(models: list[Model], samples: list[tuple[pa.Table, str]], shape: ActorShape) -> list[float]:
    import torch

    torch.set_num_threads(shape.threads)
    racers = [
        Tiers(model.folder(), shape.device, "auto", model.spec, base)
        for model, (_, base) in zip(models, samples, strict=True)
    ]
    values = [racer.input.read(table).values.drop_null() for racer, (table, _) in zip(racers, samples, strict=True)]
    # Tokenizing is another process's work in a nightly job, and not timed.
    encoded = [racer.encode(own) for racer, own in zip(racers, values, strict=True)]
    best = [float("inf")] * len(models)
    for number in range(ROUNDS + 1):
        for place, (racer, own, rest) in enumerate(zip(racers, values, encoded, strict=True)):
            started = time.perf_counter()
            racer.answer(own, encoded=rest)
            if number:  # the first round is for kernels that are made when they are needed
                best[place] = min(best[place], (time.perf_counter() - started) / max(1, len(own)))
    return best
