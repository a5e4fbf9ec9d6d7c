"""How a night ends: its labels are compared with the published ones, published if they are fit to be, and shown."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from cataloger.data.units import Unit
from cataloger.errors import PublishError
from cataloger.infra import spread, tracking
from cataloger.labeling.call import Call
from cataloger.labeling.cost import Cost
from cataloger.labeling.result import LabelResult
from cataloger.publishing import decided, delivery, doubts, fitness, nightly, pointer, sketches, snapshot
from cataloger.publishing.decided import Decided
from cataloger.publishing.doubts import Origin
from cataloger.publishing.nightly import Night
from cataloger.publishing.parts import REJECTS, Part

log = logging.getLogger(__name__)


def publish(night: Call, origin: Origin, parts: dict[int, Part], about: dict[str, Any], result: LabelResult) -> None:
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
    # After the labels are published: a page that cannot be drawn costs none, and no delivery.
    try:
        _report(night, found, result, origin)
    finally:
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


def publish_again(night: Call) -> LabelResult:
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


def decided_by_people(night: Call, units: int, parts: Collection[Part]) -> Decided | None:
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


def result_of(
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
