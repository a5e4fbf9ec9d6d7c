"""The tasks at the beginning of the stream: they read units, answer what is known without the network, and encode the rest."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem

from cataloger.curation.decisions import Decisions
from cataloger.data import ids, seen
from cataloger.data.batching import IntArray
from cataloger.data.inputs import Input, input_of
from cataloger.data.reading import read_units
from cataloger.data.text import hash_words, split_hash, split_keys, split_position
from cataloger.data.units import Read, Unit
from cataloger.heads.columns import explained
from cataloger.heads.ranked import Ranked, WithRanked
from cataloger.labeling import reuse
from cataloger.labeling.cost import Cost
from cataloger.labeling.packed import Model, pack
from cataloger.model.tiers import FirstTier, Said, first_tier, unseen
from cataloger.spec import Spec

# What `Reading.kept` may name beside the columns of the catalog: a row's number in its unit, the beginning of its text, and
# what its side of the split goes by.
ROW, TEXT, KEY = "cataloger.row", "cataloger.text", "cataloger.key"
# In the order in which the answers of a unit's distinct texts are put.
CARRIED, ALONE, NETWORK = range(3)
# Of so many texts that words answer alone the network is asked about one as well, chosen by its hash.
ASKED_AGAIN = 1_000
MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Reading:
    """What the reading tasks take from a catalog: `kept` is its columns that go with a row to the end, by their name there.

    With `held_out`, only the rows that the model's training left out are read; with `every`, of products as many as
    `ids.sample_every` says. Texts that have a label in `published` are not read into tokens: that label is carried over. Nor are
    those that the model's words answer alone.
    """

    filesystem: FileSystem
    schema: pa.Schema
    kept: Mapping[str, str]
    base: str = ""
    """The folder of the catalog, which pictures may lie in."""
    held_out: bool = False
    every: int = 1
    blind: bool = False
    """As if no row had a picture; their column is not read."""
    published: reuse.Published | None = None
    asked_again: int = ASKED_AGAIN
    alternatives: int = 0
    explain: int = 0
    """So many words say why, where a label needs review."""
    decisions: Decisions | None = None
    """What people have decided, by the columns of the catalog."""


def read(row: dict[str, Any], reading: Reading, model: Model) -> Iterator[dict[str, Any]]:
    """Read and encode the units of one `Read`."""
    units = read_units(reading.filesystem, Read.from_dict(row).units, reading.schema)
    while True:
        cost = Cost()
        with cost.timed("reading"):
            found = next(units, None)
        if found is None:
            return
        yield _encode(*found, cost, reading, model)


def keys_of(unit: Unit, reading: Reading, model: Model) -> pa.Array:
    """The hashes of what the model reads of a unit's rows, each once."""
    ((_, table),) = read_units(reading.filesystem, [unit], reading.schema)
    given = input_of(model.spec, model.folder(), reading.base)
    return given.distinct(_rows(table, given, model.spec, reading)[1]).keys


def _encode(unit: Unit, table: pa.Table, cost: Cost, reading: Reading, model: Model) -> dict[str, Any]:
    """One unit's rows, the answers it need not ask for, and its other values ready for the network."""
    spec, given = model.spec, input_of(model.spec, model.folder(), reading.base)
    with cost.timed("reading"):
        table, values, reason = _rows(table, given, spec, reading)
        marks: dict[str, pa.Array] = {}
        if reading.decisions:
            marks = reading.decisions.mark(table, table.column(reading.kept["id"]))
            # What people reject costs nothing.
            refused = reading.decisions.refusals(marks)
            reason = pc.coalesce(refused, reason)
            unwanted = refused.is_valid().to_numpy(zero_copy_only=False)
            values = values.take(pa.array(np.arange(len(values)), mask=unwanted))
        distinct = given.distinct(values)
        fresh, hashes, place = distinct.values, distinct.keys, distinct.place
        # Who answers each distinct text: the published labels, words alone, or the network.
        answerer = np.full(len(fresh), NETWORK)
        known: list[pa.Table] = []
        if reading.published is not None:
            carried, found = reuse.find(reading.published, spec, hashes)
            answerer[carried] = CARRIED
            known += [found] if len(found) else []
            fresh = fresh.filter(pa.array(~carried))
    asked_again = pa.table({})
    if spec.words:
        with cost.timed("words"):
            first = first_tier(model.folder(), spec)
            said = first.ask(given.texts(fresh), reading.alternatives)
        with cost.timed("explaining"):
            own = _because(said, fresh, given, first, reading, spec)
        with cost.timed("words"):
            answerer[answerer == NETWORK] = np.where(said.alone, ALONE, NETWORK)
            known.append(unseen(own, spec))
            fresh, ranked = fresh.filter(pa.array(~said.alone)), said.ranked
            if spec.network and said.alone.any():
                # By unit as well: a text that is in all of them is asked about in a few.
                mixed = (
                    hash_words(hashes.filter(pa.array(answerer == ALONE)))[:, 0]
                    + np.array(unit.index, np.uint64) * MIXER
                )
                sampled = mixed % np.uint64(reading.asked_again) == 0
                again = distinct.values.filter(pa.array(answerer == ALONE)).filter(pa.array(sampled))
                asked_again = said.answers.filter(pa.array(sampled)).select(["label"])
                ranked = Ranked.joined([ranked, first.rank(given.texts(again))])
                fresh = pa.concat_arrays([fresh, again])
            cost.alone, cost.checked = int(said.alone.sum()), len(asked_again)
    encoded = None
    if spec.network:
        with cost.timed("tokenizing"):
            encoded = given.encode(fresh)
            keys, unreadable = given.found_out(fresh, encoded)
        asked = np.flatnonzero(answerer == NETWORK)
        # Those that are asked about again stand behind all others, and have an answer already.
        hashes = _replaced(hashes, asked, keys.slice(0, len(asked)))
        found_out = _replaced(pa.nulls(len(hashes), pa.string()), asked, unreadable.slice(0, len(asked)))
        reason = pc.coalesce(reason, found_out.take(place))
    answer_of = np.empty(len(answerer), np.int64)
    answer_of[np.argsort(answerer, kind="stable")] = np.arange(len(answerer))
    cost.rows = len(table)
    rows = pa.table({name: table.column(column) for name, column in reading.kept.items()})
    for name, column in marks.items():
        rows = rows.append_column(name, column)
    rows = rows.append_column("text_hash", hashes.take(place))
    rows = rows.append_column("place", pa.array(answer_of).take(place)).append_column("reason", reason)
    cost.carried = pc.sum(pa.array(answerer == CARRIED).take(place)).as_py() or 0
    answers = _joined(known)
    packed = {"unit": unit.index, "rows": pack(rows)}
    if encoded is None:
        return {**packed, "answers": pack(answers), "cost": json.dumps(asdict(cost))}
    packed |= {"encoded": pack((WithRanked(encoded, ranked) if spec.words else encoded).to_arrow())}
    packed |= {"known": pack(answers), "asked_again": pack(asked_again)}
    packed |= {"texts": pack(pa.table({"text": given.texts(fresh)}))} if reading.explain else {}
    return {**packed, "cost": json.dumps(asdict(cost))}


def _because(said: Said, texts: pa.Array, given: Input, first: FirstTier, reading: Reading, spec: Spec) -> pa.Table:
    """The answers of words alone, with what they rest on where they need review and that is asked for."""
    if not reading.explain:
        return said.answers
    from cataloger.explaining.occlusion import Explainer

    own = given.texts(texts.filter(pa.array(said.alone)))
    return explained(said.answers, Explainer(spec, given, first, None).because(own, said.answers, reading.explain))


def _replaced(values: pa.Array, rows: IntArray, others: pa.Array) -> pa.Array:
    """The values, of these rows the others where they are not null."""
    if others.null_count == len(others):
        return values
    mask = np.zeros(len(values), bool)
    mask[rows] = others.is_valid().to_numpy(zero_copy_only=False)
    return pc.replace_with_mask(values, pa.array(mask), others.drop_null())


def _rows(table: pa.Table, given: Input, spec: Spec, reading: Reading) -> tuple[pa.Table, pa.Array, pa.Array]:
    """(the rows that are wanted, what the model reads of each, why it cannot), with the columns that are named in `kept`."""
    table, reason = _with_ids(table, reading)
    if reading.blind and spec.picture:
        table = table.append_column(spec.picture.column, pa.nulls(len(table)))
    taken = given.read(table)
    table, values, reason = taken.table, taken.values, pc.coalesce(reason, taken.reasons)
    if ROW in reading.kept.values():
        table = table.append_column(ROW, pa.array(np.arange(len(table))))
    if TEXT in reading.kept.values():
        table = table.append_column(TEXT, given.shown(values))
    if KEY in reading.kept.values():
        own = given.identity(values)
        table = table.append_column(KEY, pa.array(seen.keys(table, own, spec.group_column, spec.format_version)))
    chosen = np.ones(len(table), bool)
    if reading.held_out:
        hashes = split_hash(split_keys(table, given.identity(values), spec.group_column), spec.format_version)
        chosen &= split_position(hashes, spec.test_start) < spec.test_fraction
    if reading.every > 1:
        chosen &= ids.hash_ids(table.column(reading.kept["id"])) % np.uint64(reading.every) == 0
    if not chosen.all():
        table, values, reason = (one.filter(pa.array(chosen)) for one in (table, values, reason))
    return table, values, reason


def _joined(answers: Sequence[pa.Table]) -> pa.Table:
    """Answers that are known, as those of the network come: none of them with an error."""
    if not answers:
        return pa.table({})
    schema = answers[-1].schema
    table = pa.concat_tables([found.select(schema.names).cast(schema) for found in answers])
    return table.append_column("error", pa.nulls(len(table), pa.string()))


def _with_ids(table: pa.Table, reading: Reading) -> tuple[pa.Table, pa.Array]:
    """(the table with every id written as valid UTF-8, why a row had to lose its own spelling of it)."""
    reason = pa.nulls(len(table), pa.string())
    if id_column := reading.kept.get("id"):
        spelt, bad = ids.written(table.column(id_column))
        if bad.any():
            table = table.set_column(table.column_names.index(id_column), id_column, spelt)
            reason = pc.if_else(pa.array(bad), ids.ID_NOT_UTF8, reason)
    return table, reason
