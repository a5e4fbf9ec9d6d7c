"""Which rows words may answer alone: how often the promise is broken, and how often it is given where it could be."""

import math

import numpy as np
import pytest

from cataloger.training import certificate as module
from cataloger.training.certificate import (
    FEWER,
    THRESHOLDS,
    Certificate,
    certify,
    least_share,
    loses_less,
    rows_for_agreement,
    rows_for_risk,
)

ERROR, REPETITIONS = 0.05, 400
# What four standard errors add to a share of 5% in so many repetitions.
AT_MOST = ERROR + 4 * math.sqrt(ERROR * (1 - ERROR) / REPETITIONS)


def passed(lost: float, won: float, rows: int, risk: float) -> float:
    """Share of the repetitions in which losses of these shares are shown to be below the risk."""
    draws = np.random.default_rng(0).random((REPETITIONS, rows))
    return float(np.mean([loses_less((draw < lost).astype(int) - (draw > 1 - won), risk) for draw in draws]))


def certificate(
    confidence: np.ndarray, lost: np.ndarray, won: np.ndarray, risk: float, agreement: float | None = None
) -> Certificate:
    """Of rows on which words are wrong, or right, where both together are not: the one for the most rows."""
    return certify(confidence.astype(np.float32), ~lost, ~won, ~(lost | won), risk, agreement)[0]


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.0), (0.12, 0.1), (0.5, 0.48)])
@pytest.mark.parametrize("rows", [100, 1_500])
def test_a_loss_as_large_as_the_risk_passes_in_at_most_one_of_twenty_cases(lost: float, won: float, rows: int) -> None:
    assert passed(lost, won, rows, risk=0.02) <= AT_MOST


@pytest.mark.parametrize(("lost", "won"), [(0.002, 0.0), (0.01, 0.01), (0.03, 0.05)])
def test_a_loss_well_below_the_risk_passes_nearly_always(lost: float, won: float) -> None:
    assert passed(lost, won, 2_000, risk=0.02) >= 0.9


def test_few_rows_show_nothing() -> None:
    for rows in (0, 1, 10):
        assert not loses_less(np.zeros(rows, np.int64), 0.02)


@pytest.mark.parametrize("risk", [0.001, 0.002, 0.01, 0.05, 0.2])
def test_as_many_rows_as_are_said_to_be_needed_show_a_risk(risk: float) -> None:
    needed = rows_for_risk(risk)
    # The first bet is smaller, as nothing is known yet: one row more makes up for it.
    assert loses_less(np.zeros(needed + 1, np.int64), risk)
    assert not loses_less(np.zeros(needed * 2 // 3, np.int64), risk)


def test_every_risk_that_may_be_asked_for_has_an_answer() -> None:
    rows = np.zeros(100, np.int64)
    assert [loses_less(rows, risk) for risk in (0.0, 0.95, 1.0)] == [False, True, True]
    assert not loses_less(rows + 1, 1.0), "words lose every row"
    assert rows_for_risk(1.0) >= 1


@pytest.mark.parametrize(
    ("hits", "rows", "least"),
    # With all hits it is 0.05^(1/N), with one 1 - 0.95^(1/N); the others solve P(X >= hits) = 0.05.
    [(10, 10, 0.05**0.1), (1, 20, 1 - 0.95 ** (1 / 20)), (5, 10, 0.2224411), (90, 100, 0.8362815), (0, 10, 0.0)],
)
def test_the_least_share_is_that_of_clopper_and_pearson(hits: int, rows: int, least: float) -> None:
    assert least_share(hits, rows) == pytest.approx(least, abs=1e-6)
    tail = sum(math.comb(rows, k) * least**k * (1 - least) ** (rows - k) for k in range(hits, rows + 1))
    assert tail == pytest.approx(ERROR if hits else 1.0, abs=1e-5)


def test_no_rows_have_no_share() -> None:
    assert least_share(0, 0) == 0.0


def test_the_rows_that_an_agreement_takes_are_the_fewest() -> None:
    for agreement in (0.8, 0.95, 0.99):
        needed = rows_for_agreement(agreement)
        assert least_share(needed, needed) >= agreement > least_share(needed - 1, needed - 1)


def test_the_last_threshold_before_the_first_that_fails_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THRESHOLDS", np.array([0.95, 0.9, 0.7, 0.6, 0.3]))
    confidence = np.linspace(0, 1, 4_000)
    # Below 0.7 words lose much, and below 0.6 they win back more than that.
    lost, won = (confidence < 0.7) & (confidence > 0.6), confidence < 0.6
    found = certificate(confidence, lost, won, 0.01)
    assert found.threshold == 0.7
    assert found.share == pytest.approx(0.3, abs=0.001)
    assert found.agreement == least_share(1_200, 1_200)
    assert found.said == (
        "words answer 30% of the rows alone; with 95% confidence tiers cost at most 1.00% of accuracy (4,000 validation rows)"
    )
    monkeypatch.setattr(module, "THRESHOLDS", np.array([0.3]))
    assert certificate(confidence, lost, won, 0.01).threshold == 0.3, "it alone would not have failed"


def test_rows_that_never_differ_are_all_answered_by_words() -> None:
    confidence, never = np.linspace(0.5, 1, 1_000), np.zeros(1_000, bool)
    for agreement in (None, 0.98):
        found = certificate(confidence, never, never, 0.01, agreement)
        assert (found.threshold, found.share) == (THRESHOLDS[-1], 1.0)


@pytest.mark.parametrize("agreement", [None, 0.98])
def test_fewer_rows_are_certified_as_well(agreement: float | None) -> None:
    confidence, never = np.linspace(0, 1, 4_000).astype(np.float32), np.zeros(4_000, bool)
    found = certify(confidence, ~never, ~never, ~never, 0.01, agreement)
    shares = [one.share for one in found]
    assert shares[0] == 0.6
    assert [one <= 0.6 * most for one, most in zip(shares, FEWER, strict=True)] == [True] * len(FEWER)
    assert [one > 0.8 * 0.6 * most for one, most in zip(shares, FEWER, strict=True)] == [True] * len(FEWER)
    for one in found:
        assert one.threshold in THRESHOLDS
        assert one.share == (confidence >= np.float32(one.threshold)).mean()
        assert one.agreement == least_share(*[round(4_000 * one.share)] * 2)
        assert one.said.startswith(f"words answer {one.share:.0%} of the rows alone; with 95% confidence ")
    alike = certify(np.full(4_000, 0.99999, np.float32), ~never, ~never, ~never, 0.01, agreement)
    assert [one.share for one in alike] == [1.0], "there are no fewer rows of equal confidence"


def test_too_few_rows_are_told_how_many_it_takes() -> None:
    for rows in (0, 100):
        confidence, never = np.linspace(0.5, 1, rows), np.zeros(rows, bool)
        found = certificate(confidence, never, never, 0.002)
        assert (found.threshold, found.share, found.agreement) == (None, 0.0, 0.0)
        assert found.said == (
            f"no tiers: {rows} validation rows do not show that tiers cost at most 0.20% of accuracy; "
            f"that takes {rows_for_risk(0.002):,} rows at least, and more where words and network differ"
        )
        found = certificate(confidence, never, never, 0.002, agreement=0.98)
        assert found.threshold is None
        assert f"{rows} validation rows do not show that at least 98.0% of the rows have the same" in found.said
        assert "that takes 149 rows at least" in found.said


def test_an_agreement_passes_over_thresholds_that_few_rows_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "THRESHOLDS", np.array([0.99, 0.9, 0.5, 0.2]))
    confidence = np.linspace(0, 1, 2_000)
    differ = (confidence < 0.5) & (np.arange(2_000) % 4 == 0)
    nothing = np.zeros(2_000, bool)
    found = certificate(confidence, differ, nothing, 0.0, agreement=0.98)
    assert (found.threshold, found.share) == (0.5, 0.5)
    assert found.agreement == least_share(1_000, 1_000)
    assert "at least 98.0% of them have the same category when words and network are asked" in found.said
    # One that enough rows reach, and fails, ends it: what follows was not to be tried.
    sure = confidence >= 0.9
    assert certificate(confidence, sure, nothing, 0.0, agreement=0.98).threshold is None


@pytest.mark.parametrize("agreement", [None, 0.95])
def test_a_promise_that_no_threshold_keeps_is_seldom_given(agreement: float | None) -> None:
    """Whatever the threshold, words lose as much as is allowed of the rows that they answer."""
    generator, given = np.random.default_rng(0), 0
    for _ in range(REPETITIONS):
        confidence = np.full(600, 0.99999) if agreement is None else generator.uniform(0.4, 1, 600)
        lost = generator.random(600) < 0.05
        given += certificate(confidence, lost, np.zeros(600, bool), 0.05, agreement).threshold is not None
    assert given / REPETITIONS <= AT_MOST
