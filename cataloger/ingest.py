"""Labelled catalogs → tokens, labels and sides of the split, computed once with Ray Data."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cataloger import runtime
from cataloger.bundle import base_model_folder, load_tokenizer, tokenize
from cataloger.catalog import Catalog
from cataloger.config import TrainConfig
from cataloger.text import compose, split_position
from cataloger.units import Unit, plan_units, read_unit


@dataclass(frozen=True)
class Source:
    """One catalog of the ingest and the label id of each category path as written in it."""

    catalog: Catalog
    label_ids: dict[str, int]
    validation_only: bool


def ingest(sources: Sequence[Source], config: TrainConfig) -> list[Any]:
    """Tables of tokens, label and side of every usable row, in catalog order, as references into Ray's object store.

    The workers read them there directly: Ray Train's dataset shards would need CPUs of their own while training, and
    hang where the workers hold all of them.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    datasets = []
    for source in sources:
        units = plan_units(source.catalog)
        validation = 1.0 if source.validation_only else (0.0 if config.eval_catalog else config.validation_fraction)
        encode = functools.partial(
            _encode_unit,
            filesystem=source.catalog.location.filesystem,
            schema=source.catalog.schema,
            label_ids=source.label_ids,
            config=config,
            test_fraction=0.0 if source.validation_only else config.test_fraction,
            validation_fraction=validation,
        )
        rows = ray.data.from_items([unit.as_dict() for unit in units], override_num_blocks=len(units))
        datasets.append(rows.map_batches(encode, batch_size=1, batch_format="pyarrow"))
    joined = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
    with runtime.errors_of_tasks():
        return list(joined.to_arrow_refs())


def _encode_unit(
    batch: pa.Table,
    filesystem: Any,
    schema: pa.Schema,
    label_ids: dict[str, int],
    config: TrainConfig,
    test_fraction: float,
    validation_fraction: float,
) -> pa.Table:
    unit = Unit.from_dict(batch.to_pylist()[0])
    table = read_unit(filesystem, unit, schema)
    labels = [label_ids.get(path) for path in table.column(config.label_column).to_pylist()]
    texts = compose(table, config.text_columns, config.max_tokens)
    position = split_position(texts)
    usable = pc.and_(pa.array([label is not None for label in labels]), texts.is_valid())
    usable = pc.and_(usable, pa.array(position >= test_fraction))
    held_out = position < test_fraction + validation_fraction * (1 - test_fraction)
    tokens = tokenize(_tokenizer(config.base_model, config.max_tokens), texts.filter(usable))
    label_array = pa.array([-1 if label is None else label for label in labels], pa.int32()).filter(usable)
    return pa.table({"tokens": tokens, "label": label_array, "validation": pa.array(held_out).filter(usable)})


@functools.cache
def _tokenizer(base_model: str, max_tokens: int) -> Any:
    return load_tokenizer(base_model_folder(base_model), max_tokens)
