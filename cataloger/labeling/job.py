"""The labelling job: plan, stream, check, publish."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cataloger.bundle import digest, read_spec
from cataloger.config import LabelConfig
from cataloger.curation import decisions
from cataloger.data import ids
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.inputs import input_of
from cataloger.data.units import Unit, plan_units
from cataloger.errors import ConfigError, PublishError, TrackingError
from cataloger.explaining import occlusion as explaining
from cataloger.explaining.words import MOST_UNITS
from cataloger.infra import deciding, places, runtime, spread, tracking, vitals
from cataloger.infra.storage import check_conditional, check_writable, locate
from cataloger.labeling.call import Call
from cataloger.labeling.cost import Cost
from cataloger.labeling.order import found_by_parts
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import ASKED_AGAIN, Reading
from cataloger.labeling.result import LabelResult
from cataloger.labeling.writing import label_units
from cataloger.model import registry
from cataloger.model.ensemble import fetch_models
from cataloger.publishing import decided, delivery, doubts, fitness, nightly, pointer, sketches, snapshot
from cataloger.publishing.decided import Decided
from cataloger.publishing.doubts import Origin
from cataloger.publishing.nightly import Night
from cataloger.publishing.parts import REJECTS, Part, finished_parts

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
    decisive += [(*given.digests, deciding.digest_of_decisions())] if any(given.digests) else []
    inputs = snapshot.run_id(*decisive)
    published = pointer.published(output, seen)
    # Anew is a run of its own for each run that it replaces: the same command after a crash goes on with it.
    run = pointer.choose(output, snapshot.run_id(*decisive, "anew", seen.run) if config.anew else inputs, seen)
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
        return _publish_again(night)
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
            people = _decided(night, len(units), parts.values())
            result = _result(night, units, parts, cost, mlflow_run, people)
            repeated = {"repeated_ids": ids.count_repeated(samples, every), "repeated_ids_are_estimated": every > 1}
            about |= {"images": dict(result.images)} if spec.picture else {}
            about |= {"decisions": people.as_dict()} if people else {}
            about |= {**repeated, "libraries": deciding.libraries(), "mlflow_run": mlflow_run, "config": asdict(config)}
            rejected = {unit: part.rejects for unit, part in parts.items()}
            origin = Origin(catalog, units, rejected, input_of(spec, source.folder, catalog.base))
            _publish(night, origin, parts, about, result)
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


def _publish(night: Call, origin: Origin, parts: dict[int, Part], about: dict[str, Any], result: LabelResult) -> None:
    """Publish what is fit to be, and make the page of the night in any case. Raises PublishError."""
    found = _look(night, len(origin.units), parts.values(), result)
    try:
        fitness.check_pictures(night.run, parts.values(), night.config)
        fitness.check_rejects(night.run, parts.values(), night.config, str(night.folder / REJECTS))
        if night.spec.words:
            fitness.check_tiers(night.run, parts.values(), night.spec.words.agreement, night.config)
        fitness.check_drift(found, night.config)
        decided.keep(
            night.folder,
            night.given.pins.table if night.given.pins else None,
            night.given.rules.written if night.given.rules else None,
        )
        sketches.keep(night.folder, parts)
        snapshot.write_manifest(night.output, night.run, origin.units, parts, about)
        pointer.publish(night.output, night.run, night.seen)
        pointer.follow(night.output, night.config.publish_to)
    except PublishError:
        try:
            _report(night, found, result, origin)
        except Exception:
            # What a person must read is why the labels are held back, whatever the page fails at.
            log.warning("the page of run %s could not be made", night.run, exc_info=True)
        raise
    # After the labels are published: a page that cannot be drawn costs none.
    _report(night, found, result, origin)
    delivery.deliver(night.output)


def _look(night: Call, units: int, parts: Collection[Part], result: LabelResult) -> Night:
    """What this run did, beside the published one."""
    found = nightly.look(
        night.output, night.run, units, result.rows, parts, night.published, night.model_digest, spread.each
    )
    tracking.log_metrics(found.metrics)
    return found


def _report(night: Call, found: Night, result: LabelResult, origin: Origin) -> None:
    """A page of it in the run's folder and in MLflow."""
    try:
        products = doubts.products(found.now.doubts, night.folder, origin)
    except Exception:  # whatever it fails at: the page is of use without them
        log.warning("the least certain products of run %s could not be looked up", night.run, exc_info=True)
        products = None
    about = {"catalog": night.config.catalog, "model": night.model}
    page = nightly.page(found, about, result.figures(), products, result.decided)
    (night.folder / snapshot.REPORT).write(page.encode())
    tracking.log_text(page, "night.html")


def _publish_again(night: Call) -> LabelResult:
    """The run is complete: nothing to compute, only the pointer may need turning."""
    manifest = snapshot.read_manifest(night.output, night.run)
    if night.seen.run != night.run:
        units, rows = manifest["units"], manifest["rows"]
        found = nightly.look(night.output, night.run, units, rows, (), night.published, night.model_digest)
        fitness.check_drift(found, night.config)
        pointer.publish(night.output, night.run, night.seen)
    log.info("run %s is complete: the same rows, model and settings; nothing to label", night.run)
    pointer.follow(night.output, night.config.publish_to)
    delivery.deliver(night.output)
    rows, labelled, rejects = (int(manifest[key]) for key in ("rows", "labelled", "rejects"))
    seconds = time.monotonic() - night.started
    return LabelResult(night.run, str(night.output), rows, labelled, rejects, Cost(), seconds, None)


def _decided(night: Call, units: int, parts: Collection[Part]) -> Decided | None:
    """What pins and rules did, where there are any."""
    given = night.given
    if not given.pins and not given.rules:
        return None
    rules = [(rule.name, rule.action) for rule in given.rules.rules] if given.rules else []
    effects, pinned = decided.effects(rules, parts)
    if not given.pins:
        return Decided(rules=effects)
    unknown = decided.unknown_ids(night.folder, units, given.pins.table.column("id").combine_chunks())
    if unknown:
        log.warning(
            "--pins %s: the catalog has no product with the id of %s of %s pins, the first is %s",
            night.config.pins,
            f"{len(unknown):,}",
            f"{len(given.pins.table):,}",
            unknown[0],
        )
    return Decided(
        len(given.pins.table),
        given.pins.repeated,
        len(unknown),
        tuple(unknown[: decided.SHOWN_IDS]),
        pinned["decided"],
        pinned["conflicts"],
        effects,
    )


def _result(
    night: Call,
    units: Sequence[Unit],
    parts: dict[int, Part],
    cost: Cost,
    mlflow_run: str | None,
    people: Decided | None,
) -> LabelResult:
    return LabelResult(
        run=night.run,
        output=str(night.output),
        rows=sum(unit.rows for unit in units),
        labelled=sum(part.rows for part in parts.values()),
        rejects=sum(part.rejects for part in parts.values()),
        cost=cost,
        seconds=time.monotonic() - night.started,
        mlflow_run=mlflow_run,
        images=sum((Counter(part.images) for part in parts.values()), Counter()),
        decided=people,
    )
