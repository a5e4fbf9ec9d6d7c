"""The labelling job: plan, stream, check, publish."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cataloger.bundle import digest, read_spec
from cataloger.config import LabelConfig
from cataloger.data import ids
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.inputs import input_of
from cataloger.data.units import Unit, plan_units
from cataloger.errors import ConfigError, PublishError, TrackingError
from cataloger.explaining import occlusion as explaining
from cataloger.explaining.words import MOST_UNITS
from cataloger.infra import deciding, places, runtime, tracking, vitals
from cataloger.infra.storage import Location, check_writable, locate
from cataloger.labeling.cost import Cost
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import ASKED_AGAIN, Reading
from cataloger.labeling.result import LabelResult
from cataloger.labeling.reuse import Published
from cataloger.labeling.writing import label_units
from cataloger.model import registry
from cataloger.model.ensemble import fetch_models
from cataloger.publishing import doubts, fitness, nightly, pointer, snapshot
from cataloger.publishing.doubts import Origin
from cataloger.publishing.nightly import Night
from cataloger.publishing.parts import REJECTS, Part, finished_parts
from cataloger.spec import Words

log = logging.getLogger(__name__)
# Part of every run id: raised when the same catalog would be cut into other units or its parts be written otherwise.
LAYOUT = 5


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
    catalog = open_catalog(config.catalog, config.id_column, spec.text_columns, picture=spec.picture)
    model_digest = digest(source.folder)
    check_writable(output)
    seen = pointer.look(output)
    decisive = [LAYOUT, catalog.fingerprint, model_digest, config.id_column, spec.text_columns, config.alternatives]
    decisive += [
        config.precision,
        config.tiers,
        deciding.digest(config.explain > 0),
        *([spec.picture.column] if spec.picture else []),
    ]
    decisive += [("explain", config.explain)] if config.explain else []
    inputs = snapshot.run_id(*decisive)
    published = pointer.published(output, seen)
    # Anew is a run of its own for each run that it replaces: the same command after a crash goes on with it.
    run = pointer.choose(output, snapshot.run_id(*decisive, "anew", seen.run) if config.anew else inputs, seen)
    if published and published.get("inputs") == inputs and not config.anew:
        run = published["run"]  # it may have been labelled anew
    else:
        fitness.check_not_withdrawn(run, seen.withdrawn.get(inputs), seen.run, config)
    night = _Night(
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
        spec.words,
        spec.tags,
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
                published=_to_carry_over(night),
                asked_again=ASKED_AGAIN,
                alternatives=config.alternatives,
                explain=config.explain,
            )
            todo = [unit for unit in units if unit.index not in parts]
            cost = Cost()
            about_part = {"run": run, **night.decided_by}
            for part, sample, spent in label_units(
                reading, model, todo, shape, config.precision, night.folder, about_part, every
            ):
                parts[part.unit] = part
                samples.append(sample)
                cost += spent
            snapshot.check_complete(run, units, parts)
            result = _result(night, units, parts, cost, mlflow_run)
            repeated = {"repeated_ids": ids.count_repeated(samples, every), "repeated_ids_are_estimated": every > 1}
            about |= {"images": dict(result.images)} if spec.picture else {}
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


@dataclass(frozen=True)
class _Night:
    """One call of the job: what is to be done, where, and what stood there when it began."""

    config: LabelConfig
    output: Location
    run: str
    inputs: str
    """The run's id, but where these rows are labelled anew or such a run was pruned."""
    seen: pointer.Seen
    published: dict[str, Any] | None
    """The manifest of the published run."""
    catalog_fingerprint: str
    model: str
    model_digest: str
    started: float
    words: Words | None
    tags: bool

    @property
    def folder(self) -> Location:
        return snapshot.run_folder(self.output, self.run)

    @property
    def decided_by(self) -> dict[str, str]:
        return {
            "inputs": self.inputs,
            "catalog_fingerprint": self.catalog_fingerprint,
            "model_digest": self.model_digest,
            "code_digest": deciding.digest(self.config.explain > 0),
        }


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


def _to_carry_over(night: _Night) -> Published | None:
    """The published run, where the same code and model made it with the same settings: equal texts have equal labels."""
    before, config = night.published, night.config
    if before is None or config.anew:
        return None
    alike = all(before["config"].get(name) == getattr(config, name) for name in ("alternatives", "precision", "tiers"))
    alike &= before["config"].get("explain", 0) == config.explain
    alike &= all(before.get(name) == night.decided_by[name] for name in ("model_digest", "code_digest"))
    if night.tags:  # which say the names of the columns that they are in
        alike &= tuple(before["config"].get("text_columns") or ()) == tuple(config.text_columns or ())
    if not alike or not before["labelled"]:
        return None
    folder = snapshot.run_folder(night.output, before["run"])
    return Published(before["run"], folder, before["units"], before["labelled"], config.alternatives, config.explain)


def _publish(night: _Night, origin: Origin, parts: dict[int, Part], about: dict[str, Any], result: LabelResult) -> None:
    """Publish what is fit to be, and make the page of the night in any case. Raises PublishError."""
    found = _look(night, len(origin.units), parts.values(), result)
    try:
        fitness.check_pictures(night.run, parts.values(), night.config)
        fitness.check_rejects(night.run, parts.values(), night.config, str(night.folder / REJECTS))
        if night.words:
            fitness.check_tiers(night.run, parts.values(), night.words.agreement, night.config)
        fitness.check_drift(found, night.config)
        snapshot.write_manifest(night.output, night.run, origin.units, parts, about)
        pointer.publish(night.output, night.run, night.seen)
    except PublishError:
        try:
            _report(night, found, result, origin)
        except Exception:
            # What a person must read is why the labels are held back, whatever the page fails at.
            log.warning("the page of run %s could not be made", night.run, exc_info=True)
        raise
    # After the labels are published: a page that cannot be drawn costs none.
    _report(night, found, result, origin)


def _look(night: _Night, units: int, parts: Collection[Part], result: LabelResult) -> Night:
    """What this run did, beside the published one."""
    found = nightly.look(night.output, night.run, units, result.rows, parts, night.published, night.model_digest)
    tracking.log_metrics(found.metrics)
    return found


def _report(night: _Night, found: Night, result: LabelResult, origin: Origin) -> None:
    """A page of it in the run's folder and in MLflow."""
    try:
        products = doubts.products(found.now.doubts, night.folder, origin)
    except Exception:  # whatever it fails at: the page is of use without them
        log.warning("the least certain products of run %s could not be looked up", night.run, exc_info=True)
        products = None
    about = {"catalog": night.config.catalog, "model": night.model}
    page = nightly.page(found, about, result.figures(), products)
    (night.folder / snapshot.REPORT).write(page.encode())
    tracking.log_text(page, "night.html")


def _publish_again(night: _Night) -> LabelResult:
    """The run is complete: nothing to compute, only the pointer may need turning."""
    manifest = snapshot.read_manifest(night.output, night.run)
    if night.seen.run != night.run:
        units, rows = manifest["units"], manifest["rows"]
        found = nightly.look(night.output, night.run, units, rows, (), night.published, night.model_digest)
        fitness.check_drift(found, night.config)
        pointer.publish(night.output, night.run, night.seen)
    log.info("run %s is complete: the same rows, model and settings; nothing to label", night.run)
    rows, labelled, rejects = (int(manifest[key]) for key in ("rows", "labelled", "rejects"))
    seconds = time.monotonic() - night.started
    return LabelResult(night.run, str(night.output), rows, labelled, rejects, Cost(), seconds, None)


def _result(
    night: _Night, units: Sequence[Unit], parts: dict[int, Part], cost: Cost, mlflow_run: str | None
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
    )
