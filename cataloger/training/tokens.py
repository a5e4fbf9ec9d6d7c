"""Which tokens a catalog's texts are made of, and base models with so many that a training takes those along that it needs."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from cataloger.bundle import network_shape
from cataloger.config import TrainConfig
from cataloger.data.catalog import Catalog
from cataloger.data.inputs import Input
from cataloger.data.reading import read_units
from cataloger.data.units import Read, plan_reads, plan_units
from cataloger.data.windows import Windows
from cataloger.infra import runtime, spread
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.pretrained import base_model_folder
from cataloger.training.rows import training_input

log = logging.getLogger(__name__)
# Of a larger vocabulary, of many languages, most is never read, and would be two thirds of what every step moves.
MOST_TOKENS = 65_536


def used_tokens(
    catalog: Catalog, text_columns: Sequence[str], reader: Callable[[], Input], vocabulary: int
) -> npt.NDArray[np.bool_]:
    """[vocabulary] which tokens there are in any of the texts, as `reader` makes what reads these columns. Needs a running Ray."""
    reads = plan_reads(plan_units(catalog))
    count = functools.partial(
        _used,
        filesystem=catalog.location.filesystem,
        schema=pa.schema([catalog.schema.field(name) for name in text_columns]),
        reader=reader,
        vocabulary=vocabulary,
    )
    rows = ray.data.from_items([read.as_dict() for read in reads], override_num_blocks=len(reads))
    rows.context.enable_progress_bars = False
    found = np.zeros(vocabulary, bool)
    with spread.errors_of_tasks():
        for row in rows.map(count, num_cpus=runtime.TASK_CPUS).iter_rows():
            found |= np.unpackbits(np.frombuffer(row["used"], np.uint8), count=vocabulary).astype(bool)
    return found


def _used(
    row: dict[str, Any], filesystem: Any, schema: pa.Schema, reader: Callable[[], Input], vocabulary: int
) -> dict[str, bytes]:
    given, found = reader(), np.zeros(vocabulary, bool)
    for _, table in read_units(filesystem, Read.from_dict(row).units, schema):
        encoded = given.encode(given.distinct(given.read(table).values).values)
        found[(encoded.tokens if isinstance(encoded, Windows) else encoded).flat] = True
    return {"used": np.packbits(found).tobytes()}


def smaller_base(config: TrainConfig, catalogs: Sequence[Catalog], place: Location, tags: bool = False) -> str:
    """The base model to train from: the one that is named, or what `place` has of it, made of the tokens of these catalogs."""
    folder = base_model_folder(config.base_model)
    _, vocabulary = network_shape(folder)
    if vocabulary <= MOST_TOKENS:
        return config.base_model
    # Imported here: the driver needs torch for this alone.
    from cataloger.model.vocabulary import can_be_cut, cut_base_model

    if not can_be_cut(folder):
        return config.base_model
    if not (place / "config.json").exists():
        reader = functools.partial(training_input, replace(config, image_column=None), "", tags)
        used = np.any([used_tokens(one, config.text_columns, reader, vocabulary) for one in catalogs], axis=0)
        with working_folder("smaller") as aside:
            cut = cut_base_model(folder, aside / "base", used)
            place.write_folder(aside / "base", last="config.json")
        log.info("%s of the %s tokens of %s are of use here", f"{cut.after:,}", f"{cut.before:,}", config.base_model)
    return place.path if place.is_local else place.uri
