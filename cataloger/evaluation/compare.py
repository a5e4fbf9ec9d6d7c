"""The comparison job: find the contenders, compare them on the same rows, promote the better one if it may be."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from cataloger.bundle import read_spec
from cataloger.config import CompareConfig, EvaluateConfig
from cataloger.errors import ConfigError
from cataloger.evaluation import contenders, promotion
from cataloger.evaluation.comparison import Comparison, Decision, Pair, compare_predictions, side_by_side
from cataloger.evaluation.comparison_page import comparison_page
from cataloger.evaluation.contenders import Contender
from cataloger.evaluation.evaluate import evaluate
from cataloger.evaluation.impact import effects
from cataloger.evaluation.race import seconds_per_text
from cataloger.evaluation.significance import Difference
from cataloger.infra import runtime, tracking
from cataloger.infra.storage import check_writable, locate
from cataloger.model import registry
from cataloger.model.ensemble import SEVERAL
from cataloger.spec import prefix_of

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
    if config.promote and found and (alone := promotion.without_comparison(found)):
        return alone
    if len(found) < 2:
        raise ConfigError("name at least two runs or models to compare")
    if config.promote:
        promotion.check_contenders(found)
        if all(one.version == found[0].version for one in found):
            reason = f"not promoted: {found[-1].name} is the champion already"
            return Comparison(names[:1], side_by_side(found[:1]), decision=Decision(None, (reason,)))
    check_writable(locate(config.report).parent)
    races = config.promote or config.metric == promotion.SPEED
    needs_models = bool(config.evaluate or config.catalog or races)
    for one in found:
        if needs_models and one.model is None:
            raise ConfigError(f"{one.name}: this run has no model; name one that does")
        if needs_models and SEVERAL in str(one.model):
            raise ConfigError(f"{one.name}: this run is of several models together ({one.model}); name one of them")
        if not needs_models and not one.evaluations:
            log.warning("not evaluated: %s; add --evaluate CATALOG to compare row by row", one.name)
            return Comparison(names, side_by_side(found))
    tags = {"model": str(found[0].model), "challengers": ", ".join(str(one.model) for one in found[1:])}
    with runtime.session() if needs_models else contextlib.nullcontext():
        if config.evaluate:
            found = [_evaluate(one, config.evaluate, config) for one in found]
        found, said = contenders.common_evaluation(found)
        with tracking.run("compare", " and ".join(names), config, None, tags) as run_id:
            pairs = [
                compare_predictions(said[0], other, (names[0], name), config.protect)
                for other, name in zip(said[1:], names[1:], strict=True)
            ]
            promotion.check_metric(pairs, config.metric)
            sources = [registry.fetch_model(str(one.model)) for one in found] if needs_models else []
            if config.promote:
                promotion.check_rows(said, names)
            if races:
                first, *others = seconds_per_text(
                    sources, said[0].about, config.text_columns, config.image_column, use_gpu=config.use_gpu
                )
                pairs = [replace(pair, slowdown=other / first) for pair, other in zip(pairs, others, strict=True)]
            if config.catalog:
                changes = effects(
                    config.catalog,
                    config.id_column,
                    config.text_columns,
                    config.image_column,
                    sources,
                    use_gpu=config.use_gpu,
                )
                pairs = [replace(pair, effect=change) for pair, change in zip(pairs, changes, strict=True)]
            pairs = [
                replace(pair, checks=tuple(promotion.check(pair, config.metric, config.max_slowdown))) for pair in pairs
            ]
            decision = promotion.decide(found[1:], pairs, config.metric) if config.promote else None
            result = Comparison(names, side_by_side(found), tuple(pairs), decision, run_id)
            page = comparison_page(result, said)
            if decision:
                # When all else is ready, and before anybody is told.
                promotion.carry_out(decision, found, pairs)
                tracking.log_text("\n".join(decision.reasons), "decision.txt")
            tracking.log_text(page, "comparison.html")
            tracking.log_metrics(_metrics(pairs))
            locate(config.report).write(page.encode())
    return result


def _evaluate(contender: Contender, catalog: str, config: CompareConfig) -> Contender:
    """With a new evaluation on the given catalog, and no other."""
    sees = config.image_column and read_spec(registry.fetch_model(str(contender.model)).folder).picture
    image_column = config.image_column if sees else None
    result = evaluate(
        EvaluateConfig(
            catalog=catalog,
            model=(str(contender.model),),
            id_column=config.id_column,
            text_columns=config.text_columns,
            image_column=image_column,
            label_column=config.label_column,
            split=config.split,
            slice_columns=tuple(dict.fromkeys((*config.slice_columns, *config.protect))),
            use_gpu=config.use_gpu,
            experiment=config.experiment,
        )
    )
    return replace(contender, evaluations=(tracking.find_run(result.mlflow_run),))


def _metrics(pairs: Sequence[Pair]) -> dict[str, float]:
    """Of the first pair by plain names, of further ones with their number."""
    found: dict[str, float] = {}
    for number, pair in enumerate(pairs, 1):
        after = f"_{number}" if number > 1 else ""
        for difference in pair.differences:
            found |= _difference(difference.key, difference, after)
        for other in pair.others:
            for difference in other.differences:
                found |= _difference(prefix_of(other.answer) + difference.key, difference, after)
        found |= {f"mcnemar_p{after}": pair.mcnemar.p_value, f"rows{after}": pair.rows}
        if pair.slowdown is not None:
            found[f"slowdown{after}"] = pair.slowdown
        if pair.effect:
            found[f"catalog_changed{after}"] = pair.effect.changed
            found[f"review_share{after}"] = pair.effect.review_after
    return found


def _difference(key: str, difference: Difference, after: str) -> dict[str, float]:
    name = key.replace("-", "_")
    bounds = {f"{name}_low{after}": difference.low, f"{name}_high{after}": difference.high}
    return {f"{name}_difference{after}": difference.by, **bounds}
