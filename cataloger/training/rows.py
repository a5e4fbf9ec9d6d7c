"""Labelled catalogs → tokens, labels and sides of the split, computed once with Ray Data."""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cataloger.config import TrainConfig
from cataloger.curation.pins import SharedPins
from cataloger.data import seen
from cataloger.data.catalog import Catalog
from cataloger.data.ids import hash_ids
from cataloger.data.images import UNREACHABLE
from cataloger.data.inputs import Input
from cataloger.data.kinds import SPANS, VALUES, is_tags, label_kind
from cataloger.data.pictures import PictureInput
from cataloger.data.reading import read_units
from cataloger.data.spans import UNREAD, spans_of, taught
from cataloger.data.tagging import TagInput
from cataloger.data.text import split_hash, split_keys, split_position, undecodable
from cataloger.data.texts import TextInput
from cataloger.data.units import Read, Segment, Unit, plan_reads, plan_units
from cataloger.data.windows import Windows
from cataloger.infra import spread
from cataloger.model.pretrained import base_model_folder
from cataloger.model.sight import sight_of
from cataloger.spec import FORMAT, NO_NETWORK
from cataloger.training import lessons
from cataloger.training.corrections import Corrections, corrected
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.training.gallery import kept_for_training, with_pictures_of
from cataloger.training.judged import UNUSED, judging, without_judged

# How rows are read that are for training whatever side they would fall on, but for that of the test.
ADDED = 3
# The column that names a row which is in the ingest's tables for that alone.
NOT_UTF8 = "not_utf8"
TAGS_LEFT_OUT = "tags_left_out"
IDS = pa.list_(pa.int32())


@dataclass(frozen=True)
class Source:
    """One catalog of the ingest, the label id of each category path as written in it, and the use of its rows.

    Of a training catalog, parts are held out for validation and test; rows without a category are unlabelled ones. `others` are
    the ids of further answers, in the order of their columns.
    """

    catalog: Catalog
    label_ids: dict[str, int]
    use: int
    others: tuple[dict[str, int], ...] = ()
    taught: bool = False
    """Whether a teacher has answered its rows (`lessons`): those without a category are of use then, and all have the hash of what is
    read."""
    corrections: Corrections | None = None
    """What people said of its rows, and of further ones."""


def ingest(sources: Sequence[Source], config: TrainConfig) -> list[Any]:
    """Tables of tokens, label, use, key and text of every usable row, in catalog order, as references into Ray's object store.

    Rows whose text is not valid UTF-8 are of no use; they are there by their name, in the column `NOT_UTF8`.
    The workers read them there directly: Ray Train's dataset shards would need CPUs of their own while training, and
    hang where the workers hold all of them.
    """
    # A copy: what else this process does with Ray Data need not wait for rows in their order.
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context), spread.errors_of_tasks():
        datasets = [_dataset(source, config) for source in sources]
        joined = datasets[0].union(*datasets[1:]) if len(datasets) > 1 else datasets[0]
        blocks = list(joined.to_arrow_refs())
    # Groups that are on both sides are there because somebody put them there.
    if config.eval_catalog and not config.group_column:
        blocks = without_judged(blocks)
    corrections = sources[0].corrections
    if corrections is None or not len(corrections.rows):
        return blocks
    return [*blocks, ray.put(_further(sources[0], corrections.rows, config, blocks))]


def _further(source: Source, rows: pa.Table, config: TrainConfig, blocks: Sequence[Any]) -> pa.Table:
    """Products that people corrected and that are not in the catalog, but for those whose text is one that the training is judged by."""
    given = training_input(config, source.catalog.base, _has_tags(source.catalog.schema, config))
    unit = Unit(0, (Segment(str(config.corrections), 0, 0, len(rows)),))
    encoded = _encode(unit, rows, (source.label_ids, *source.others), ADDED, config, given)
    judged = np.concatenate([np.empty(0, np.uint64), *spread.each(blocks, judging)])
    keys = encoded.column("key").fill_null(0).to_numpy()  # of rows that are left out
    kept = encoded.filter(pa.array(~np.isin(keys, judged)))
    return with_pictures_of(encoded, kept) if config.image_column else kept


def _dataset(source: Source, config: TrainConfig) -> ray.data.Dataset:
    reads = plan_reads(plan_units(source.catalog))
    encode = functools.partial(
        _encode_units,
        filesystem=source.catalog.location.filesystem,
        schema=source.catalog.schema,
        ids_of=(source.label_ids, *source.others),
        use=source.use,
        config=config,
        base=source.catalog.base,
        taught=source.taught,
        pins=source.corrections.pins.share() if source.corrections else None,
    )
    rows = ray.data.from_items([read.as_dict() for read in reads], override_num_blocks=len(reads))
    return rows.map_batches(encode, batch_size=1, batch_format="pyarrow")


def _encode_units(
    batch: pa.Table,
    filesystem: Any,
    schema: pa.Schema,
    ids_of: Sequence[dict[str, int]],
    use: int,
    config: TrainConfig,
    base: str,
    taught: bool,
    pins: SharedPins | None,
) -> Iterator[pa.Table]:
    given = training_input(config, base, _has_tags(schema, config))
    for unit, table in read_units(filesystem, Read.from_dict(batch.to_pylist()[0]).units, schema):
        table = corrected(table, pins, config) if pins else table
        yield _encode(unit, table, ids_of, use, config, given, taught)


def _has_tags(schema: pa.Schema, config: TrainConfig) -> bool:
    return any(is_tags(schema.field(name).type) for name in config.label_column if name in schema.names)


def _encode(
    unit: Unit,
    table: pa.Table,
    ids_of: Sequence[dict[str, int]],
    use: int,
    config: TrainConfig,
    given: Input,
    taught: bool = False,
) -> pa.Table:
    texts_and_group = [*config.text_columns, *filter(None, [config.group_column])]
    bad = np.any([np.zeros(len(table), bool), *(undecodable(table.column(name)) for name in texts_and_group)], axis=0)
    names = [unit.name_of(row, table.column(config.id_column)) for row in np.flatnonzero(bad).tolist()]
    table = table.filter(pa.array(~bad))
    read = given.read(table)
    values = read.values
    answers = [_written(table, *pair, use) for pair in zip(config.label_column, ids_of, strict=False)]
    labelled = np.any([np.zeros(len(table), bool), *(answer.told for answer in answers)], axis=0)
    own = given.identity(values)
    unlabelled = UNLABELLED if taught or wants_unlabelled(config) else UNUSED
    uses = _uses(split_keys(table, own, config.group_column), labelled, use, unlabelled, config)
    if use != VALIDATION and any(-1 in ids.values() for ids in ids_of):
        # The categories are another model's: a row of none of them only judges.
        known = np.any([answer.known() for answer in answers], axis=0)
        uses = np.where((uses == TRAINING) & ~known, unlabelled, uses).astype(np.int8)
        answers = [answer.without_unknown(uses != VALIDATION) for answer in answers]
    usable = pc.and_(pa.array(uses != UNUSED), read.reasons.is_null())
    keys = pa.array(seen.keys(table, own, config.group_column))
    columns = {"use": pa.array(uses).filter(usable), "key": keys.filter(usable)}
    if config.group_balance:
        columns["group"] = pa.array(_groups(table, config.group_balance)).filter(usable)
    values = values.filter(usable)
    # Words learn from the texts themselves; what is read for the network alone goes without.
    texts = given.texts(values)
    columns["text"] = pc.if_else(pc.not_equal(columns["use"], UNLABELLED), texts, pa.scalar(None, texts.type))
    encoded = pa.table({}) if config.base_model == NO_NETWORK else kept_for_training(given, values)
    if taught:
        distinct = given.distinct(values)
        columns[lessons.HASH] = pa.array(lessons.keys(distinct.keys.take(distinct.place)))
    answers = [answer.filter(usable) for answer in answers]
    if isinstance(given, TagInput):
        columns[TAGS_LEFT_OUT] = _teach(given, values, given.from_arrow(encoded), answers)
    for number, answer in enumerate(answers):
        columns[f"labels.{number}" if number else "labels"] = answer.labels
    rows = pa.table({**{name: encoded.column(name) for name in encoded.column_names}, **columns})
    lost = 0
    if config.image_column:
        # A picture that turned out to be broken leaves nothing of a row without text.
        something = pc.or_(rows.column("picture").is_valid(), pc.not_equal(pa.chunked_array([texts]), ""))
        unreachable = pc.ends_with(read.reasons.filter(pa.array(uses != UNUSED)), UNREACHABLE)
        lost = sum(pc.sum(one).as_py() or 0 for one in (unreachable, pc.and_not(rows.column(UNREACHABLE), something)))
        rows = rows.filter(something)
    rows = rows.append_column(NOT_UTF8, pa.nulls(len(rows), pa.string()))
    # Of no use, but counted.
    left_out = [{"use": np.full(len(names), UNUSED, np.int8), NOT_UTF8: pa.array(names, pa.string())}]
    left_out += [{"use": np.full(lost, UNUSED, np.int8), UNREACHABLE: np.ones(lost, bool)}]
    more = [pa.table(columns) for columns in left_out if len(columns["use"])]
    return pa.concat_tables([rows, *more], promote_options="default") if more else rows


def _groups(table: pa.Table, column: str) -> npt.NDArray[np.uint64]:
    """[N] a number for each value; a catalog to validate on need not have the column."""
    return hash_ids(table.column(column)) if column in table.column_names else np.zeros(len(table), np.uint64)


@dataclass(frozen=True)
class _Written:
    """One answer of each row as it is written, the ids of its labels, and whether it is told at all."""

    rows: list[Any]
    ids: dict[str, int]
    kind: str
    labels: pa.Array
    told: npt.NDArray[np.bool_]

    def filter(self, chosen: pa.Array) -> "_Written":
        rows = list(itertools.compress(self.rows, chosen.to_pylist()))
        return replace(
            self, rows=rows, labels=self.labels.filter(chosen), told=self.told[chosen.to_numpy(zero_copy_only=False)]
        )

    def known(self) -> npt.NDArray[np.bool_]:
        """Whether the model has a category of each row."""
        return np.array([any(label >= 0 for label in labels) for labels in self.labels.to_pylist()], bool)

    def without_unknown(self, chosen: npt.NDArray[np.bool_]) -> "_Written":
        """The chosen rows without labels that the model does not have."""
        rows = zip(self.labels.to_pylist(), chosen.tolist(), strict=True)
        kept = [[label for label in labels if label >= 0] if here else labels for labels, here in rows]
        return replace(self, labels=pa.array(kept, IDS))


def _written(table: pa.Table, column: str, ids: dict[str, int], use: int) -> _Written:
    """A row without any tag teaches that there is none; one whose list is null teaches nothing, like one without a category."""
    if use == UNLABELLED:
        return _Written([None] * len(table), ids, "", pa.array([[]] * len(table), IDS), np.zeros(len(table), bool))
    rows, tags = table.column(column).to_pylist(), is_tags(table.schema.field(column).type)
    labels = [[] if tags else _labels(paths, ids) for paths in rows]
    told = [found is not None for found in rows] if tags else [bool(found) for found in labels]
    kind = str(label_kind(table.schema.field(column).type))
    return _Written(rows, ids, kind, pa.array(labels, IDS), np.array(told, bool))


def _teach(given: TagInput, values: pa.Array, encoded: Windows, answers: list[_Written]) -> pa.Array:
    """Put the label of each word in the answers that are tags; in the first row, how many tags were left out, by why."""
    texts, problems = given.own_texts(values), Counter[str]()
    for number, answer in enumerate(answers):
        if answer.kind in (SPANS, VALUES):
            rows = []
            for row, tags in enumerate(answer.rows):
                spans, left_out = spans_of(tags, [column[row] for column in texts], given.columns, answer.kind == SPANS)
                rows.append(spans)
                problems += left_out
            names = {name.strip(): label for name, label in answer.ids.items()}
            labels, beyond = taught(rows, encoded, names, answer.told)
            problems += Counter({UNREAD: beyond})
            answers[number] = replace(answer, labels=labels.lists())
    return pa.array([json.dumps(problems)] * bool(len(values)) + [None] * (len(values) - 1), pa.string())


def _labels(written: str | list[str | None] | None, label_ids: dict[str, int]) -> list[int]:
    """The label ids of a row's category, or categories, as written."""
    paths = written if isinstance(written, list) else [written]
    return list(dict.fromkeys(label_ids[path] for path in paths if path in label_ids))


def _uses(
    keys: pa.Array, labelled: npt.NDArray[np.bool_], use: int, unlabelled: int, config: TrainConfig
) -> npt.NDArray[np.int8]:
    """What each row is used for, those without a category as `unlabelled`. What falls on the test or validation side is not even used
    without its label."""
    if use == VALIDATION:
        return np.where(labelled, VALIDATION, UNUSED).astype(np.int8)
    position = split_position(split_hash(keys, FORMAT), config.test_start)
    if use == ADDED:
        return np.where(labelled & (position >= config.test_fraction), TRAINING, UNUSED).astype(np.int8)
    validation = 0.0 if config.eval_catalog else config.validation_fraction or 0.0
    uses = np.where(labelled, TRAINING, unlabelled)
    held_out = position < config.test_fraction + validation * (1 - config.test_fraction)
    uses = np.where(held_out, np.where(labelled, VALIDATION, UNUSED), uses)
    return np.where(position < config.test_fraction, UNUSED, uses).astype(np.int8)


def wants_unlabelled(config: TrainConfig) -> bool:
    """Whether rows without a category are of use."""
    return bool(config.pretrain_epochs or config.pseudo_labels)


@functools.cache
def training_input(config: TrainConfig, base: str = "", tags: bool = False) -> Input:
    """What a training reads of a row: what the model it makes will read, and whether that answers with tags."""
    no_tokens = config.base_model == NO_NETWORK or not config.text_columns
    folder = Path() if no_tokens else base_model_folder(config.base_model)
    if config.image_column:
        picture = sight_of(config.image_model).picture(config.image_column)
        return PictureInput(folder, config.text_columns, config.max_tokens, picture, base)
    return (TagInput if tags else TextInput)(folder, config.text_columns, config.max_tokens)
