"""The stream that labelling and evaluation share: read → encode → answer; its callers make labels of the answers.

One row of the Ray Dataset is one unit, its tables packed as Arrow IPC bytes: no stage can split or merge units, and
GPU actors get exactly one per call.
"""

import functools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from pyarrow.fs import FileSystem

from cataloger.bundle import Spec
from cataloger.config import Precision
from cataloger.data import ids, seen
from cataloger.data.batching import slots
from cataloger.data.inputs import Encoded, input_of
from cataloger.data.text import hash_words, split_hash, split_keys, split_position
from cataloger.data.units import Read, Unit, plan_reads, read_units
from cataloger.errors import ResourceError
from cataloger.heads.ranked import Ranked, WithRanked
from cataloger.infra import runtime
from cataloger.infra.node_cache import first_time
from cataloger.infra.runtime import ActorShape
from cataloger.labeling import reuse
from cataloger.labeling.cost import Cost, SharedClock
from cataloger.model.tiers import first_tier

# What `Reading.kept` may name beside the columns of the catalog: a row's number in its unit, the beginning of its text, and
# what its side of the split goes by.
ROW, TEXT, KEY = "cataloger.row", "cataloger.text", "cataloger.key"
ID_NOT_UTF8 = "the id is not valid UTF-8; the bytes that are not are spelt \\xff here"
# A few odd rows are isolated and rejected; when more of a unit fail, the fault is not theirs and the error propagates.
BAD_ROWS_PER_UNIT = 100
# In the order in which the answers of a unit's distinct texts are put.
CARRIED, ALONE, NETWORK = range(3)
# Of so many texts that words answer alone the network is asked about one as well, chosen by its hash.
ASKED_AGAIN = 1_000
MIXER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Model:
    """A bundle on its way to the cluster: `shared` is its folder in Ray's object store, known by `digest`."""

    spec: Spec
    digest: str
    shared: list[Any]  # a list, so that Ray passes the reference on instead of the bytes

    def folder(self) -> Path:
        """The bundle on this node's disk."""
        return runtime.local_copy(self.shared[0], self.digest)


@dataclass(frozen=True)
class Reading:
    """What the reading tasks take from a catalog: `kept` is its columns that go with a row to the end, by their name there.

    With `held_out`, only the rows that the model's training left out are read; with `every`, of products as many as
    `ids.sample_every` says. Texts that have a label in `published` are not read into tokens: that label is carried over. Nor are,
    with `tiers`, those that the model's words answer alone.
    """

    filesystem: FileSystem
    schema: pa.Schema
    kept: Mapping[str, str]
    text_columns: tuple[str, ...]
    held_out: bool = False
    every: int = 1
    published: reuse.Published | None = None
    tiers: bool = True
    asked_again: int = ASKED_AGAIN
    alternatives: int = 0


@dataclass(frozen=True)
class Done:
    """A unit at the end of the stream: its rows, an answer per distinct text (`place` says which is a row's), what it took."""

    unit: int
    rows: pa.Table
    answers: pa.Table
    cost: Cost

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Done":
        """From one row of `predict_units`."""
        cost = Cost(**json.loads(row["cost"]))
        return cls(int(row["unit"]), _unpack(row["rows"]), _unpack(row["answers"]), cost)


def predict_units(
    reading: Reading, model: Model, units: Sequence[Unit], shape: ActorShape, precision: Precision
) -> ray.data.Dataset:
    """The stream without its end: rows that `Done.of` reads, in any order."""
    reads = plan_reads(units)
    items = ray.data.from_items([read.as_dict() for read in reads], override_num_blocks=len(reads))
    context = items.context  # this stream's own
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = runtime.STUCK_SECONDS
    context.max_consecutive_actor_init_deaths = 2  # a node lost while its actor starts
    # A task that reads several units hands on each as soon as it has it, and no block has two.
    context.target_max_block_size = 1
    read = functools.partial(_read, reading=reading, model=model)
    rows = items.flat_map(read, num_cpus=runtime.TASK_CPUS)
    if not model.spec.network:
        return rows
    about = {"model": model, "shape": shape, "precision": precision, "alternatives": reading.alternatives}
    return rows.map_batches(
        Labeler,
        fn_constructor_kwargs=about,
        batch_size=1,
        batch_format="pyarrow",
        # Two units at once, whose batches take turns: between units the engine would wait for the next one otherwise.
        compute=ray.data.ActorPoolStrategy(
            min_size=shape.min_actors,
            max_size=shape.max_actors,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
    )


class Labeler:
    """The actor that holds the model. It sees distinct texts only: its time is the forward pass."""

    def __init__(self, model: Model, shape: ActorShape, precision: Precision, alternatives: int) -> None:
        self.alternatives = alternatives
        self.clock = SharedClock()
        self.has_answered = False
        try:
            self._load(model, shape, precision)
        except Exception:
            runtime.prepare_to_abort()
            raise

    def _load(self, model: Model, shape: ActorShape, precision: Precision) -> None:
        # Imported here: the driver and the reading tasks need no torch.
        import torch

        from cataloger.model.engines import Torch
        from cataloger.model.predictor import Predictor

        torch.set_num_threads(shape.threads)
        self.out_of_memory = torch.OutOfMemoryError
        self.predictor = Predictor(model.folder(), shape.device, precision)
        if not isinstance(self.predictor.engine, Torch):
            # What is left to PyTorch is little, and its threads, while they wait, take the cores from the engine's.
            torch.set_num_threads(1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit: its distinct texts become one answer each, after those that are known already."""
        cost = Cost(**json.loads(batch.column("cost")[0].as_py()))
        kind: Any = (
            functools.partial(WithRanked.from_arrow, given=self.predictor.input)
            if self.predictor.spec.words
            else self.predictor.input.from_arrow
        )
        encoded = kind(_unpack(batch.column("encoded")[0]))
        known, asked_again = (_unpack(batch.column(name)[0]) for name in ("known", "asked_again"))
        with cost.timed("forward", self.clock):
            found = self._answer(encoded)
        cost.forwarded, cost.tokens = len(encoded), int(encoded.costs.sum())
        cost.slots = slots(encoded.costs, self.predictor.token_budget, self.predictor.row_budget)
        cost.halvings = self.predictor.halvings
        if len(asked_again):
            found, others = found.slice(0, len(found) - len(asked_again)), found.slice(len(found) - len(asked_again))
            cost.agreed = pc.sum(pc.equal(others.column("label"), asked_again.column("label"))).as_py() or 0
        if len(known):
            found = pa.concat_tables([known.cast(found.schema), found])
        columns = {"unit": batch.column("unit"), "rows": batch.column("rows")}
        columns |= {"answers": pa.array([_pack(found)], pa.large_binary())}
        self.has_answered |= len(encoded) > 0
        return pa.table({**columns, "cost": [json.dumps(asdict(cost))]})

    def _answer(self, encoded: Encoded) -> pa.Table:
        """One row per text: the prediction, or the error that its prediction raised."""
        errors: dict[int, str] = {}
        found = pa.concat_tables(self._isolate(encoded, 0, len(encoded), errors)).combine_chunks()
        if errors:
            failed = np.isin(np.arange(len(encoded)), list(errors))
            place = np.cumsum(~failed) - 1
            found = found.take(pa.array(place, mask=failed))
        return found.append_column("error", pa.array([errors.get(row) for row in range(len(encoded))], pa.string()))

    def _isolate(self, encoded: Encoded, start: int, stop: int, errors: dict[int, str]) -> Iterator[pa.Table]:
        """Answers for rows `start` to `stop`; rows that make the model raise are found by bisection and go to `errors`."""
        try:
            yield self.predictor.answer(encoded.slice(start, stop), self.alternatives)
        except (IndexError, ValueError, RuntimeError) as error:
            if isinstance(error, self.out_of_memory):
                raise
            if not self.predictor.works():
                self._end_process(error)
            if len(errors) >= BAD_ROWS_PER_UNIT:
                raise
            if stop - start == 1:
                errors[start] = f"the model raised {_said(error)}"
                yield self.predictor.answer(encoded.slice(0, 0), self.alternatives)
            else:
                middle = (start + stop) // 2
                yield from self._isolate(encoded, start, middle, errors)
                yield from self._isolate(encoded, middle, stop, errors)

    def _end_process(self, error: Exception) -> NoReturn:
        """The model cannot answer in this process any more: Ray starts another one and gives it the units of this one.

        Raises ResourceError where a process of this actor has ended so before on this node, and this one has not answered for a
        unit either: Ray would go on for ever.
        """
        if not self.has_answered and not first_time("broken", str(ray.get_runtime_context().get_actor_id())):
            raise ResourceError(
                f"node {platform.node()}: the model failed at everything twice in a row, the second time in a new process "
                f"({_said(error)}); look after the device there, then run the same command again"
            ) from error
        print(f"the model fails at everything, this process ends: {_said(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def _said(error: Exception) -> str:
    message, *_ = str(error).split("\n")
    return f"{type(error).__name__}: {message}"


def _read(row: dict[str, Any], reading: Reading, model: Model) -> Iterator[dict[str, Any]]:
    """Read and encode the units of one `Read`."""
    units = read_units(reading.filesystem, Read.from_dict(row).units, reading.schema)
    while True:
        cost = Cost()
        with cost.timed("reading"):
            found = next(units, None)
        if found is None:
            return
        yield _encode(*found, cost, reading, model)


def _encode(unit: Unit, table: pa.Table, cost: Cost, reading: Reading, model: Model) -> dict[str, Any]:
    """One unit's rows, the answers it need not ask for, and its other values ready for the network."""
    spec, given = model.spec, input_of(model.spec, model.folder(), reading.text_columns)
    with cost.timed("reading"):
        table, reason = _with_ids(table, reading)
        read = given.read(table)
        table, values, reason = read.table, read.values, pc.coalesce(reason, read.reasons)
        if ROW in reading.kept.values():
            table = table.append_column(ROW, pa.array(np.arange(len(table))))
        if TEXT in reading.kept.values():
            table = table.append_column(TEXT, given.shown(values))
        if KEY in reading.kept.values():
            table = table.append_column(KEY, pa.array(seen.keys(table, values, spec.group_column, spec.format_version)))
        chosen = np.ones(len(table), bool)
        if reading.held_out:
            hashes = split_hash(split_keys(table, values, spec.group_column), spec.format_version)
            chosen &= split_position(hashes, spec.test_start) < spec.test_fraction
        if reading.every > 1:
            chosen &= ids.hash_ids(table.column(reading.kept["id"])) % np.uint64(reading.every) == 0
        if not chosen.all():
            table, values, reason = (one.filter(pa.array(chosen)) for one in (table, values, reason))
        distinct = values.dictionary_encode()
        fresh, hashes = distinct.dictionary, given.key(distinct.dictionary)
        # Who answers each distinct text: the published labels, words alone, or the network.
        answerer = np.full(len(fresh), NETWORK)
        known: list[pa.Table] = []
        if reading.published is not None:
            carried, found = reuse.find(reading.published, spec, hashes)
            answerer[carried] = CARRIED
            known.append(found)
            fresh = fresh.filter(pa.array(~carried))
    asked_again = pa.table({})
    if spec.words:
        with cost.timed("words"):
            first = first_tier(model.folder(), spec, reading.tiers)
            said = first.ask(fresh, reading.alternatives)
            answerer[answerer == NETWORK] = np.where(said.alone, ALONE, NETWORK)
            known.append(said.answers)
            fresh, ranked = fresh.filter(pa.array(~said.alone)), said.ranked
            if spec.network and said.alone.any():
                # By unit as well: a text that is in all of them is asked about in a few.
                mixed = hash_words(hashes.filter(pa.array(answerer == ALONE)))[:, 0] + np.uint64(unit.index) * MIXER
                sampled = mixed % np.uint64(reading.asked_again) == 0
                texts = distinct.dictionary.filter(pa.array(answerer == ALONE)).filter(pa.array(sampled))
                asked_again = said.answers.filter(pa.array(sampled)).select(["label"])
                fresh, ranked = pa.concat_arrays([fresh, texts]), Ranked.joined([ranked, first.rank(texts)])
            cost.alone, cost.checked = int(said.alone.sum()), len(asked_again)
    place = np.empty(len(answerer), np.int64)
    place[np.argsort(answerer, kind="stable")] = np.arange(len(answerer))
    cost.rows = len(table)
    rows = pa.table({name: table.column(column) for name, column in reading.kept.items()})
    rows = rows.append_column("text_hash", hashes.take(distinct.indices))
    rows = rows.append_column("place", pa.array(place).take(distinct.indices)).append_column("reason", reason)
    cost.carried = pc.sum(pa.array(answerer == CARRIED).take(distinct.indices)).as_py() or 0
    answers = _joined(known)
    packed = {"unit": unit.index, "rows": _pack(rows)}
    if not spec.network:
        return {**packed, "answers": _pack(answers), "cost": json.dumps(asdict(cost))}
    with cost.timed("tokenizing"):
        encoded = given.encode(fresh)
    packed |= {"encoded": _pack((WithRanked(encoded, ranked) if spec.words else encoded).to_arrow())}
    packed |= {"known": _pack(answers), "asked_again": _pack(asked_again)}
    return {**packed, "cost": json.dumps(asdict(cost))}


def _joined(answers: Sequence[pa.Table]) -> pa.Table:
    """Answers that are known, as those of the network come: none of them with an error."""
    if not answers:
        return pa.table({})
    table = pa.concat_tables([found.cast(answers[-1].schema) for found in answers])
    return table.append_column("error", pa.nulls(len(table), pa.string()))


def _with_ids(table: pa.Table, reading: Reading) -> tuple[pa.Table, pa.Array]:
    """(the table with every id written as valid UTF-8, why a row had to lose its own spelling of it)."""
    reason = pa.nulls(len(table), pa.string())
    if id_column := reading.kept.get("id"):
        spelt, bad = ids.written(table.column(id_column))
        if bad.any():
            table = table.set_column(table.column_names.index(id_column), id_column, spelt)
            reason = pc.if_else(pa.array(bad), ID_NOT_UTF8, reason)
    return table, reason


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(packed: Any) -> pa.Table:
    data = packed.as_buffer() if isinstance(packed, pa.Scalar) else packed
    return pa.ipc.open_stream(data).read_all().combine_chunks()
