"""The stream that labelling and evaluation share: Parquet → text → tokens → batches → logits → categories.

One row of the Ray Dataset is one unit, its tables packed as Arrow IPC bytes: no stage can split or merge units, and
GPU actors get exactly one per call.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from pyarrow.fs import FileSystem

from cataloger import runtime
from cataloger.batching import Tokens
from cataloger.bundle import Spec, load_tokenizer, tokenize
from cataloger.config import Precision
from cataloger.runtime import ActorShape
from cataloger.text import compose, hash_texts, split_position, undecodable
from cataloger.units import Unit, read_unit

if TYPE_CHECKING:
    from cataloger.model import Predictions

NO_TEXT = "no text in any of the text columns"
NOT_UTF8 = "a text column is not valid UTF-8"
# A few odd rows are isolated and rejected; when more of a unit fail, the fault is not theirs and the error propagates.
BAD_ROWS_PER_UNIT = 100


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
    """What the reading tasks take from a catalog. `test_fraction` keeps only the rows on that side of the split."""

    filesystem: FileSystem
    schema: pa.Schema
    id_column: str
    text_columns: tuple[str, ...]
    label_column: str | None = None
    test_fraction: float | None = None


def predict_units(
    reading: Reading, model: Model, units: Sequence[Unit], shape: ActorShape, precision: Precision, alternatives: int
) -> ray.data.Dataset:
    """The stream without its end: rows of {unit, rows, answers}, in any order; `assemble` makes a table of each."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = runtime.STUCK_SECONDS
    context.max_consecutive_actor_init_deaths = 2  # a node lost while its actor starts
    items = ray.data.from_items([unit.as_dict() for unit in units], override_num_blocks=len(units))
    read = functools.partial(_read, reading=reading, model=model)
    return items.map(read, num_cpus=runtime.TASK_CPUS).map_batches(
        Labeler,
        fn_constructor_kwargs={"model": model, "shape": shape, "precision": precision, "alternatives": alternatives},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=shape.min_actors, max_size=shape.max_actors),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
    )


class Labeler:
    """The actor that holds the model. It sees distinct texts only: its time is the forward pass."""

    def __init__(self, model: Model, shape: ActorShape, precision: Precision, alternatives: int) -> None:
        # Imported here: the driver and the reading tasks need no torch.
        import torch

        from cataloger.model import Bundle

        torch.set_num_threads(shape.threads)
        self.out_of_memory = torch.OutOfMemoryError
        self.bundle = Bundle(model.folder(), shape.device, precision)
        self.alternatives = alternatives

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit: its distinct texts' tokens become one answer each."""
        tokens = Tokens.from_arrow(_unpack(batch.column("tokens")[0]).column(0))
        packed = _pack(self._answer(tokens))
        columns = {"unit": batch.column("unit"), "rows": batch.column("rows")}
        return pa.table({**columns, "answers": pa.array([packed], pa.large_binary())})

    def _answer(self, tokens: Tokens) -> pa.Table:
        """One row per text: the prediction, or the error that its prediction raised."""
        errors: dict[int, str] = {}
        pieces = list(self._predict(tokens, 0, len(tokens), errors))
        answers = pa.concat_tables([_table(piece) for piece in pieces]).combine_chunks()
        good = np.setdiff1d(np.arange(len(tokens)), list(errors))
        place = np.zeros(len(tokens), np.int64)
        place[good] = np.arange(len(good))
        failed = np.isin(np.arange(len(tokens)), list(errors))
        answers = answers.take(pa.array(place, mask=failed))
        return answers.append_column("error", pa.array([errors.get(row) for row in range(len(tokens))], pa.string()))

    def _predict(self, tokens: Tokens, start: int, stop: int, errors: dict[int, str]) -> "Iterator[Predictions]":
        """Predictions of rows `start` to `stop`; rows that make the model raise are found by bisection and go to `errors`."""
        try:
            yield self.bundle.predict(tokens.slice(start, stop), self.alternatives)
        except (IndexError, ValueError, RuntimeError) as error:
            if isinstance(error, self.out_of_memory) or len(errors) >= BAD_ROWS_PER_UNIT:
                raise
            if stop - start == 1:
                errors[start] = f"the model raised {type(error).__name__}: {str(error).splitlines()[0]}"
                yield self.bundle.predict(tokens.slice(0, 0), self.alternatives)
            else:
                middle = (start + stop) // 2
                yield from self._predict(tokens, start, middle, errors)
                yield from self._predict(tokens, middle, stop, errors)


def assemble(rows: pa.Table, answers: pa.Table, spec: Spec) -> tuple[pa.Table, pa.Table]:
    """(labels, rejects) of a unit in input order. Labels have the columns of the published layout."""
    found = answers.take(rows.column("place"))
    reason = pc.coalesce(rows.column("reason"), found.column("error"))
    labelled = reason.is_null()
    kept = rows.drop_columns(["place", "reason", "text_hash"])
    found = found.filter(labelled)
    categories = pa.array(spec.categories)
    confidence = found.column("confidence").combine_chunks()
    labels = kept.filter(labelled)
    for name, column in {
        "category": categories.take(found.column("label").combine_chunks()),
        "confidence": confidence,
        "level_confidences": _trim(found.column("levels").combine_chunks()),
        "alternatives": _alternatives(found, categories),
        "needs_review": pc.less(confidence, pa.scalar(spec.review_threshold, pa.float32())),
        "text_hash": rows.column("text_hash").filter(labelled),
    }.items():
        labels = labels.append_column(name, column)
    rejected = pc.invert(labelled)
    return labels, kept.filter(rejected).append_column("reason", reason.filter(rejected))


def unpack_unit(row: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """(rows, answers) of one row of `predict_units`."""
    return _unpack(row["rows"]), _unpack(row["answers"])


def _read(row: dict[str, Any], reading: Reading, model: Model) -> dict[str, Any]:
    """Read → compose → tokenize: one unit's rows, and the tokens of its distinct texts."""
    unit = Unit.from_dict(row)
    kept = {"id": reading.id_column} | ({"true_category": reading.label_column} if reading.label_column else {})
    table = read_unit(reading.filesystem, unit, reading.schema)
    bad = undecodable(table, reading.text_columns)
    # Nulled before composing: Arrow's string functions stop at invalid bytes.
    texts = compose(_without(table, bad, reading.text_columns), reading.text_columns, model.spec.max_tokens)
    if reading.test_fraction is not None:
        chosen = pa.array(split_position(texts) < reading.test_fraction)
        table, texts, bad = table.filter(chosen), texts.filter(chosen), bad.filter(chosen)
    distinct = texts.dictionary_encode()
    reason = pc.if_else(texts.is_valid(), pa.scalar(None, pa.string()), pc.if_else(bad, NOT_UTF8, NO_TEXT))
    tokens = tokenize(_tokenizer(model.folder(), model.spec.max_tokens), distinct.dictionary)
    rows = pa.table({name: table.column(column) for name, column in kept.items()})
    rows = rows.append_column("text_hash", hash_texts(distinct.dictionary).take(distinct.indices))
    rows = rows.append_column("place", distinct.indices).append_column("reason", reason)
    return {"unit": unit.index, "rows": _pack(rows), "tokens": _pack(pa.table({"tokens": tokens}))}


def _without(table: pa.Table, bad: pa.Array, columns: Sequence[str]) -> pa.Table:
    """The text columns, null in bad rows."""
    if not pc.any(bad).as_py():
        return table
    fields = {name: table.column(name).combine_chunks() for name in columns}
    return pa.table({name: pc.if_else(bad, pa.scalar(None, field.type), field) for name, field in fields.items()})


def _table(found: "Predictions") -> pa.Table:
    return pa.table(
        {
            "label": pa.array(found.labels.astype(np.int32)),
            "confidence": pa.array(found.confidence),
            "levels": _lists(found.levels),
            "alternatives": _lists(found.alternatives.astype(np.int32)),
            "alternative_confidence": _lists(found.alternative_confidence),
        }
    )


def _lists(matrix: np.ndarray[Any, Any]) -> pa.Array:
    """A [rows, width] matrix as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _trim(levels: pa.Array) -> pa.Array:
    """Level confidences without the NaN below the depth of a category."""
    values = levels.flatten().to_numpy(zero_copy_only=False)
    real = ~np.isnan(values)
    counts = (
        np.add.reduceat(real, levels.offsets.to_numpy()[:-1] - levels.offsets[0].as_py())
        if len(levels)
        else np.empty(0, int)
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[real]))


def _alternatives(found: pa.Table, categories: pa.Array) -> pa.Array:
    labels = found.column("alternatives").combine_chunks()
    scores = found.column("alternative_confidence").combine_chunks()
    structs = pa.StructArray.from_arrays(
        [categories.take(labels.flatten()), scores.flatten()], ["category", "confidence"]
    )
    offsets = pc.subtract(labels.offsets, labels.offsets[0])
    return pa.ListArray.from_arrays(offsets, structs)


@functools.cache
def _tokenizer(folder: Path, max_tokens: int) -> Any:
    return load_tokenizer(folder, max_tokens)


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpack(packed: Any) -> pa.Table:
    data = packed.as_buffer() if isinstance(packed, pa.Scalar) else packed
    return pa.ipc.open_stream(data).read_all().combine_chunks()
