"""The labelling job: Parquet → text → tokens → batches → logits → categories → one part per unit → published snapshot.

One row of the Ray Dataset is one unit, its tables packed as Arrow IPC bytes: no stage can split or merge units, and
GPU actors get exactly one per call.
"""

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cataloger import catalog as catalogs
from cataloger import progress, runtime, snapshot, tracking
from cataloger.batching import Tokens
from cataloger.bundle import Spec, digest, load_tokenizer, read_spec, tokenize
from cataloger.catalog import Catalog, Unit
from cataloger.config import LabelConfig, Precision
from cataloger.errors import ConfigError
from cataloger.runtime import ActorShape
from cataloger.snapshot import Part
from cataloger.storage import Location, check_writable, locate
from cataloger.text import compose, hash_texts, split_position

log = logging.getLogger(__name__)
# Other than an actor's, or Ray Data would fuse reading into the actors and nothing would overlap.
READING_CPUS = 0.5
NO_TEXT = "no text in any of the text columns"


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

    catalog: Catalog
    id_column: str
    text_columns: tuple[str, ...]
    label_column: str | None = None
    test_fraction: float | None = None


@dataclass(frozen=True)
class LabelResult:
    """A published snapshot and what it took."""

    run: str
    output: str
    rows: int
    labelled: int
    rejects: int
    forwarded: int
    seconds: float
    mlflow_run: str | None


def label(config: LabelConfig) -> LabelResult:
    """Label a catalog and publish the result; the same call after a crash finishes the same run. Raises CatalogerError."""
    started = time.monotonic()
    if not 0 <= config.alternatives <= 100:
        raise ConfigError(f"--alternatives {config.alternatives}: must be from 0 to 100")
    output = locate(config.output)
    tracking_uri = tracking.connect()
    source = tracking.fetch_model(config.model)
    spec = read_spec(source.folder)
    text_columns = config.text_columns or spec.text_columns
    catalog = catalogs.open_catalog(config.catalog, config.id_column, text_columns)
    model_digest = digest(source.folder)
    run = snapshot.run_id(
        catalog.fingerprint, model_digest, config.id_column, text_columns, config.alternatives, config.precision
    )
    check_writable(output)
    if snapshot.is_complete(output, run):
        return _publish_again(output, run, started)
    units = catalogs.plan_units(catalog)
    parts = snapshot.finished_parts(snapshot.run_folder(output, run), units)
    if parts:
        log.info("resuming run %s: %s of %s units are finished", run, len(parts), len(units))
    about = {
        "catalog": str(catalog.location),
        "catalog_fingerprint": catalog.fingerprint,
        "model": source.uri,
        "model_digest": model_digest,
    }
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        shape = runtime.labelling_shape(config.use_gpu)
        with tracking.run(
            "label", Path(catalog.location.path).stem, config, {**about, "snapshot_run": run}
        ) as mlflow_run:
            model = Model(spec, model_digest, [runtime.share_folder(source.folder)])
            reading = Reading(catalog, config.id_column, text_columns)
            todo = [unit for unit in units if unit.index not in parts]
            parts |= _stream(
                config, reading, model, shape, todo, snapshot.run_folder(output, run), {"run": run, **about}
            )
            snapshot.commit(output, run, units, parts, {**about, "mlflow_run": mlflow_run, "config": asdict(config)})
            result = _result(output, run, units, parts, started, mlflow_run)
            tracking.log_metrics(
                {
                    "rows": result.rows,
                    "rejects": result.rejects,
                    "forwarded_rows": result.forwarded,
                    "seconds": result.seconds,
                    "rows_per_second": result.rows / result.seconds,
                }
            )
            tracking.tag_version(source, {"label_run": mlflow_run})
    log.info(
        "published run %s in %s: %s labelled, %s rejected", run, output, f"{result.labelled:,}", f"{result.rejects:,}"
    )
    return result


def predict_units(
    reading: Reading, model: Model, units: Sequence[Unit], shape: ActorShape, precision: Precision, alternatives: int
) -> ray.data.Dataset:
    """The stream without its end: rows of {unit, rows, answers}, in any order; `assemble` makes a table of each."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = ray.data.from_items([unit.as_dict() for unit in units], override_num_blocks=len(units))
    read = functools.partial(_read, reading=reading, model=model)
    return items.map(read, num_cpus=READING_CPUS).map_batches(
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
        self.bundle = Bundle(model.folder(), shape.device, precision)
        self.alternatives = alternatives

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit: its distinct texts' tokens become one answer each."""
        tokens = Tokens.from_arrow(_unpack(batch.column("tokens")[0]).column(0))
        found = self.bundle.predict(tokens, self.alternatives)
        answers = {
            "label": pa.array(found.labels.astype(np.int32)),
            "confidence": pa.array(found.confidence),
            "levels": _lists(found.levels),
            "alternatives": _lists(found.alternatives.astype(np.int32)),
            "alternative_confidence": _lists(found.alternative_confidence),
        }
        packed = _pack(pa.table(answers))
        return pa.table(
            {
                "unit": batch.column("unit"),
                "rows": batch.column("rows"),
                "answers": pa.array([packed], pa.large_binary()),
            }
        )


def assemble(rows: pa.Table, answers: pa.Table, spec: Spec) -> tuple[pa.Table, pa.Table]:
    """(labels, rejects) of a unit in input order. Labels have the columns of the published layout."""
    place = rows.column("place")
    readable = place.is_valid()
    kept = rows.drop_columns(["place"])
    found = answers.take(place.filter(readable))
    categories = pa.array(spec.categories)
    confidence = found.column("confidence").combine_chunks()
    labels = kept.filter(readable)
    text_hash = labels.column("text_hash")
    labels = labels.drop_columns(["text_hash"])
    for name, column in {
        "category": categories.take(found.column("label").combine_chunks()),
        "confidence": confidence,
        "level_confidences": _trim(found.column("levels").combine_chunks()),
        "alternatives": _alternatives(found, categories),
        "needs_review": pc.less(confidence, pa.scalar(spec.review_threshold, pa.float32())),
        "text_hash": text_hash,
    }.items():
        labels = labels.append_column(name, column)
    rejects = kept.filter(pc.invert(readable)).drop_columns(["text_hash"])
    return labels, rejects.append_column("reason", pa.array([NO_TEXT] * len(rejects), pa.string()))


def unpack_unit(row: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """(rows, answers) of one row of `predict_units`."""
    return _unpack(row["rows"]), _unpack(row["answers"])


def _stream(
    config: LabelConfig,
    reading: Reading,
    model: Model,
    shape: ActorShape,
    units: Sequence[Unit],
    folder: Location,
    about: dict[str, str],
) -> dict[int, Part]:
    """Run the stream over the units that are left; the part of each."""
    parts: dict[int, Part] = {}
    if not units:
        return parts
    write = functools.partial(_write, spec=model.spec, folder=folder, about=about)
    stream = predict_units(reading, model, units, shape, config.precision, config.alternatives).map(write)
    total, done, rejects = sum(unit.rows for unit in units), 0, 0
    with progress.meter("label", total) as shown:
        for row in stream.iter_rows():
            part = Part(**row)
            parts[part.unit] = part
            done, rejects = done + part.rows + part.rejects, rejects + part.rejects
            shown.advance_to(done, f"{rejects:,} rejected" if rejects else "")
    return parts


def _read(row: dict[str, Any], reading: Reading, model: Model) -> dict[str, Any]:
    """Read → compose → tokenize: one unit's rows, and the tokens of its distinct texts."""
    unit = Unit.from_dict(row)
    kept = {"id": reading.id_column} | ({"true_category": reading.label_column} if reading.label_column else {})
    filesystem = reading.catalog.location.filesystem
    table = catalogs.read_unit(filesystem, unit, [*kept.values(), *reading.text_columns])
    texts = compose(table, reading.text_columns, model.spec.max_tokens)
    if reading.test_fraction is not None:
        chosen = pa.array(split_position(texts) < reading.test_fraction)
        table, texts = table.filter(chosen), texts.filter(chosen)
    distinct = texts.dictionary_encode()
    tokens = tokenize(_tokenizer(model.folder(), model.spec.max_tokens), distinct.dictionary)
    rows = pa.table({name: table.column(column) for name, column in kept.items()})
    rows = rows.append_column("text_hash", hash_texts(distinct.dictionary).take(distinct.indices))
    rows = rows.append_column("place", distinct.indices)
    return {"unit": unit.index, "rows": _pack(rows), "tokens": _pack(pa.table({"tokens": tokens}))}


def _write(row: dict[str, Any], spec: Spec, folder: Location, about: dict[str, str]) -> dict[str, Any]:
    rows, answers = unpack_unit(row)
    labels, rejects = assemble(rows, answers, spec)
    part = Part(int(row["unit"]), len(labels), len(rejects), forwarded=len(answers))
    snapshot.write_part(folder, part, labels, rejects, about)
    return asdict(part)


def _publish_again(output: Location, run: str, started: float) -> LabelResult:
    """The run is complete: nothing to compute, only the pointer may need turning."""
    manifest = snapshot.read_manifest(output, run)
    if (snapshot.published(output) or {}).get("run") != run:
        snapshot.publish(output, run)
    log.info("run %s is complete: the same rows, model and settings; nothing to label", run)
    rows, labelled, rejects = (int(manifest[key]) for key in ("rows", "labelled", "rejects"))
    return LabelResult(run, str(output), rows, labelled, rejects, 0, time.monotonic() - started, None)


def _result(
    output: Location, run: str, units: Sequence[Unit], parts: dict[int, Part], started: float, mlflow_run: str
) -> LabelResult:
    return LabelResult(
        run=run,
        output=str(output),
        rows=sum(unit.rows for unit in units),
        labelled=sum(part.rows for part in parts.values()),
        rejects=sum(part.rejects for part in parts.values()),
        forwarded=sum(part.forwarded for part in parts.values()),
        seconds=time.monotonic() - started,
        mlflow_run=mlflow_run,
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
