"""The labelling job: plan, stream, check, publish."""

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cataloger import catalog as catalogs
from cataloger import drift, progress, runtime, snapshot, tracking
from cataloger.bundle import Spec, digest, read_spec
from cataloger.catalog import Unit
from cataloger.config import LabelConfig
from cataloger.errors import ConfigError, PublishError
from cataloger.runtime import ActorShape
from cataloger.snapshot import Part
from cataloger.storage import Location, check_writable, locate
from cataloger.stream import Model, Reading, assemble, predict_units, unpack_unit

log = logging.getLogger(__name__)


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
    """Label a catalog and publish the result; the same call after a crash finishes the same run.

    Raises CatalogerError; PublishError when the labels are complete but not fit to replace the published ones.
    """
    started = time.monotonic()
    _check(config)
    output = locate(config.output)
    tracking_uri = tracking.connect()
    source = tracking.fetch_model(config.model)
    spec = read_spec(source.folder)
    text_columns = config.text_columns or spec.text_columns
    catalog = catalogs.open_catalog(config.catalog, config.id_column, text_columns)
    model_digest = digest(source.folder)
    decisive = (config.id_column, text_columns, config.alternatives, config.precision)
    run = snapshot.run_id(catalog.fingerprint, model_digest, *decisive)
    check_writable(output)
    seen = snapshot.pointer_version(output)
    if snapshot.is_complete(output, run):
        return _publish_again(output, run, seen, started)
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
        name = Path(catalog.location.path).stem
        with tracking.run("label", name, config, {**about, "snapshot_run": run}) as mlflow_run:
            model = Model(spec, model_digest, [runtime.share_folder(source.folder)])
            reading = Reading(catalog, config.id_column, text_columns)
            todo = [unit for unit in units if unit.index not in parts]
            folder = snapshot.run_folder(output, run)
            new = _stream(config, reading, model, shape, todo, folder, {"run": run, **about})
            parts |= new
            snapshot.check_complete(run, units, parts)
            _check_rejects(config, run, parts)
            shares = _check_drift(config, output, run, parts, model_digest)
            snapshot.write_manifest(
                output, run, units, parts, {**about, "mlflow_run": mlflow_run, "config": asdict(config)}
            )
            snapshot.publish(output, run, seen)
            result = _result(output, run, units, parts, new, started, mlflow_run)
            tracking.log_metrics({**_metrics(result), **shares})
            tracking.tag_version(source, {"label_run": mlflow_run})
    log.info(
        "published run %s in %s: %s labelled, %s rejected", run, output, f"{result.labelled:,}", f"{result.rejects:,}"
    )
    return result


def _check(config: LabelConfig) -> None:
    if not 0 <= config.alternatives <= 100:
        raise ConfigError(f"--alternatives {config.alternatives}: must be from 0 to 100")
    for name in ("max_reject_fraction", "max_changed_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be from 0 to 1")


def _stream(
    config: LabelConfig,
    reading: Reading,
    model: Model,
    shape: ActorShape,
    units: Sequence[Unit],
    folder: Location,
    about: dict[str, str],
) -> dict[int, Part]:
    """Run the stream over the units that are left; the part of each. Raises the CatalogerError a task met."""
    parts: dict[int, Part] = {}
    if not units:
        return parts
    write = functools.partial(_write, spec=model.spec, folder=folder, about=about)
    stream = predict_units(reading, model, units, shape, config.precision, config.alternatives).map(write)
    total, done, rejects = sum(unit.rows for unit in units), 0, 0
    with runtime.errors_of_tasks(), progress.meter("label", total) as shown:
        for row in stream.iter_rows():
            part = Part(**row)
            parts[part.unit] = part
            done, rejects = done + part.rows + part.rejects, rejects + part.rejects
            shown.advance_to(done, f"{rejects:,} rejected" if rejects else "")
    return parts


def _write(row: dict[str, Any], spec: Spec, folder: Location, about: dict[str, str]) -> dict[str, Any]:
    rows, answers = unpack_unit(row)
    labels, rejects = assemble(rows, answers, spec)
    part = Part(int(row["unit"]), len(labels), len(rejects), forwarded=len(answers))
    snapshot.write_part(folder, part, labels, rejects, about)
    return asdict(part)


def _check_rejects(config: LabelConfig, run: str, parts: dict[int, Part]) -> None:
    rejects, rows = sum(part.rejects for part in parts.values()), sum(part.rows for part in parts.values())
    if rejects > config.max_reject_fraction * (rows + rejects):
        raise PublishError(
            f"run {run}: {rejects:,} of {rows + rejects:,} rows were rejected ({rejects / (rows + rejects):.1%}, the limit "
            f"is {config.max_reject_fraction:.1%}); not published. The reasons are in {config.output}/run={run}/_rejects; "
            "if they are as they should be, run again with a higher --max-reject-fraction: nothing is labelled twice"
        )


def _check_drift(
    config: LabelConfig, output: Location, run: str, parts: dict[int, Part], model_digest: str
) -> dict[str, float]:
    """Hold back a run that differs too much from the published one of the same model; the shares, for MLflow."""
    before = snapshot.published(output)
    if before is None:
        return {}
    folder, old = snapshot.run_folder(output, run), snapshot.run_folder(output, before["run"])
    old_parts = [old / entry["name"] for entry in before["files"] if not entry["name"].startswith(snapshot.REJECTS)]
    rows = max(before["rows"], sum(part.rows for part in parts.values()))
    found = drift.compare_runs(old_parts, [folder / part.name for part in parts.values()], rows)
    log.info("against published run %s: %s", before["run"], found)
    same_model = before["model_digest"] == model_digest
    if same_model and found.worst > config.max_changed_fraction and not config.publish_anyway:
        raise PublishError(
            f"run {run} is held back, readers keep run {before['run']}: {found}. The limit is --max-changed-fraction "
            f"{config.max_changed_fraction}; if this is as it should be, run again with --publish-anyway: nothing is labelled twice"
        )
    return {
        "changed_fraction": found.changed,
        "distribution_shift": found.shift,
        "confidence_fall": found.confidence_fall,
    }


def _publish_again(output: Location, run: str, seen: str | None, started: float) -> LabelResult:
    """The run is complete: nothing to compute, only the pointer may need turning."""
    manifest = snapshot.read_manifest(output, run)
    if (snapshot.published(output) or {}).get("run") != run:
        snapshot.publish(output, run, seen)
    log.info("run %s is complete: the same rows, model and settings; nothing to label", run)
    rows, labelled, rejects = (int(manifest[key]) for key in ("rows", "labelled", "rejects"))
    return LabelResult(run, str(output), rows, labelled, rejects, 0, time.monotonic() - started, None)


def _result(
    output: Location,
    run: str,
    units: Sequence[Unit],
    parts: dict[int, Part],
    new: dict[int, Part],
    started: float,
    mlflow_run: str,
) -> LabelResult:
    return LabelResult(
        run=run,
        output=str(output),
        rows=sum(unit.rows for unit in units),
        labelled=sum(part.rows for part in parts.values()),
        rejects=sum(part.rejects for part in parts.values()),
        forwarded=sum(part.forwarded for part in new.values()),
        seconds=time.monotonic() - started,
        mlflow_run=mlflow_run,
    )


def _metrics(result: LabelResult) -> dict[str, float]:
    return {
        "rows": result.rows,
        "rejects": result.rejects,
        "forwarded_rows": result.forwarded,
        "seconds": result.seconds,
        "rows_per_second": result.rows / result.seconds,
    }
