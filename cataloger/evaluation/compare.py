"""The comparison job: find the contenders, compare them on the same rows, and promote the better one if it may be."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from cataloger.config import CompareConfig, EvaluateConfig
from cataloger.errors import ConfigError
from cataloger.evaluation import contenders, promotion
from cataloger.evaluation.comparison import Comparison, Decision, Pair, compare_predictions, side_by_side
from cataloger.evaluation.comparison_page import comparison_page
from cataloger.evaluation.contenders import Contender
from cataloger.evaluation.evaluate import evaluate
from cataloger.evaluation.impact import effects
from cataloger.evaluation.predictions import Predictions
from cataloger.evaluation.race import seconds_per_text
from cataloger.infra import runtime, tracking
from cataloger.infra.storage import check_writable, locate
from cataloger.model import registry

log = logging.getLogger(__name__)


def rollback(model_name: str) -> tuple[str, str]:
    """(the version that is champion again, the one that was until now). Raises CatalogerError."""
    tracking.connect()
    with tracking.answering():
        return registry.rollback(model_name)


def compare(config: CompareConfig) -> Comparison:
    """Raises CatalogerError: an unknown name, models evaluated on different rows, an MLflow that cannot be used."""
    tracking.connect()
    with tracking.answering():
        return _compare(config)


def _compare(config: CompareConfig) -> Comparison:
    found = [contenders.find(name, config.model_name) for name in config.runs]
    names = tuple(one.name for one in found)
    if config.promote and found and (alone := _first_champion(found)):
        return alone
    if len(found) < 2:
        raise ConfigError("name at least two runs or models to compare")
    if config.promote:
        _check_promotion(found)
        if all(one.version == found[0].version for one in found):
            reason = f"not promoted: {found[-1].name} is the champion already"
            return Comparison(names[:1], side_by_side(found[:1]), decision=Decision(None, (reason,)))
    check_writable(locate(config.report).parent)
    needs_models = bool(config.evaluate or config.catalog or config.promote)
    for one in found:
        if needs_models and one.model is None:
            raise ConfigError(f"{one.name}: this run has no model; name one that does")
        if not needs_models and not one.evaluations:
            log.warning("not evaluated: %s; add --evaluate CATALOG to compare row by row", one.name)
            return Comparison(names, side_by_side(found))
    tags = {"model": str(found[0].model), "challengers": ", ".join(str(one.model) for one in found[1:])}
    with runtime.session() if needs_models else contextlib.nullcontext():
        if config.evaluate:
            found = [_evaluate(one, config.evaluate, config) for one in found]
        said = contenders.common_evaluation(found)
        with tracking.run("compare", " and ".join(names), config, None, tags) as run_id:
            pairs = [
                compare_predictions(said[0], other, (names[0], name))
                for other, name in zip(said[1:], names[1:], strict=True)
            ]
            sources = [registry.fetch_model(str(one.model)) for one in found] if needs_models else []
            if config.promote:
                _check_rows(said, names)
                first, *others = seconds_per_text(sources, said[0].about, config.text_columns, use_gpu=config.use_gpu)
                pairs = [replace(pair, slowdown=other / first) for pair, other in zip(pairs, others, strict=True)]
            if config.catalog:
                changes = effects(
                    config.catalog, config.id_column, config.text_columns, sources, use_gpu=config.use_gpu
                )
                pairs = [replace(pair, effect=change) for pair, change in zip(pairs, changes, strict=True)]
            pairs = [
                replace(pair, checks=tuple(promotion.check(pair, config.metric, config.max_slowdown))) for pair in pairs
            ]
            decision = _decide(found[1:], pairs, config.metric) if config.promote else None
            result = Comparison(names, side_by_side(found), tuple(pairs), decision, run_id)
            page = comparison_page(result, said)
            if decision:
                # When all else is ready, and before anybody is told.
                _carry_out(decision, found, pairs)
                tracking.log_text("\n".join(decision.reasons), "decision.txt")
            tracking.log_text(page, "comparison.html")
            tracking.log_metrics(_metrics(pairs))
            locate(config.report).write(page.encode())
    return result


def _evaluate(contender: Contender, catalog: str, config: CompareConfig) -> Contender:
    """With a new evaluation on the given catalog, and no other."""
    result = evaluate(
        EvaluateConfig(
            catalog=catalog,
            model=str(contender.model),
            id_column=config.id_column,
            text_columns=config.text_columns,
            label_column=config.label_column,
            split=config.split,
            slice_columns=config.slice_columns,
            use_gpu=config.use_gpu,
            experiment=config.experiment,
        )
    )
    return replace(contender, evaluations=(tracking.find_run(result.mlflow_run),))


def _first_champion(found: Sequence[Contender]) -> Comparison | None:
    """Where the name has no champion yet, there is nothing to compare with: the first one named is promoted."""
    name, version = _registered(found[0])
    if registry.champion(name) is not None:
        return None
    note = f"promoted without comparison: {name} had no champion"
    registry.promote(name, version, note, None)
    decision = Decision(f"models:/{name}/{version}", (note,))
    return Comparison((found[0].name,), side_by_side(found[:1]), decision=decision)


def _check_promotion(found: Sequence[Contender]) -> None:
    """That all are versions of one model, and the first is its champion."""
    name, version = _registered(found[0])
    for other in found[1:]:
        if _registered(other)[0] != name:
            raise ConfigError(f"--promote: {other.name} is not a version of {name}, and cannot be its champion")
        if when := registry.rolled_back(*_registered(other)):
            raise ConfigError(
                f"--promote: {other.name} was champion and was rolled back on {when}; train another one, or move the alias by hand in MLflow"
            )
    now = registry.champion(name)
    if now != version:
        raise ConfigError(f"--promote: the champion of {name} is version {now}; name it first, then its challengers")


def _check_rows(said: Sequence[Predictions], names: Sequence[str]) -> None:
    for one, name in zip(said, names, strict=True):
        if one.about.knows_the_answers:
            raise ConfigError(
                f"--promote: {name} was trained on {one.about.seen:.0%} of the rows of {one.about.catalog} and knows their answers; "
                "--evaluate another catalog, or train with --test-fraction and compare with --split test"
            )


def _registered(contender: Contender) -> tuple[str, str]:
    """(name, version)"""
    if contender.version is None:
        raise ConfigError(
            f"--promote: {contender.name} is not a registered model; name a version, an alias or a training run"
        )
    return contender.version


def _decide(challengers: Sequence[Contender], pairs: Sequence[Pair], metric: str) -> Decision:
    """For the best challenger, by the metric, of those that passed every check."""
    passed = [place for place, pair in enumerate(pairs) if all(check.passed for check in pair.checks)]
    reasons = [reason for pair in pairs for reason in _reasons(pair)]
    if not passed:
        return Decision(None, (f"not promoted: {pairs[0].first} stays champion", *reasons))
    best = max(passed, key=lambda place: promotion.gain(pairs[place], metric))
    return Decision(challengers[best].model, (f"promoted: {pairs[best].second} by {metric}", *reasons))


def _reasons(pair: Pair) -> list[str]:
    return [f"{pair.second} {'passed' if check.passed else 'failed'} {check.reason}" for check in pair.checks]


def _carry_out(decision: Decision, found: Sequence[Contender], pairs: Sequence[Pair]) -> None:
    """The reasons go to every challenger's version, the alias to the one that was chosen. Raises TrackingError."""
    champion = _registered(found[0])[1]
    for challenger, pair in zip(found[1:], pairs, strict=True):
        name, version = _registered(challenger)
        outcome = decision.reasons[0]
        if challenger.model == decision.promoted:
            registry.promote(name, version, "\n".join([outcome, *_reasons(pair)]), champion)
        else:
            outcome = outcome if decision.promoted is None else f"not promoted; {outcome}"
            registry.note(name, version, "\n".join([outcome, *_reasons(pair)]))


def _metrics(pairs: Sequence[Pair]) -> dict[str, float]:
    """Of the first pair by plain names, of further ones with their number."""
    found: dict[str, float] = {}
    for number, pair in enumerate(pairs, 1):
        after = f"_{number}" if number > 1 else ""
        for difference in pair.differences:
            name = difference.key.replace("-", "_")
            found |= {f"{name}_difference{after}": difference.by, f"{name}_low{after}": difference.low}
            found[f"{name}_high{after}"] = difference.high
        found |= {f"mcnemar_p{after}": pair.mcnemar.p_value, f"rows{after}": pair.rows}
        if pair.slowdown is not None:
            found[f"slowdown{after}"] = pair.slowdown
        if pair.effect:
            found[f"catalog_changed{after}"] = pair.effect.changed
            found[f"review_share{after}"] = pair.effect.review_after
    return found
