"""Labelled catalogs → tokens, labels and sides of the split, computed once with Ray Data."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cataloger import runtime, seen
from cataloger.bundle import base_model_folder, load_tokenizer, tokenize
from cataloger.catalog import Catalog
from cataloger.config import TrainConfig
from cataloger.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.seen import Seen
from cataloger.text import compose, split_keys, split_position
from cataloger.units import Unit, plan_units, read_unit

UNUSED = -1


@dataclass(frozen=True)
class Source:
    """One catalog of the ingest, the label id of each category path as written in it, and the use of its rows.

    Of a training catalog, parts are held out for validation and test; rows without a category are unlabelled ones.
    """

    catalog: Catalog
    label_ids: dict[str, int]
    use: int


def ingest(sources: Sequence[Source], config: TrainConfig) -> list[Any]:
    """Tables of tokens, label, use and key of every usable row, in catalog order, as references into Ray's object store.

    The workers read them there directly: Ray Train's dataset shards would need CPUs of their own while training, and
    hang where the workers hold all of them.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    datasets = []
    for source in sources:
        units = plan_units(source.catalog)
        encode = functools.partial(
            _encode_unit,
            filesystem=source.catalog.location.filesystem,
            schema=source.catalog.schema,
            label_ids=source.label_ids,
            use=source.use,
            config=config,
        )
        rows = ray.data.from_items([unit.as_dict() for unit in units], override_num_blocks=len(units))
        datasets.append(rows.map_batches(encode, batch_size=1, batch_format="pyarrow"))
    joined = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
    with runtime.errors_of_tasks():
        return list(joined.to_arrow_refs())


def _encode_unit(
    batch: pa.Table, filesystem: Any, schema: pa.Schema, label_ids: dict[str, int], use: int, config: TrainConfig
) -> pa.Table:
    unit = Unit.from_dict(batch.to_pylist()[0])
    table = read_unit(filesystem, unit, schema)
    texts = compose(table, config.text_columns, config.max_tokens)
    written = [None] * len(table) if use == UNLABELLED else table.column(config.label_column).to_pylist()
    labels = [_labels(paths, label_ids) for paths in written]
    uses = _uses(split_keys(table, texts, config.group_column), np.array([bool(ids) for ids in labels]), use, config)
    usable = pc.and_(pa.array(uses != UNUSED), texts.is_valid())
    tokens = tokenize(_tokenizer(config.base_model, config.max_tokens), texts.filter(usable))
    sets = pa.array(labels, pa.list_(pa.int32())).filter(usable)
    keys = pa.array(seen.keys(table, texts, config.group_column))
    return pa.table(
        {"tokens": tokens, "labels": sets, "use": pa.array(uses).filter(usable), "key": keys.filter(usable)}
    )


def seen_rows(rows: pa.Table) -> Seen:
    """Those of the ingest's tables whose categories the training learns, or is measured by."""
    return Seen.of(rows.column("key").to_numpy()[rows.column("use").to_numpy() != UNLABELLED])


def _labels(written: str | list[str | None] | None, label_ids: dict[str, int]) -> list[int]:
    """The label ids of a row's category, or categories, as written."""
    paths = written if isinstance(written, list) else [written]
    return list(dict.fromkeys(label_ids[path] for path in paths if path in label_ids))


def _uses(keys: pa.Array, labelled: npt.NDArray[np.bool_], use: int, config: TrainConfig) -> npt.NDArray[np.int8]:
    """What each row is used for. What falls on the test or validation side is not even used without its label."""
    if use == VALIDATION:
        return np.where(labelled, VALIDATION, UNUSED).astype(np.int8)
    position = split_position(keys, config.test_start)
    validation = 0.0 if config.eval_catalog else config.validation_fraction
    uses = np.where(labelled, TRAINING, UNLABELLED if wants_unlabelled(config) else UNUSED)
    held_out = position < config.test_fraction + validation * (1 - config.test_fraction)
    uses = np.where(held_out, np.where(labelled, VALIDATION, UNUSED), uses)
    return np.where(position < config.test_fraction, UNUSED, uses).astype(np.int8)


def wants_unlabelled(config: TrainConfig) -> bool:
    """Whether rows without a category are of use."""
    return bool(config.pretrain_epochs or config.pseudo_labels)


@functools.cache
def _tokenizer(base_model: str, max_tokens: int) -> Any:
    return load_tokenizer(base_model_folder(base_model), max_tokens)
