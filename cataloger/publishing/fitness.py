"""Are tonight's labels fit to be published? The last checks before they replace the published ones."""

import logging
from collections.abc import Collection

from cataloger.config import LabelConfig
from cataloger.errors import PublishError
from cataloger.publishing.decided import rejected_by_rules
from cataloger.publishing.nightly import Night
from cataloger.publishing.parts import Part

log = logging.getLogger(__name__)
# That words and network agree so seldom by chance, if the certificate still held.
BY_CHANCE = 0.001


def check_rejects(run: str, parts: Collection[Part], config: LabelConfig, where: str) -> None:
    """Raises PublishError when more rows were rejected than may be; `where` are the reasons."""
    rejects, labelled = sum(part.rejects for part in parts), sum(part.rows for part in parts)
    rows, limit = rejects + labelled, config.max_reject_fraction
    rejects -= rejected_by_rules(parts)  # as people want it
    if rejects > limit * rows:
        raise PublishError(
            f"run {run}: {rejects:,} of {rows:,} rows were rejected ({rejects / rows:.1%}, the limit is {limit:.1%}); "
            f"not published. The reasons are in {where}; if they are as they should be, "
            "run again with a higher --max-reject-fraction: nothing is labelled twice"
        )


def check_pictures(run: str, parts: Collection[Part], config: LabelConfig) -> None:
    """Hold back labels that were given without pictures that are there. Raises PublishError."""
    unreachable, rows = sum(part.unreachable for part in parts), sum(part.rows + part.rejects for part in parts)
    limit = config.max_reject_fraction
    if unreachable > limit * rows:
        raise PublishError(
            f"run {run}: the pictures of {unreachable:,} of {rows:,} rows could not be reached ({unreachable / rows:.1%}, the limit is "
            f"{limit:.1%}); not published. When the servers answer that have them, run the same command again: it labels those units "
            "again, and no others. To publish these labels, run again with a higher --max-reject-fraction"
        )


def check_drift(found: Night, config: LabelConfig) -> None:
    """Hold back a run that lacks too many of the published products, or differs too much from a run of the same model.

    Raises PublishError.
    """
    drift = found.drift
    if drift is None:
        return
    log.info("against published run %s: %s", found.before_run, drift)
    if config.publish_anyway:
        return
    held = f"run {found.run} is held back, readers keep run {found.before_run}"
    anyway = "if this is as it should be, run again with --publish-anyway: nothing is labelled twice"
    if drift.missing > config.max_missing_fraction:
        sampled = "" if drift.every == 1 else f" in a sample of one in {drift.every:,}"
        raise PublishError(
            f"{held}: of the {drift.known:,} products{sampled} that have a label there, {drift.lost:,} have none now, or more than one "
            f"({drift.missing:.1%}), and only {drift.compared:,} can be compared. The limit is --max-missing-fraction "
            f"{config.max_missing_fraction}; {anyway}"
        )
    if found.same_model and drift.worst > config.max_changed_fraction:
        raise PublishError(
            f"{held}: {drift}. The limit is --max-changed-fraction {config.max_changed_fraction}; {anyway}"
        )


def check_tiers(run: str, parts: Collection[Part], agreement: float, config: LabelConfig) -> None:
    """Hold back a run whose words and network agree less often than the model's certificate says: the catalog is another one.

    Raises PublishError.
    """
    from scipy.stats import binom

    checked, agreed = sum(part.checked for part in parts), sum(part.agreed for part in parts)
    if config.publish_anyway or not checked or binom.cdf(agreed, checked, agreement) >= BY_CHANCE:
        return
    raise PublishError(
        f"run {run} is held back: of {checked:,} products that words answered alone, the network was asked as well, and says the "
        f"same of {agreed:,} ({agreed / checked:.1%}); when the model was trained it was {agreement:.1%} at least. The catalog has "
        "other products now: train the model again, or label with --tiers off; --publish-anyway publishes these labels"
    )


def check_not_withdrawn(run: str, when: str | None, now: str | None, config: LabelConfig) -> None:
    """`when` a person replaced labels of just these inputs by those of the run that is published `now`, if ever.

    Raises PublishError.
    """
    if when is not None and not (config.publish_anyway or config.anew):
        raise PublishError(
            f"run {run} was replaced by hand on {when[:16].replace('T', ' ')} and is not published again: catalog, model and settings are "
            f"the same. Readers keep run {now}; to publish these labels after all, run again with --publish-anyway, or with --anew to "
            "label every row again first"
        )
