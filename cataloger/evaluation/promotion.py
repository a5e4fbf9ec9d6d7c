"""Whether a challenger may replace the champion: better on the chosen score, and on no guard significantly worse; and that it does."""

from collections.abc import Sequence

from cataloger.errors import ConfigError
from cataloger.evaluation.comparison import Check, Comparison, Decision, Pair, side_by_side
from cataloger.evaluation.contenders import Contender
from cataloger.evaluation.fairness import LEAST_ROWS, SIGNIFICANT
from cataloger.evaluation.predictions import Predictions
from cataloger.evaluation.significance import LOWER_IS_BETTER, Difference
from cataloger.model import registry

# In place of a score: how long a text takes, for models that were made to be cheaper.
SPEED = "speed"
# What it may take at most of the time: less is what two rounds of one model differ by.
FASTER = 0.95
GUARDS = ("accuracy", "tail-macro-f1", "calibration-error")


def without_comparison(found: Sequence[Contender]) -> Comparison | None:
    """Where the name has no champion yet, there is nothing to compare with: the first one named is promoted."""
    name, version = _registered(found[0])
    if registry.champion(name) is not None:
        return None
    note = f"promoted without comparison: {name} had no champion"
    registry.promote(name, version, note, None)
    decision = Decision(f"models:/{name}/{version}", (note,))
    return Comparison((found[0].name,), side_by_side(found[:1]), decision=decision)


def check_contenders(found: Sequence[Contender]) -> None:
    """All must be versions of one model, and the first its champion. Raises ConfigError."""
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


def check_rows(said: Sequence[Predictions], names: Sequence[str]) -> None:
    """No model may have been trained on the rows. Raises ConfigError."""
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


def decide(challengers: Sequence[Contender], pairs: Sequence[Pair], metric: str) -> Decision:
    """For the best challenger, by the metric, of those that passed every check."""
    passed = [place for place, pair in enumerate(pairs) if all(one.passed for one in pair.checks)]
    reasons = [reason for pair in pairs for reason in _reasons(pair)]
    if not passed:
        return Decision(None, (f"not promoted: {pairs[0].first} stays champion", *reasons))
    best = max(passed, key=lambda place: gain(pairs[place], metric))
    return Decision(challengers[best].model, (f"promoted: {pairs[best].second} by {metric}", *reasons))


def _reasons(pair: Pair) -> list[str]:
    return [f"{pair.second} {'passed' if one.passed else 'failed'} {one.reason}" for one in pair.checks]


def carry_out(decision: Decision, found: Sequence[Contender], pairs: Sequence[Pair]) -> None:
    """The reasons go to every challenger's version, the alias to the one that was chosen. Raises TrackingError."""
    champion, told = _registered(found[0])[1], set[str]()
    for challenger, pair in zip(found[1:], pairs, strict=True):
        name, version = _registered(challenger)
        if version in told:  # named twice, such as by its alias and its number
            continue
        told.add(version)
        outcome = decision.reasons[0]
        if challenger.model == decision.promoted:
            registry.promote(name, version, "\n".join([outcome, *_reasons(pair)]), champion)
        else:
            outcome = outcome if decision.promoted is None else f"not promoted; {outcome}"
            registry.note(name, version, "\n".join([outcome, *_reasons(pair)]))


def check_metric(pairs: Sequence[Pair], metric: str) -> None:
    """Raises ConfigError where the models have no such score."""
    for pair in pairs if metric != SPEED else ():
        keys = [difference.key for difference in pair.differences]
        if metric not in keys:
            raise ConfigError(f"--metric {metric}: these models have no such score; choose one of {', '.join(keys)}")


def gain(pair: Pair, metric: str) -> float:
    """By how much the challenger is better."""
    if metric == SPEED:
        return 1 - (pair.slowdown or 1.0)
    (chosen,) = (difference for difference in pair.differences if difference.key == metric)
    return -chosen.by if chosen.name in LOWER_IS_BETTER else chosen.by


def check(pair: Pair, metric: str, max_slowdown: float) -> list[Check]:
    """Every condition, the metric first."""
    by_key = {difference.key: difference for difference in pair.differences}
    if metric == SPEED:
        took = pair.slowdown or 1.0
        checks = [Check(took <= FASTER, f"speed: {took:.2f} times the time per text, it may be {FASTER:g}")]
    else:
        chosen = by_key[metric]
        by_chance = "" if chosen.better or chosen.worse else ", which may be chance"
        checks = [Check(gain(pair, metric) > 0, f"{chosen.name}: {_shown(chosen)}{by_chance}")]
    checks += [
        Check(not by_key[name].worse, f"guard {by_key[name].name}: {_shown(by_key[name])}, {by_key[name].verdict}")
        for name in GUARDS
    ]
    checks += _protected(pair)
    if pair.slowdown is None or metric == SPEED:
        return checks
    speed = f"guard speed: {pair.slowdown:.2f} times the time per text, the limit is {max_slowdown:g}"
    return [*checks, Check(pair.slowdown <= max_slowdown, speed)]


def _protected(pair: Pair) -> list[Check]:
    """For each column whose groups are protected, whether none is significantly worse."""
    checks = []
    for column in pair.protect:
        own = [one for one in pair.protected if one.group == column]
        if not own:
            reason = f"guard {column}: no group has {LEAST_ROWS} products, so that none can be judged; evaluate on more of them"
            checks.append(Check(False, reason))
            continue
        worse = [one for one in own if one.accuracy.by < 0 and one.p_value < SIGNIFICANT]
        if not worse:
            checks.append(
                Check(
                    True,
                    f"guard {column}: none of the {len(own):,} groups of {LEAST_ROWS} products or more is significantly worse",
                )
            )
            continue
        worst = min(worse, key=lambda one: one.p_value)
        more = f", and {len(worse) - 1:,} more" if len(worse) > 1 else ""
        checks.append(
            Check(
                False,
                f"guard {column}: {worst.accuracy.name} is worse, {worst.accuracy.first:.4f} → {worst.accuracy.second:.4f} on "
                f"{worst.rows:,} products (p {worst.p_value:.1g}){more}",
            )
        )
    return checks


def _shown(difference: Difference) -> str:
    return (
        f"{difference.first:.4f} → {difference.second:.4f} "
        f"({difference.by:+.4f}, 95% interval {difference.low:+.4f} to {difference.high:+.4f})"
    )
