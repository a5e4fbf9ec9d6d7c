from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.errors import StorageError
from cataloger.infra.storage import Location, locate
from cataloger.publishing import snapshot, summary
from cataloger.publishing.drift import Drift, compare
from cataloger.publishing.summary import sample_every, summarise


def part(
    name: str, ids: list[int], categories: list[str], confidence: float, texts: list[str] | None = None
) -> Location:
    columns = {
        "id": ids,
        "category": pa.array(categories, pa.string()),
        "confidence": pa.array([confidence] * len(ids), pa.float32()),
        "needs_review": pa.array([category == "A" for category in categories], pa.bool_()),
        "text_hash": pa.array(texts or [str(i) for i in ids], pa.string()),
    }
    pq.write_table(pa.table(columns), name)
    return locate(name)


def compare_runs(before: list[Location], now: list[Location], rows: int) -> Drift:
    every = sample_every(rows)
    return compare(summarise(before, every), summarise(now, every))


def test_drift_by_hand(working_folder: Path) -> None:
    before = [part("a", [1, 2, 3, 4], ["A", "A", "B", "B"], 0.9), part("b", [5, 6], ["C", "C"], 0.9)]
    now = [part("c", [4, 3, 2, 1, 5, 7], ["B", "A", "A", "A", "C", "D"], 0.8, ["4", "3", "2", "1", "five", "7"])]
    found = compare_runs(before, now, rows=6)
    assert found.compared == 5
    assert found.changed == pytest.approx(1 / 5)
    assert found.new_texts == pytest.approx(1 / 5)
    assert found.flows == Counter({("B", "A"): 1})
    # A 2/6 → 3/6, B 2/6 → 1/6, C 2/6 → 1/6, D 0 → 1/6
    assert found.shift == pytest.approx(2 / 6)
    old, new = np.array([2, 2, 2, 0.5]) / 6, np.array([3, 1, 1, 1]) / 6
    assert found.stability == pytest.approx(((new - old) * np.log(new / old)).sum())
    assert (found.appeared, found.vanished) == (("D",), ())
    assert found.confidence_fall == pytest.approx(0.1)
    assert found.worst == pytest.approx(2 / 6)
    assert "20.0% of 5" in str(found)
    assert "B → A (1)" in str(found)
    found = summarise(before, 1)
    assert (found.rows, found.review, found.histogram[18]) == (6, 2, 6)
    assert found.mean_confidence == pytest.approx(0.9)


def test_repeated_ids_are_not_compared_and_empty_runs_do_not_differ(working_folder: Path) -> None:
    before = [part("a", [1, 1, 2], ["A", "B", "A"], 0.9)]
    assert compare_runs(before, [part("b", [1, 2], ["C", "A"], 0.9)], rows=3).compared == 1
    assert compare_runs(before, [part("c", [], [], 0.0)], rows=3).worst == 0


def test_a_large_run_is_compared_on_a_sample(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "COMPARED_PRODUCTS", 1_000)
    ids = list(range(10_000))
    before = [part("a", ids, ["A"] * 10_000, 0.9)]
    now = [part("b", ids[::-1], ["A" if i % 4 else "B" for i in ids[::-1]], 0.9)]
    found = compare_runs(before, now, rows=10_000)
    assert 800 < found.compared < 1_200
    assert found.changed == pytest.approx(0.25, abs=0.05)
    assert found.shift == pytest.approx(0.25), "counts are of all rows"


def test_products_are_missing_where_they_have_no_row_or_several(working_folder: Path) -> None:
    before = [part("a", [1, 2, 3, 4, 5, 5, 6, 6], ["A"] * 8, 0.9)]
    now = [part("b", [1, 2, 2, 5, 5, 9], ["A"] * 6, 0.9)]
    found = compare_runs(before, now, rows=8)
    assert (found.known, found.lost, found.compared) == (6, 4, 1), "2 is repeated; 3, 4 and 6 are gone; 5 is as it was"
    assert found.missing == pytest.approx(4 / 6)
    assert "66.7% of 6 products are missing" in str(found)
    assert compare_runs([part("c", [], [], 0.0)], now, rows=8).missing == 0, "nothing was there that could be missing"


def test_no_more_parts_are_held_than_are_read_at_a_time(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The categories of every part, counted one by one, would not fit the driver."""
    read, held, most = summary._read_group, 0, 0

    class Held(summary._Tally):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def counted(*arguments: object, **others: object) -> summary._Tally:
        nonlocal held, most
        found = Held(**vars(read(*arguments, **others)))  # type: ignore[arg-type]
        held += 1
        most = max(most, held)
        return found

    monkeypatch.setattr(summary, "_read_group", counted)
    parts = [part(f"p{number}", [number], ["A"], 0.9) for number in range(100)]
    assert summarise(parts, 1).counts == {"A": 100}
    assert most <= 2 * snapshot.AT_ONCE


def test_a_published_part_that_cannot_be_read_is_named(working_folder: Path) -> None:
    before = [part("a", [1], ["A"], 0.9), locate("gone.parquet")]
    with pytest.raises(StorageError, match=r"gone.parquet: cannot be read, to compare labels"):
        summarise(before, 1)
    Path("torn.parquet").write_bytes(Path("a").read_bytes()[:-9])
    with pytest.raises(StorageError, match=r"torn.parquet: cannot be read"):
        summarise([locate("torn.parquet")], 1)


def test_what_needs_review_is_counted_by_category(working_folder: Path) -> None:
    found = summarise([part("a", [1, 2, 3], ["A", "A", "B"], 0.9), part("b", [4, 5], ["A", "C"], 0.8)], None)
    assert found.reviewed == Counter({"A": 3})
    assert [(doubt.unit, doubt.row) for doubt in found.doubts] == [(1, 0), (0, 0), (0, 1)], "the least certain first"


def test_a_product_of_several_categories_counts_in_each(working_folder: Path) -> None:
    columns = {
        "id": [1, 2, 3],
        "categories": pa.array([["A", "B"], [], ["B"]], pa.list_(pa.string())),
        "confidence": pa.array([0.3, 0.2, 0.9], pa.float32()),
        "needs_review": [True, True, False],
        "text_hash": ["x", "y", "z"],
    }
    pq.write_table(pa.table(columns), "lists")
    found = summarise([locate("lists")], None)
    assert (found.counts, found.reviewed) == (Counter("ABB"), Counter("AB"))
    assert (found.rows, found.review, found.without) == (3, 2, 1)
    assert [doubt.row for doubt in found.doubts] == [1, 0]


def test_a_product_that_people_decided_has_no_further_answer(working_folder: Path) -> None:
    """The model could read nothing of it: its further answers are null."""
    table = pq.read_table(part("plain", [1, 2, 3], ["A", "B", "B"], 0.9).path)
    one = {"category": "red", "confidence": 0.5, "needs_review": True}
    tags = [{"name": "Colour", "value": "red", "field": "title", "start": 0, "end": 3, "confidence": 0.9}]
    for name, values in (("colour", [one, None, one]), ("tags", [tags, None, []])):
        labels = table.append_column(name, pa.array(values))
        pq.write_table(labels, name)
        assert summarise([locate(name)], 1, name).rows == 2
        assert summarise([locate(name)], 1).rows == 3
