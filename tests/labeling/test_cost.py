import contextlib
import time

import pytest

from cataloger.labeling import cost as effort_module
from cataloger.labeling.cost import Cost, SharedClock


def test_efforts_add_up_and_say_where_the_time_goes() -> None:
    first = Cost(rows=100, carried=50, forwarded=40, tokens=800, slots=1_000, forward_seconds=6.0, reading_seconds=1.0)
    second = Cost(rows=100, forwarded=100, tokens=1_200, slots=1_500, forward_seconds=3.0, halvings=1)
    total = first + second + Cost()
    assert (total.rows, total.carried, total.forwarded, total.halvings) == (200, 50, 140, 1)
    assert total.padding_waste == pytest.approx(0.2)
    line = total.describe(10.0)
    assert "200 tokens/s, 20.0% padding, 25% carried over" in line
    assert "busy: reading 10%, words 0%, tokenizing 0%, forward 90%, writing 0%" in line
    metrics = total.metrics(10.0)
    assert metrics["carried_fraction"] == 0.25
    assert metrics["forward_seconds"] == 9.0


def test_a_stage_is_timed_even_when_it_fails() -> None:
    cost = Cost()
    with contextlib.suppress(KeyError), cost.timed("writing"):
        time.sleep(0.01)
        raise KeyError
    assert cost.writing_seconds >= 0.01


def test_nothing_done_is_no_division_by_zero() -> None:
    assert Cost().describe(0.0).startswith("0 tokens/s, 0.0% padding")
    assert Cost().metrics(0.0)["padding_waste"] == 0.0


def test_blocks_at_the_same_time_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(effort_module, "perf_counter", lambda: next(moments))
    clock, one, two = SharedClock(), Cost(), Cost()
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(one.timed("forward", clock))
        second.enter_context(two.timed("forward", clock))
        first.close()
        second.close()
    assert (one.forward_seconds, two.forward_seconds) == (2.0, 2.0), "four seconds in all"
