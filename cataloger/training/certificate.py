"""Which rows words may answer alone: thresholds whose promise holds with 95% confidence, whatever the rows are like.

Learn then test (Angelopoulos et al. 2021): thresholds are tried from the strictest one on, and the last one before the first
that fails stands. As they are tried in an order that is fixed beforehand, no correction for several tests is needed.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

BoolArray = npt.NDArray[np.bool_]
ERROR = 0.05
# The accuracy that tiers may cost where nobody says how much.
RISK = 0.002
# Probabilities of words, the strictest first.
THRESHOLDS = 1 - np.geomspace(1e-4, 0.6, 40)
# For a smaller share of the rows tiers are not worth their column.
LEAST_ALONE = 0.01
# Where words may answer a share of the rows, they may answer these shares of it as well.
FEWER = (1.0, 0.75, 0.5, 0.25, 0.125)
# A bet puts at most this share of what it has at risk.
STAKE = 0.9


@dataclass(frozen=True)
class Certificate:
    """Words answer alone from the probability `threshold` on, nothing where it is None; `said` is a sentence for people."""

    threshold: float | None
    share: float
    """Of the calibration rows, those that they answer alone."""
    agreement: float
    """Of those, with 95% confidence at least, those of which the joined model says the same."""
    said: str


def certify(
    confidence: npt.NDArray[np.float32],
    by_words: BoolArray,
    by_both: BoolArray,
    same: BoolArray,
    risk: float,
    agreement: float | None,
) -> tuple[Certificate, ...]:
    """What is certified, with the most rows first, then with about three quarters of them, a half and so on; never nothing at all.

    Of N calibration rows: the words' probability, whether words are right, whether both together are, whether they say the same.

    `risk`: the accuracy that tiers may cost at most. `agreement` in its place: the share of the rows that words answer alone of
    which the joined model must say the same.
    """
    order = np.random.default_rng(0).permutation(len(confidence))  # the bets go row by row
    confidence, same = confidence[order], same[order]
    losses = (by_both.astype(np.int64) - by_words)[order]
    passed: list[float] = []
    for threshold in THRESHOLDS:
        chosen = confidence >= np.float32(threshold)
        if agreement is not None:
            enough = least_share(int(same[chosen].sum()), int(chosen.sum())) >= agreement
            if not enough and chosen.sum() < rows_for_agreement(agreement):
                continue  # by their number, not by what they say
        else:
            enough = loses_less(losses * chosen, risk)
        if not enough:
            break
        passed.append(float(threshold))
    promise = (
        f"at least {agreement:.1%} of them have the same category when words and network are asked"
        if agreement is not None
        else f"tiers cost at most {risk:.2%} of accuracy"
    )
    if not passed:
        needed = rows_for_agreement(agreement) if agreement is not None else rows_for_risk(risk)
        return (
            no_tiers(
                f"{len(confidence):,} validation rows do not show that {promise.replace(' of them', ' of the rows')}; "
                f"that takes {needed:,} rows at least, and more where words and network differ"
            ),
        )
    shares = np.array([float((confidence >= np.float32(threshold)).mean()) for threshold in passed])
    if shares[-1] < LEAST_ALONE:
        return (no_tiers(f"words alone could answer less than {LEAST_ALONE:.0%} of the rows"),)
    places = [int(np.searchsorted(shares, share * shares[-1], "right")) - 1 for share in FEWER]
    found = []
    for place in dict.fromkeys(place for place in places if place >= 0 and shares[place] >= LEAST_ALONE):
        alone = confidence >= np.float32(passed[place])
        said = f"words answer {shares[place]:.0%} of the rows alone; with 95% confidence {promise} ({len(confidence):,} validation rows)"
        found.append(
            Certificate(
                passed[place], float(shares[place]), least_share(int(same[alone].sum()), int(alone.sum())), said
            )
        )
    return tuple(found)


def no_tiers(why: str) -> Certificate:
    return Certificate(None, 0.0, 0.0, f"no tiers: {why}")


def loses_less(losses: npt.NDArray[np.int64], risk: float) -> bool:
    """Whether the mean of losses, each -1, 0 or 1 and independent, is below `risk` with 95% confidence.

    A gambler bets row by row that it is not (Waudby-Smith and Ramdas 2024, hedged capital): as long as the mean is `risk` or more,
    nobody ever has twenty times what they began with but in one of twenty cases (Ville 1939).
    """
    if not len(losses):
        return False
    values, mean = (losses + 1) / 2, (risk + 1) / 2
    seen = np.arange(1, len(values) + 1)
    running = (0.5 + np.cumsum(values)) / (seen + 1)
    spread = (0.25 / len(values) + np.cumsum((values - running) ** 2)) / seen
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / ERROR) / (len(values) * before)), _largest(risk))
    capital = np.cumsum(np.log1p(bets * (mean - values)))
    return bool(capital.max() >= math.log(1 / ERROR))


def _largest(risk: float) -> float:
    """Bet: the worst row then costs STAKE of the capital. At a risk of one no row costs any, and it only has to be a number."""
    return STAKE / max((1 - risk) / 2, 1e-3)


def least_share(hits: int, rows: int) -> float:
    """Lower bound of a share, with 95% confidence (Clopper and Pearson 1934)."""
    return float(stats.beta.ppf(ERROR, hits, rows - hits + 1)) if hits else 0.0


def rows_for_risk(risk: float) -> int:
    """The fewest rows that can show it, where words and network never differ; one more, as the first bet is a small one."""
    return math.ceil(math.log(1 / ERROR) / math.log1p(_largest(risk) * risk / 2)) + 1


def rows_for_agreement(agreement: float) -> int:
    """The fewest rows that can show it."""
    return math.ceil(math.log(ERROR) / math.log(agreement))
