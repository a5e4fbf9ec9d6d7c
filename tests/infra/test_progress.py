import pytest

from cataloger.infra import progress
from cataloger.infra.progress import Meter


def test_what_was_done_before_a_crash_counts_for_no_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    caplog.set_level("INFO")
    shown = Meter("train", 4_000)
    shown.begin_at(2_000, "goes on after step 63")
    shown.advance_to(2_000)
    assert caplog.messages == ["train: goes on after step 63"], "nothing is known of the time left"
    shown.started -= 100
    shown.advance_to(3_000)
    assert caplog.messages[1].startswith("train: 3,000 of 4,000 rows, 10 rows/s")
    assert caplog.messages[1].endswith(", 100 s left")
