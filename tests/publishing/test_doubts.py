"""Which labels a person should look at, and the words that they were given to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.data import ids
from cataloger.data.catalog import open_catalog
from cataloger.data.footers import Stored
from cataloger.data.text import compose, hash_texts
from cataloger.data.texts import TextInput
from cataloger.data.units import Segment, Unit, plan_units
from cataloger.infra.storage import Location, locate
from cataloger.publishing import doubts
from cataloger.publishing.doubts import SHOWN, Doubt, Origin, Product, _cut, in_part, least, products
from cataloger.publishing.parts import write_part

TEXT = ("title", "brand")
ROWS, UNIT = 90, 40
REJECTED = {3, 17, 18, 44}


def found_in(unit: int, confidence: list[float], texts: list[int], review: list[bool] | None = None) -> list[Doubt]:
    """With the text itself in the place of its hash."""
    column = pa.chunked_array([pa.array(texts, pa.int64())])
    names = dict(zip(ids.hash_ids(column).tolist(), texts, strict=True))
    needed = np.array([True] * len(texts) if review is None else review, bool)
    found = in_part(np.array(confidence, np.float32), needed, column, unit)
    return [replace(doubt, confidence=round(doubt.confidence, 4), text=names[doubt.text]) for doubt in found]


def test_the_least_certain_are_found_part_by_part_each_text_once() -> None:
    first = found_in(0, [0.5, 0.2, 0.2, 0.1], [1, 2, 2, 3], [True, True, True, False])
    assert first == [Doubt(0.2, 2, 0, 1), Doubt(0.5, 1, 0, 0)], "of equal texts the first, of sure labels none"
    second = found_in(1, [0.3, 0.1, 0.2], [9, 1, 2])
    assert least([*first, *second]) == (Doubt(0.1, 1, 1, 1), Doubt(0.2, 2, 0, 1), Doubt(0.3, 9, 1, 0))
    many = found_in(0, [i / 1000 for i in range(999)], list(range(999)))
    assert len(many) == SHOWN, "a part's own memory is that of a few rows"
    assert len(least([*many, *second])) == SHOWN
    assert found_in(0, [], []) == [] == list(least([]))
    common = found_in(0, [0.1] * 900 + [0.2, 0.3], [7] * 900 + [8, 9])
    assert [doubt.text for doubt in common] == [7, 8, 9], "however often the least certain text is there"


def write_run(catalog: str, folder: Location) -> Origin:
    """Parts of a catalog whose files lie there, some of whose rows were rejected."""
    opened = open_catalog(catalog, "id", TEXT)
    units = plan_units(opened, UNIT)
    source = pq.read_table(opened.location.path, filesystem=opened.location.filesystem, partitioning=None)
    start, rejects = 0, {}
    for unit in units:
        rows = [row for row in range(start, start + unit.rows) if row not in REJECTED]
        labels = pa.table(
            {
                "id": source.column("id").take(rows),
                "category": [f"A > {row}" for row in rows],
                "confidence": pa.array([row / 1000 for row in rows], pa.float32()),
                "alternatives": [[{"category": "B", "confidence": 0.01}]] * len(rows),
                "text_hash": hash_texts(compose(source.take(rows), TEXT, 16)),
            }
        )
        rejects[unit.index] = unit.rows - len(rows)
        rejected = pa.table({"id": [0] * rejects[unit.index], "reason": ["no text"] * rejects[unit.index]})
        write_part(folder, unit.index, labels, rejected, {"forwarded": 0}, {})
        start += unit.rows
    return Origin(opened, units, rejects, TextInput(Path(), TEXT, 16))


def table(rows: range) -> pa.Table:
    """Some ids are there several times, and some words cannot be read."""
    title = [b"title \xff" if row in REJECTED else f"title {row}".encode() + b" long" * (row % 50) for row in rows]
    brand = [None if row % 3 else f"brand {row}" for row in rows]
    return pa.table({"id": [row // 2 for row in rows], "title": pa.array(title).view(pa.string()), "brand": brand})


@pytest.fixture
def origin(working_folder: Path) -> Origin:
    """Three files, two of them with several row groups."""
    Path("catalog").mkdir()
    for number, rows in enumerate((range(7), range(7, 37), range(37, ROWS))):
        pq.write_table(table(rows), f"catalog/{number}.parquet", row_group_size=13 if number == 1 else 99)
    return write_run("catalog", locate("run"))


def doubts_about(origin: Origin, rows: list[int]) -> list[Doubt]:
    """Of rows by their number in the catalog."""
    found = []
    for row in rows:
        start = 0
        for unit in origin.units:
            if row < start + unit.rows:
                found.append(Doubt(row / 1000, row, unit.index, row - start - len(REJECTED & {*range(start, row)})))
                break
            start += unit.rows
    return found


def words_of(row: int) -> str:
    text = f"title {row}" + " long" * (row % 50) + ("" if row % 3 else f" | brand {row}")
    return text[:200]


def test_the_words_of_a_few_rows_are_read_again_wherever_they_lie(origin: Origin) -> None:
    rows = [row for row in range(ROWS) if row not in REJECTED]
    assert len(origin.units) > 2
    assert products(doubts_about(origin, rows), locate("run"), origin) == [
        Product(str(row // 2), pytest.approx(row / 1000), ((f"A > {row}", pytest.approx(row / 1000)),), (("B", 0.01),), words_of(row))
        for row in rows
    ]  # fmt: skip
    for row in rows:
        (alone,) = products(doubts_about(origin, [row]), locate("run"), origin)
        assert alone.words == words_of(row)


def test_a_column_that_is_named_twice_is_read_as_the_model_reads_it(origin: Origin) -> None:
    twice = replace(origin, reads=TextInput(Path(), ("title", "title"), 16))
    said = "title 1 long | title 1 long"
    (key,) = hash_texts(pa.array([said])).to_pylist()
    assert doubts._given(doubts_about(origin, [1]), twice, {key}) == {key: (said, None)}


def test_no_more_is_read_than_the_rows_in_question(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Unit] = []
    read = doubts.read_units

    def noted(filesystem: object, units: list[Unit], schema: pa.Schema) -> object:
        asked.extend(units)
        return read(filesystem, units, schema)

    monkeypatch.setattr(doubts, "read_units", noted)
    products(doubts_about(origin, [2, 4, 60, 80]), locate("run"), origin)
    assert sum(unit.rows for unit in asked) <= 4 * (1 + len(REJECTED))
    assert len({(segment.path, segment.row_group) for unit in asked for segment in unit.segments}) <= 4


def without_words(origin: Origin) -> list[Product]:
    found = products(doubts_about(origin, [5, 70]), locate("run"), origin)
    assert [product.id for product in found] == ["2", "35"], "all else is known"
    return [product for product in found if product.words is None]


def test_a_catalog_that_was_replaced_meanwhile_gives_no_words(origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(table(range(ROWS, 2 * ROWS)), "catalog/2.parquet")
    assert len(without_words(origin)) == 1, "those of the other file are as they were"
    assert "was replaced while the run was going" in caplog.text
    Path("catalog/0.parquet").unlink()
    assert len(without_words(origin)) == 2


def test_a_row_group_that_is_too_large_for_the_driver_is_not_read(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "MAX_ROW_GROUP_BYTES", max(origin.catalog.files[-1].sizes) - 1)
    assert [product.id for product in without_words(origin)] == ["35"]


@pytest.mark.s3
def test_words_and_labels_on_s3(s3: str, origin: Origin, write: Callable[..., Path]) -> None:
    for file in Path("catalog").iterdir():
        (locate(f"{s3}/doubts/catalog") / file.name).write(file.read_bytes())
    folder = locate(f"{s3}/doubts/run")
    there = write_run(f"{s3}/doubts/catalog", folder)
    rows = [5, 70, 88]
    assert [product.words for product in products(doubts_about(there, rows), folder, there)] == [*map(words_of, rows)]


def test_labels_of_any_number_of_categories(working_folder: Path, origin: Origin) -> None:
    labels = pq.read_table("run/part-00000.parquet").slice(0, 2).drop_columns("category")
    labels = labels.append_column("categories", pa.array([["A", "B > C"], []], pa.list_(pa.string())))
    labels = labels.append_column("confidences", pa.array([[0.9, 0.75], []], pa.list_(pa.float32())))
    write_part(locate("lists"), 0, labels, labels.slice(0, 0), {"forwarded": 0}, {})
    found = products([Doubt(0.1, 0, 0, 1), Doubt(0.2, 1, 0, 0)], locate("lists"), origin)
    assert [product.categories for product in found] == [(), (("A", pytest.approx(0.9)), ("B > C", 0.75))]


@pytest.mark.parametrize(("first", "end"), [(0, 1), (2, 5), (5, 7), (0, 7)])
def test_the_rows_of_a_table_are_found_between_deleted_ones(first: int, end: int) -> None:
    deleted = np.array([0, 3, 4, 9], np.uint32)
    segment = Segment("x", 0, 100, 7, stored=Stored(11, deleted.tobytes()))
    (found,) = _cut(Unit(0, (segment,)), first, end).segments
    live = [row for row in range(11) if row not in deleted][first:end]
    assert (found.start, found.rows, found.lie_there) == (100 + live[0], len(live), live[-1] - live[0] + 1)
    assert found.stored
    assert [row for row in range(found.lie_there) if row not in found.stored.deleted] == [row - live[0] for row in live]
