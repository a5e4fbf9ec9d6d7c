"""Pins as they are handed in, and how tasks find them."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cataloger.curation import pins as pinning
from cataloger.curation.known import Known
from cataloger.curation.pins import FILE, PinFile, check, read_pins
from cataloger.data import ids as hashing
from cataloger.errors import CatalogerError

Write = Callable[..., Path]


def found(table: pa.Table, folder: Path, own: pa.Array) -> list[object]:
    pinning._write(table, folder / FILE)
    return PinFile(folder / FILE).find(own).to_pylist()


def test_pins_are_found_by_id_whatever_its_type(write: Write, working_folder: Path) -> None:
    write("pins.parquet", id=[7, 40_000_000_000, 9], category_path=["A", "B  > C", "A"], note=["x", None, "y"])
    pins = read_pins("pins.parquet")
    assert pins.table.column_names == ["id", "category_path", "note"]
    assert pins.paths == ("A", "B > C")
    for kind in (pa.string(), pa.large_string(), pa.int64()):
        own = pa.array(["9", "8", "7", "40000000000"]).cast(kind)
        assert found(pins.table, working_folder, own) == ["A", None, "A", "B > C"]
    assert found(pins.table, working_folder, pa.array([None, "7"])) == [None, "A"]
    assert found(pins.table, working_folder, pa.array([], pa.string())) == []


def test_the_later_of_two_pins_counts(write: Write, working_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write("pins.parquet", id=["a", "b", "a", "c"], category_path=["A", "A", "B", "A"])
    pins = read_pins("pins.parquet")
    assert pins.repeated == 1
    assert found(pins.table, working_folder, pa.array(["a", "b", "c"])) == ["B", "A", "A"]
    assert "1 of its rows are of ids that are pinned again" in caplog.text
    times = [datetime(2026, 3, 2), None, datetime(2026, 3, 1), None]
    write("dated.parquet", id=["a", "b", "a", "b"], category_path=["A", "A", "B", "B"], when=times)
    assert found(read_pins("dated.parquet").table, working_folder, pa.array(["a", "b"])) == ["A", "B"]
    # The second is an hour and a half earlier, though a larger text.
    written = ["2026-01-01T09:30+00:00", "2026-01-01T10:00+02:00", None, "2026-01-01"]
    write("written.parquet", id=["a", "a", "b", "b"], category_path=["A", "B", "B", "A"], when=written)
    assert found(read_pins("written.parquet").table, working_folder, pa.array(["a", "b"])) == ["A", "A"]


def test_a_digest_is_of_what_pins_say(write: Write, working_folder: Path) -> None:
    write("one.parquet", id=["a", "b"], category_path=["A", "B"], who=["x", "y"])
    write("same.parquet", category_path=["B", "A"], id=["b", "a"])
    write("other.parquet", id=["a", "b"], category_path=["A", "A"])
    one, same, other = (read_pins(f"{name}.parquet").digest for name in ("one", "same", "other"))
    assert one == same != other


def test_ids_with_the_same_hash_are_told_apart(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        hashing, "hash_ids", lambda own: np.array([len(str(one)) for one in own.to_pylist()], np.uint64)
    )
    table = pa.table({"id": ["aa", "bb", "cc", "d"], "category_path": ["1", "2", "3", "4"]})
    assert found(table, working_folder, pa.array(["cc", "d", "aa", "xx", "bb", "x"])) == [
        "3",
        "4",
        "1",
        None,
        "2",
        None,
    ]


@given(st.dictionaries(st.text(max_size=5), st.sampled_from(["A", "B > C"]), min_size=1), st.lists(st.text(max_size=5)))
def test_every_pin_is_found_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, pins: dict[str, str], others: list[str]
) -> None:
    table = pa.table({"id": list(pins), "category_path": list(pins.values())})
    own = [*pins, *others]
    assert found(table, tmp_path_factory.mktemp("pins"), pa.array(own, pa.string())) == [pins.get(one) for one in own]


def test_lists_of_categories(write: Write, working_folder: Path) -> None:
    write("pins.parquet", id=["a", "b"], category_path=[["A", "B >  C"], []])
    pins = read_pins("pins.parquet")
    assert pins.lists
    assert found(pins.table, working_folder, pa.array(["b", "a"])) == [[], ["A", "B > C"]]
    check(pins, Known(("A", "B > C")), "--pins", lists=True)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"id": ["a"]}, "needs one column 'category_path'; it has id"),
        ({"id": [1.5], "category_path": ["A"]}, "column 'id' is double, expected strings or integers"),
        ({"id": ["a", None], "category_path": ["A", "A"]}, "row 2 has no id"),
        ({"id": ["a", "b"], "category_path": ["A", None]}, "row 2 has no category_path"),
        ({"id": ["a"], "category_path": ["A >> B"]}, "'A >> B' is no category path"),
        ({"id": ["a"], "category_path": [3]}, "column 'category_path' is int64, expected strings"),
        ({"id": ["a"], "category_path": ["Appel"]}, "the model knows no category 'Appel'; the nearest is 'Apple'"),
        ({"id": ["a"], "category_path": [["Apple"]]}, "has lists of categories, and the model gives one"),
    ],
)
def test_pins_that_are_refused(columns: dict[str, object], sentence: str, write: Write) -> None:
    write("pins.parquet", **columns)
    with pytest.raises(CatalogerError) as problem:
        check(read_pins("pins.parquet"), Known(("Apple", "B > C")), "--pins pins.parquet", lists=False)
    assert str(problem.value).startswith("--pins ")
    assert sentence in str(problem.value)


def test_what_is_no_table_of_pins(working_folder: Path) -> None:
    Path("pins.csv").write_text("id,category_path")
    Path("empty").mkdir()
    for name, sentence in (
        ("pins.csv", "cannot be read as Parquet"),
        ("nowhere", "not found"),
        ("empty", "no file that ends in .parquet"),
    ):
        with pytest.raises(CatalogerError, match=sentence):
            read_pins(name)
