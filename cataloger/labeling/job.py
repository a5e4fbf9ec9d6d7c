"""The labelling job: plan, stream, check, publish."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cataloger.bundle import digest, read_spec
from cataloger.config import LabelConfig
from cataloger.curation import decisions
from cataloger.data import ids
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.inputs import input_of
from cataloger.data.units import plan_units
from cataloger.errors import ConfigError, TrackingError
from cataloger.explaining import occlusion as explaining
from cataloger.explaining.words import MOST_UNITS
from cataloger.infra import deciding, places, runtime, tracking, vitals
from cataloger.infra.storage import check_conditional, check_writable, locate
from cataloger.labeling.call import Call
from cataloger.labeling.cost import Cost
from cataloger.labeling.ending import decided_by_people, publish, publish_again, result_of
from cataloger.labeling.order import found_by_parts
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import ASKED_AGAIN, Reading
from cataloger.labeling.result import LabelResult
from cataloger.labeling.writing import label_units
from cataloger.model import registry
from cataloger.model.ensemble import fetch_models
from cataloger.publishing import delivery, fitness, pointer, snapshot
from cataloger.publishing.doubts import Origin
from cataloger.publishing.parts import finished_parts

log = logging.getLogger(__name__)
# Part of every run id: raised when the same catalog would be cut into other units or its parts be written otherwise.
LAYOUT = 6


def label(config: LabelConfig) -> LabelResult:
    """Label a catalog and publish the result; the same call after a crash finishes the same run.

    Raises CatalogerError; PublishError when the labels are complete but not fit to replace the published ones.
    """
    started = time.monotonic()
    _check(config)
    output = locate(places.place(config.output, "--output"))
    tracking_uri = _connect(config.model)
    source = fetch_models(config.model)
    spec = read_spec(source.folder).reading(config.text_columns, config.image_column)
    spec = spec if config.tiers == "auto" else spec.without_tiers()
    if config.explain:
        explaining.check(spec)
    given = decisions.read(config.pins, config.rules, spec, config.alternatives)
    catalog = open_catalog(
        config.catalog, config.id_column, spec.text_columns, others=given.columns, picture=spec.picture
    )
    model_digest = digest(source.folder)
    if config.publish_to:
        config = replace(config, publish_to=delivery.settled(config.publish_to))
    check_writable(output)
    check_conditional(output)
    seen = pointer.look(output)
    decisive = [LAYOUT, catalog.fingerprint, model_digest, config.id_column, spec.text_columns, config.alternatives]
    decisive += [
        config.precision,
        config.tiers,
        deciding.digest(config.explain > 0),
        *([spec.picture.column] if spec.picture else []),
    ]
    decisive += [("explain", config.explain)] if config.explain else []
    decisive += [deciding.digest_of_tables()] if config.catalog.startswith(("delta://", "iceberg://")) else []
    decisive += [(*given.digests, deciding.digest_of_decisions())] if any(given.digests) else []
    inputs = snapshot.run_id(*decisive)
    published = pointer.published(output, seen)
    # Anew is a run of its own for each publication that it replaces: the same command after a crash goes on with it.
    anew = [*decisive, "anew", seen.run, seen.published]
    run = pointer.choose(output, snapshot.run_id(*anew) if config.anew else inputs, seen)
    if published and published.get("inputs") == inputs and not config.anew:
        run = published["run"]  # it may have been labelled anew
    else:
        fitness.check_not_withdrawn(run, seen.withdrawn.get(inputs), seen.run, config)
    night = Call(
        config,
        output,
        run,
        inputs,
        seen,
        published,
        catalog.fingerprint,
        source.uri,
        model_digest,
        started,
        spec,
        given,
    )
    if snapshot.is_complete(output, run):
        return publish_again(night)
    units = plan_units(catalog)
    every = ids.sample_every(catalog.rows, ids.COUNTED)
    finished = finished_parts(night.folder, units, every, config.max_reject_fraction)
    parts, samples = {unit: part for unit, (part, _) in finished.items()}, [sample for _, sample in finished.values()]
    if parts:
        log.info("resuming run %s: %s of %s units are finished", run, len(parts), len(units))
    with runtime.session():
        places.check_shared(output, "--output")
        if tracking_uri:
            tracking.check_nodes(tracking_uri)
        shape = runtime.labelling_shape(config.use_gpu)
        name = Path(catalog.location.path).stem
        about: dict[str, Any] = {"catalog": str(catalog.location), "model": source.uri, **night.decided_by}
        tags = {"model": source.uri, "model_digest": model_digest, "snapshot_run": run}
        with _tracked(tracking_uri, name, config, catalog, tags) as mlflow_run:
            model = Model(spec, model_digest, [runtime.share_folder(source.folder)])
            filesystem, schema = catalog.location.filesystem, catalog.schema
            kept = {"id": config.id_column}
            reading = Reading(
                filesystem,
                schema,
                kept,
                catalog.base,
                published=night.to_carry_over(),
                asked_again=ASKED_AGAIN,
                alternatives=config.alternatives,
                explain=config.explain,
                decisions=given.share(),
            )
            todo = [unit for unit in units if unit.index not in parts]
            reading = found_by_parts(reading, model, todo)
            cost = Cost()
            about_part = {"run": run, **night.decided_by}
            for part, sample, spent in label_units(
                reading, model, todo, shape, config.precision, night.folder, about_part, every
            ):
                parts[part.unit] = part
                samples.append(sample)
                cost += spent
            snapshot.check_complete(run, units, parts)
            people = decided_by_people(night, len(units), parts.values())
            result = result_of(night, units, parts, cost, mlflow_run, people)
            repeated = {"repeated_ids": ids.count_repeated(samples, every), "repeated_ids_are_estimated": every > 1}
            about |= {"images": dict(result.images)} if spec.picture else {}
            about |= {"decisions": people.as_dict()} if people else {}
            about |= {**repeated, "libraries": deciding.libraries(), "mlflow_run": mlflow_run, "config": asdict(config)}
            rejected = {unit: part.rejects for unit, part in parts.items()}
            origin = Origin(catalog, units, rejected, input_of(spec, source.folder, catalog.base))
            publish(night, origin, parts, about, result)
            tracking.log_metrics({**result.metrics(), "repeated_ids": repeated["repeated_ids"]})
            registry.tag_version(source, {"label_run": mlflow_run} if mlflow_run else {})
    log.info(
        "published run %s in %s: %s labelled, %s rejected", run, output, f"{result.labelled:,}", f"{result.rejects:,}"
    )
    return result


def _check(config: LabelConfig) -> None:
    if not 0 <= config.alternatives <= 100:
        raise ConfigError(f"--alternatives {config.alternatives}: must be from 0 to 100")
    if not 0 <= config.explain <= MOST_UNITS:
        raise ConfigError(f"--explain {config.explain}: must be from 0 to {MOST_UNITS}")
    for name in ("max_reject_fraction", "max_missing_fraction", "max_changed_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be from 0 to 1")


def _connect(models: Sequence[str]) -> str | None:
    """The tracking store, or None where it does not answer and the models are at hand without it: labels come first."""
    try:
        return tracking.connect()
    except TrackingError as error:
        if any(model.startswith(("models:/", "runs:/")) for model in models):
            raise
        log.warning("labelling goes on without MLflow: %s", error)
        return None


@contextlib.contextmanager
def _tracked(
    tracking_uri: str | None, name: str, config: LabelConfig, catalog: Catalog, tags: dict[str, str]
) -> Iterator[str | None]:
    """The MLflow run of the night, or None where MLflow does not answer."""
    with contextlib.ExitStack() as stack:
        mlflow_run = None
        if tracking_uri:
            with tracking.forgiving():
                mlflow_run = stack.enter_context(tracking.run("label", name, config, catalog, tags))
                stack.enter_context(vitals.watch(mlflow_run))
        yield mlflow_run
