import pytest

from cataloger.evaluation.comparison import Pair
from cataloger.evaluation.promotion import check, gain
from cataloger.evaluation.significance import Difference, McNemar

SAME = {
    "accuracy": (0.80, 0.80, -0.01, 0.01),
    "weighted F1": (0.79, 0.79, -0.01, 0.01),
    "tail macro F1": (0.50, 0.50, -0.05, 0.05),
    "calibration error": (0.02, 0.02, -0.01, 0.01),
}


def compared(slowdown: float | None = 1.0, **changes: tuple[float, float, float, float]) -> Pair:
    """(champion, challenger, low, high) of the difference, by name with _ for spaces."""
    values = SAME | {name.replace("_", " "): value for name, value in changes.items()}
    differences = tuple(Difference(name, *value) for name, value in values.items())
    return Pair("champion", "challenger", 100, (), differences, McNemar(0, 0), (), (), slowdown)


def failed(pair: Pair, metric: str = "accuracy") -> list[str]:
    return [one.reason for one in check(pair, metric, max_slowdown=1.5) if not one.passed]


def test_better_and_nowhere_worse_is_promoted() -> None:
    assert failed(compared(accuracy=(0.80, 0.83, 0.01, 0.05))) == []
    uncertain = compared(accuracy=(0.80, 0.81, -0.01, 0.03))
    assert failed(uncertain) == []
    assert "which may be chance" in check(uncertain, "accuracy", 1.5)[0].reason
    assert failed(compared(slowdown=None, accuracy=(0.80, 0.83, 0.01, 0.05))) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accuracy": (0.80, 0.80, -0.01, 0.01)}, "accuracy: 0.8000 → 0.8000"),
        ({"tail_macro_F1": (0.5, 0.4, -0.15, -0.05)}, "guard tail macro F1"),
        ({"calibration_error": (0.02, 0.05, 0.01, 0.05)}, "guard calibration error"),
        ({"slowdown": 1.6}, "guard speed: 1.60 times"),
    ],
)
def test_one_failed_check_is_enough(changes: dict[str, object], reason: str) -> None:
    found = failed(compared(**{"accuracy": (0.80, 0.83, 0.01, 0.05), **changes}))  # type: ignore[arg-type]
    assert len(found) == 1
    assert found[0].startswith(reason)


def test_the_metric_is_a_choice_and_a_lower_calibration_error_is_a_gain() -> None:
    pair = compared(weighted_F1=(0.79, 0.80, 0.0, 0.02))
    assert failed(pair, "weighted-f1") == []
    assert gain(pair, "weighted-f1") == pytest.approx(0.01)
    assert gain(compared(calibration_error=(0.05, 0.02, -0.04, -0.02)), "calibration-error") == pytest.approx(0.03)


def test_a_cheaper_model_is_promoted_by_its_speed_if_nothing_is_significantly_worse() -> None:
    assert failed(compared(slowdown=0.4), "speed") == []
    assert gain(compared(slowdown=0.4), "speed") == pytest.approx(0.6)
    assert failed(compared(slowdown=1.1), "speed") == ["speed: 1.10 times the time per text, it may be 0.95"]
    worse = compared(slowdown=0.4, accuracy=(0.80, 0.77, -0.05, -0.01))
    assert [reason.split(":")[0] for reason in failed(worse, "speed")] == ["guard accuracy"]
