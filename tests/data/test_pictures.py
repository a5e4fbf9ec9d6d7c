"""What is read of a row that has a picture, a text, or both."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cataloger.data.images import BROKEN, MISSING, MOST_BYTES, OK, TOO_LARGE, decode
from cataloger.data.kinds import is_picture
from cataloger.data.pictures import PictureInput
from cataloger.spec import Picture
from drawn import jpeg, noise

WINDOW = Picture("image", 32)


@pytest.fixture
def given(tiny_model: Path) -> PictureInput:
    return PictureInput(tiny_model, ("title",), 12, WINDOW)


def table(titles: list[str | None], images: pa.Array) -> pa.Table:
    return pa.table({"title": pa.array(titles, pa.string()), "image": images})


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_any_width_are_the_same(given: PictureInput, kind: pa.DataType) -> None:
    values = given.read(table(["a", None, None], pa.array([noise(0), noise(1), None]).cast(kind))).values
    assert values.is_valid().to_pylist() == [True, True, False]
    found = given.distinct(values)
    plain = given.distinct(given.read(table(["a", None, None], pa.array([noise(0), noise(1), None]))).values)
    assert (found.keys, found.place) == (plain.keys, plain.place)


def test_a_struct_has_bytes_or_a_path(given: PictureInput, working_folder: Path) -> None:
    (working_folder / "there.jpg").write_bytes(noise(1))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": noise(0), "path": "/of/somebody/else.jpg"},
        {"bytes": None, "path": str(working_folder / "there.jpg")},
        {"bytes": None, "path": "not-there.jpg"},
        {"bytes": b"", "path": None},
        None,
    ]
    values = given.read(table(["x"] * 5, pa.array(rows, kind))).values
    encoded = given.encode(values)
    assert encoded.status.to_pylist() == [OK, OK, MISSING, MISSING, MISSING]
    pixels = encoded.batch(np.arange(5))["pixel_values"]
    assert (pixels == np.stack([decode(noise(seed), WINDOW) for seed in (0, 1)])).all()


def test_a_struct_with_nothing_in_one_part_is_read(given: PictureInput, working_folder: Path) -> None:
    """As pandas writes it."""
    (working_folder / "there.jpg").write_bytes(noise(1))
    contents = pa.array([{"bytes": noise(0), "path": None}])
    places = pa.array([{"bytes": None, "path": str(working_folder / "there.jpg")}])
    assert pa.types.is_null(contents.type.field("path").type)
    for column in (contents, places):
        assert is_picture(column.type)
        assert given.encode(given.read(table(["x"], column)).values).status.to_pylist() == [OK]


def test_no_bytes_do_not_hide_a_path(given: PictureInput, working_folder: Path) -> None:
    (working_folder / "there.jpg").write_bytes(noise(1))
    rows = pa.array([{"bytes": b"", "path": str(working_folder / "there.jpg")}])
    assert given.encode(given.read(table(["x"], rows)).values).status.to_pylist() == [OK]


def test_why_a_picture_could_not_be_had_is_part_of_the_hash(given: PictureInput) -> None:
    """A label is due again when it can, or when there is none any more; and equal rows have equal reasons."""
    images = pa.array([None, bytes(MOST_BYTES + 1), None])
    values = given.read(table(["a", "a", "a"], images)).values
    found = given.distinct(values)
    assert found.place.to_pylist() == [0, 1, 0]
    assert given.encode(found.values).status.to_pylist() == [MISSING, TOO_LARGE]


def test_equal_rows_are_asked_once_and_equal_pictures_decoded_once(given: PictureInput) -> None:
    one = noise(0)
    values = given.read(table(["a", "b", "a", None, None, None], pa.array([one, one, one, one, None, noise(1)]))).values
    found = given.distinct(values)
    assert found.place.to_pylist() == [0, 1, 0, 2, None, 3]
    assert found.keys.null_count == 0
    encoded = given.encode(found.values)
    assert encoded.index.tolist() == [0, 0, 0, 1]
    batch = encoded.batch(np.array([3, 0, 1]))
    assert batch["image_index"].tolist() == [2, 1, 1]
    assert len(batch["pixel_values"]) == 2


def test_on_the_way_to_an_actor_nothing_changes(given: PictureInput) -> None:
    values = given.read(table(["a", "b", None, "d"], pa.array([noise(0), None, noise(1), noise(0)[:-50]]))).values
    for part in (values, values.slice(1, 2), values.slice(0, 0), values.slice(1, 1)):
        encoded = given.encode(part)
        again = given.from_arrow(pa.concat_tables([encoded.to_arrow()]))
        assert (again.index.tolist(), again.status.to_pylist()) == (encoded.index.tolist(), encoded.status.to_pylist())
        if len(part):
            batches = [one.batch(np.arange(len(part))) for one in (encoded, again)]
            assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])
    taken = given.encode(values).take(np.array([2, 0])).slice(1, 2)
    assert taken.batch(np.array([0]))["image_index"].tolist() == [1]


def test_what_encoding_finds_out(given: PictureInput, working_folder: Path) -> None:
    file = working_folder / "soon-gone.jpg"
    file.write_bytes(noise(0))
    values = given.read(table(["a", None, "c"], pa.array([str(file), str(file), "never.jpg"]))).values
    planned = given.distinct(values).keys
    file.unlink()
    encoded = given.encode(values)
    keys, reasons = given.found_out(values, encoded)
    assert encoded.status.to_pylist() == [MISSING] * 3
    # What has not been read is no part of the hash.
    assert (
        keys[0].as_py()
        == given.distinct(given.read(table(["a"], pa.array([None], pa.string()))).values).keys[0].as_py()
    )
    assert keys[0] != planned[0]
    assert keys[2].as_py() is None
    assert reasons.to_pylist() == [None, "no text in any of the text columns, and the picture is missing", None]


def test_a_broken_picture_is_read_and_stays_in_the_hash(given: PictureInput) -> None:
    values = given.read(table(["a"], pa.array([b"<html>"]))).values
    encoded = given.encode(values)
    keys, reasons = given.found_out(values, encoded)
    assert encoded.status.to_pylist() == [BROKEN]
    assert (keys.null_count, reasons.null_count) == (1, 1)


def test_a_place_that_is_none_is_missing_and_no_error(given: PictureInput) -> None:
    odd = [
        b"http://[x/y.jpg",
        b"//[x",
        "http://ex\u2100mple.com/a".encode(),
        b"http://" + b"a" * 300 + b"/x",
        b"ftp://h/x",
        b"\xff\xfe.jpg",
        b"",
    ]
    places = pa.array(odd).cast(pa.string(), safe=False)
    read = given.read(table(["a"] * len(odd), places))
    assert given.encode(read.values).status.to_pylist() == [MISSING] * len(odd)
    assert read.reasons.null_count == len(odd)


def test_pictures_alone() -> None:
    given = PictureInput(Path(), (), 12, WINDOW)
    read = given.read(pa.table({"image": [jpeg(), None, b"x"]}))
    assert read.reasons.to_pylist() == [None, "the picture is missing", None]
    encoded = given.encode(read.values.drop_null())
    assert given.found_out(read.values.drop_null(), encoded)[1].to_pylist() == [None, "the picture is broken"]
    again = given.from_arrow(encoded.to_arrow())
    assert (again.batch(np.arange(2))["pixel_values"] == encoded.batch(np.arange(2))["pixel_values"]).all()
    assert set(encoded.batch(np.arange(2))) == {"pixel_values", "image_index"}
    assert given.texts(read.values.drop_null()).to_pylist() == ["", ""]
    assert given.identity(read.values).null_count == 1
