"""Whether a challenger may replace the champion: better on the chosen score, and on no guard significantly worse."""

from dataclasses import dataclass
from typing import Protocol

from cataloger.evaluation.significance import LOWER_IS_BETTER, Difference

GUARDS = ("accuracy", "tail-macro-f1", "calibration-error")


@dataclass(frozen=True)
class Check:
    """One condition of a promotion, and how it came out."""

    passed: bool
    reason: str


class Compared(Protocol):
    """The champion against a challenger, which takes `slowdown` times as long for a text, if that was measured."""

    @property
    def differences(self) -> tuple[Difference, ...]: ...
    @property
    def slowdown(self) -> float | None: ...


def gain(pair: Compared, metric: str) -> float:
    """By how much the challenger is better."""
    (chosen,) = (difference for difference in pair.differences if difference.key == metric)
    return -chosen.by if chosen.name in LOWER_IS_BETTER else chosen.by


def check(pair: Compared, metric: str, max_slowdown: float) -> list[Check]:
    """Every condition, the metric first."""
    by_key = {difference.key: difference for difference in pair.differences}
    chosen = by_key[metric]
    checks = [
        Check(
            gain(pair, metric) > 0,
            f"{chosen.name}: {_shown(chosen)}" + ("" if chosen.better or chosen.worse else ", which may be chance"),
        )
    ]
    checks += [
        Check(not by_key[name].worse, f"guard {by_key[name].name}: {_shown(by_key[name])}, {by_key[name].verdict}")
        for name in GUARDS
    ]
    if pair.slowdown is None:
        return checks
    speed = f"guard speed: {pair.slowdown:.2f} times the time per text, the limit is {max_slowdown:g}"
    return [*checks, Check(pair.slowdown <= max_slowdown, speed)]


def _shown(difference: Difference) -> str:
    return (
        f"{difference.first:.4f} → {difference.second:.4f} "
        f"({difference.by:+.4f}, 95% interval {difference.low:+.4f} to {difference.high:+.4f})"
    )
