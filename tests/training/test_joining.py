"""Words beside a network on validation rows: what is fitted, what is certified, and that copies of a text prove nothing."""

import numpy as np
import pytest
import torch

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Tokens
from cataloger.heads.arrays import as_judged, reader_of
from cataloger.heads.base import head_of
from cataloger.heads.ranked import Ranked
from cataloger.spec import Spec, Words
from cataloger.taxonomy import Taxonomy
from cataloger.training import certificate, validation
from cataloger.training.examples import Examples
from cataloger.training.hearing import Heard
from cataloger.training.validation import LEAST_TRUST_KEPT, Validation

SPEC = Spec(("A", "A > x", "A > y", "B > z"), ("title",), 64, "mean", "")
CPU = torch.device("cpu")
ROWS = 4_000


def score(
    network: float, words: float, keys: np.ndarray, known: int = ROWS, **settings: object
) -> tuple[dict[str, float], Spec]:
    """Rows about which a network and words know something, each by itself, the more the larger the number; those with a key from
    `known` on have a category that neither knows."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, ROWS)
    labels[keys >= known] = -1
    own = np.eye(4)[labels]
    scores = (words * own + draw.normal(size=(ROWS, 4))).astype(np.float32)
    logits = torch.from_numpy((network * own + draw.normal(size=(ROWS, 4))).astype(np.float32))
    lengths = np.arange(ROWS) % 50 + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = Examples.of_one_category(Tokens(np.zeros(offsets[-1], np.int32), offsets), labels)
    reader, scale = reader_of(SPEC), Words(temperature=0.5, shift=1.0)
    own_logits = reader.logits(scores, scale)
    judged = head_of(SPEC, CPU).judge(torch.from_numpy(own_logits), rows.sets)
    judged |= as_judged(reader.answers(own_logits, 0), Taxonomy(SPEC.categories))
    judged["distinct"] = np.isin(np.arange(ROWS), np.unique(keys, return_index=True)[1])
    heard = Heard(scale, judged, Ranked.of(reader.probabilities(own_logits)), (keys % 2).astype(np.int64))

    def logits_of(tokens: Tokens, batch: IntArray) -> torch.Tensor:
        return logits[batch.copy()]

    return Validation(rows, SPEC, TrainConfig(**settings), heard=heard).score(logits_of, CPU)  # type: ignore[arg-type]


def test_both_know_more_than_either() -> None:
    metrics, spec = score(2.5, 2.5, np.arange(ROWS, dtype=np.uint64))
    assert metrics["val_accuracy"] > max(metrics["val_network_accuracy"], metrics["val_words_accuracy"]) + 0.02
    assert metrics["val_calibration_error"] < 0.05
    assert spec.words
    assert spec.words.weight > 0.1


def test_words_that_know_nothing_have_next_to_no_weight() -> None:
    metrics, spec = score(3.0, 0.0, np.arange(ROWS, dtype=np.uint64))
    assert spec.words
    assert spec.words.weight < 0.1
    assert abs(metrics["val_accuracy"] - metrics["val_network_accuracy"]) < 0.005
    assert spec.words.alone_from is None


def test_words_that_are_sure_answer_alone_where_rows_show_that_it_costs_little() -> None:
    metrics, spec = score(5.0, 6.0, np.arange(ROWS, dtype=np.uint64))
    assert spec.words
    assert spec.words.alone_from is not None
    assert metrics["val_alone_fraction"] > 0.3
    assert "with 95% confidence" in spec.words.certificate
    assert score(5.0, 6.0, np.arange(ROWS, dtype=np.uint64), tiers="off")[1].words.alone_from is None  # type: ignore[union-attr]


def test_copies_of_a_few_texts_certify_nothing() -> None:
    _, spec = score(5.0, 6.0, np.arange(ROWS, dtype=np.uint64) % 300)
    assert spec.words
    assert spec.words.alone_from is None
    assert spec.words.certificate.startswith("no tiers: 300 validation rows")


def test_a_few_groups_that_both_are_sure_of_give_words_no_say() -> None:
    """Where nothing is wrong, the loss falls for ever as both numbers grow; and a dozen that words know better may be luck."""
    for network in (12.0, 3.0):
        _, spec = score(network, 12.0, np.arange(ROWS, dtype=np.uint64) % 12)
        assert spec.words
        assert spec.words.weight == 0.0


def test_rows_of_unknown_categories_show_nothing() -> None:
    _, spec = score(3.0, 12.0, np.arange(ROWS, dtype=np.uint64) % 200, known=12)
    assert spec.words
    assert spec.words.weight == 0.0
    _, spec = score(3.0, 12.0, np.arange(ROWS, dtype=np.uint64) % 200, known=100)
    assert spec.words
    assert spec.words.weight > 0.1


def test_words_answer_fewer_rows_where_more_would_cost_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are wrong about some rows of which they are sure: what they answer alone is trusted less."""
    keys = np.arange(ROWS, dtype=np.uint64)
    monkeypatch.setattr(validation, "RISK", 0.3)
    bound, unbound = score(4.0, 2.0, keys), score(4.0, 2.0, keys, tier_risk=0.3)
    fewer, most = (spec.words.alone_from for _, spec in (bound, unbound) if spec.words)
    assert fewer is not None
    assert most is not None
    assert fewer > most
    assert 0 < bound[0]["val_alone_fraction"] < unbound[0]["val_alone_fraction"]
    assert bound[0]["val_coverage"] >= LEAST_TRUST_KEPT * bound[0]["val_coverage_without_tiers"]
    assert unbound[0]["val_coverage"] < LEAST_TRUST_KEPT * unbound[0]["val_coverage_without_tiers"], (
        "a risk that was asked for"
    )


def test_words_that_are_wrong_where_they_are_sure_answer_nothing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "FEWER", (1.0,))
    monkeypatch.setattr(validation, "RISK", 0.3)
    metrics, spec = score(4.0, 2.0, np.arange(ROWS, dtype=np.uint64))
    assert spec.words
    assert spec.words.alone_from is None
    assert metrics["val_alone_fraction"] == 0
    assert spec.words.certificate.startswith(
        "no tiers: words are sometimes sure and wrong, and of the labels that need no review now, 100% of all, fewer than 90% would"
    )


def test_thresholds_with_tiers_and_without_them_are_two_things() -> None:
    metrics, spec = score(5.0, 3.0, np.arange(ROWS, dtype=np.uint64), tier_risk=0.2, target_precision=0.97)
    assert spec.words
    off = spec.without_tiers()
    assert off.words
    assert (off.words.alone_from, off.temperature) == (None, 1.0)
    assert off.thresholds == spec.words.thresholds != spec.thresholds
    assert metrics["val_coverage"] != metrics["val_coverage_without_tiers"]
    assert off.without_tiers() is off


def test_rows_that_words_leave_have_a_temperature_of_their_own() -> None:
    _, spec = score(2.0, 2.5, np.arange(ROWS, dtype=np.uint64), tier_risk=0.1)
    assert spec.words
    assert spec.words.alone_from is not None
    assert spec.temperature != 1.0
    assert score(2.0, 2.5, np.arange(ROWS, dtype=np.uint64), tiers="off")[1].temperature == 1.0
