from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger import drift
from cataloger.drift import compare_runs
from cataloger.storage import Location, locate


def part(name: str, ids: list[int], categories: list[str], confidence: float) -> Location:
    pq.write_table(pa.table({"id": ids, "category": categories, "confidence": [confidence] * len(ids)}), name)
    return locate(name)


def test_drift_by_hand(working_folder: Path) -> None:
    before = [part("a", [1, 2, 3, 4], ["A", "A", "B", "B"], 0.9), part("b", [5, 6], ["C", "C"], 0.9)]
    now = [part("c", [4, 3, 2, 1, 5, 7], ["B", "A", "A", "A", "C", "C"], 0.8)]
    found = compare_runs(before, now, rows=6)
    assert found.compared == 5
    assert found.changed == pytest.approx(1 / 5)
    assert found.flows == (("B", "A", 1),)
    # A 2/6 → 3/6, B 2/6 → 1/6, C 2/6 → 2/6
    assert found.shift == pytest.approx(1 / 6)
    assert found.confidence_fall == pytest.approx(0.1)
    assert found.worst == pytest.approx(1 / 5)
    assert "20.0% of 5" in str(found)
    assert "B → A (1)" in str(found)


def test_repeated_ids_are_not_compared_and_empty_runs_do_not_differ(working_folder: Path) -> None:
    before = [part("a", [1, 1, 2], ["A", "B", "A"], 0.9)]
    assert compare_runs(before, [part("b", [1, 2], ["C", "A"], 0.9)], rows=3).compared == 1
    assert compare_runs(before, [part("c", [], [], 0.0)], rows=3).worst == 0


def test_a_large_run_is_compared_on_a_sample(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "COMPARED_PRODUCTS", 1_000)
    ids = list(range(10_000))
    before = [part("a", ids, ["A"] * 10_000, 0.9)]
    now = [part("b", ids[::-1], ["A" if i % 4 else "B" for i in ids[::-1]], 0.9)]
    found = compare_runs(before, now, rows=10_000)
    assert 800 < found.compared < 1_200
    assert found.changed == pytest.approx(0.25, abs=0.05)
