"""The pictures of a training: what an epoch sees of them, and that it is the same after a crash and on every worker."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from cataloger.data.album import Pictured
from cataloger.data.images import OK, decode
from cataloger.data.pictures import PictureInput
from cataloger.spec import Picture
from cataloger.training.gallery import Gallery, _contents, altered, load_pictured, vary
from drawn import BLUE, RED, canvas, encoded, jpeg, noise

WINDOW = Picture("image", 32, crop=1.0)


def read_by(given: PictureInput, **columns: object) -> pa.Array:
    return given.read(pa.table(columns)).values


@pytest.fixture
def rows(ray_session: None, tiny_model: Path) -> Pictured:
    """Six rows: two share a picture, one has none, one has no text."""
    given = PictureInput(tiny_model, ("title",), 12, WINDOW)
    one, two, three = (noise(seed) for seed in range(3))
    titles = ["red shoe", "blue shoe", "hat", None, "cup", "lamp"]
    values = read_by(given, title=titles, image=pa.array([one, one, None, two, three, three[:-90]]))
    kept = given.kept(values)
    assert kept.column("picture").null_count == 2
    blocks = [ray.put(kept.slice(0, 4)), ray.put(kept.slice(4))]
    return load_pictured(blocks, "pictures-of-a-test", kept, given)


def test_pictures_lie_compressed_on_the_disk_each_once(rows: Pictured) -> None:
    assert isinstance(rows.album, Gallery)
    assert rows.index.tolist() == [0, 0, -1, 1, 2, -1]
    assert len(_contents(rows.album.file)) == 3
    batch = rows.batch(np.array([4, 2, 1, 0]))
    assert batch["image_index"].tolist() == [2, 0, 1, 1]
    assert (batch["pixel_values"][1] == decode(noise(2), WINDOW)).all()
    assert batch["input_ids"].shape[0] == 4
    assert rows.costs.tolist() == (rows.tokens.lengths + 256 * (rows.index >= 0)).tolist()  # type: ignore[union-attr]
    assert rows.costs_of(np.array([5, 0, 2])).tolist() == rows.costs[[5, 0, 2]].tolist()


def looks(rows: Pictured, chosen: np.ndarray) -> dict[int, bytes]:
    """The picture of each row that has one, as its batch has it."""
    batch = rows.batch(chosen)
    pairs = zip(chosen.tolist(), batch["image_index"].tolist(), strict=True)
    return {row: batch["pixel_values"][place - 1].tobytes() for row, place in pairs if place}


def test_an_epoch_is_a_function_of_its_seeds(rows: Pictured) -> None:
    everything = np.arange(len(rows))
    first, again, later = (vary(rows, "strong", np.random.default_rng([7, 0, epoch])) for epoch in (1, 1, 2))
    whole = looks(first, everything)
    assert looks(again, everything) == whole
    # Two workers that share the rows see the same.
    assert looks(first, everything[::2]) | looks(first, everything[1::2]) == whole
    assert looks(later, everything) != whole


def test_pictures_made_ahead_are_the_same(rows: Pictured) -> None:
    wanted = np.array([0, 3])
    rows.ahead(wanted)
    ahead, now = rows.batch(wanted), rows.batch(wanted)
    assert all((ahead[name] == now[name]).all() for name in now)


def test_some_rows_go_without_their_text_and_others_without_their_picture(tiny_model: Path) -> None:
    given = PictureInput(tiny_model, ("title",), 12, WINDOW)
    data = jpeg()
    encoded_rows = given.encode(read_by(given, title=[f"a fine shoe {n}" for n in range(2_000)], image=[data] * 2_000))
    seen = vary(encoded_rows, "off", np.random.default_rng(0))
    assert encoded_rows.tokens is not None
    assert seen.tokens is not None
    blind, mute = seen.index < 0, seen.tokens.lengths == 2
    assert 0.07 < blind.mean() < 0.13
    assert 0.07 < mute.mean() < 0.13
    assert not (blind & mute).any()
    nothing = given.words.encode(pa.array([""]))  # type: ignore[union-attr]
    assert (
        seen.tokens.slice(int(np.flatnonzero(mute)[0]), int(np.flatnonzero(mute)[0]) + 1).lists()[0].as_py()
        == nothing.lists()[0].as_py()
    )
    kept = np.flatnonzero(~mute)
    assert seen.tokens.take(kept).lists() == encoded_rows.tokens.take(kept).lists()


def test_a_row_without_text_keeps_its_picture(tiny_model: Path) -> None:
    given = PictureInput(tiny_model, ("title",), 12, WINDOW)
    rows = given.encode(read_by(given, title=pa.nulls(500, pa.string()), image=[jpeg()] * 500))
    assert (vary(rows, "off", np.random.default_rng(0)).index == 0).all()


def test_pictures_alone_are_never_left_out() -> None:
    rows = Pictured(None, np.arange(50), pa.array([OK] * 50), Gallery(Path(), WINDOW), 32)
    assert (vary(rows, "light", np.random.default_rng(0)).index == np.arange(50)).all()


def test_light_shows_another_part_and_strong_other_colours() -> None:
    data = encoded(canvas(RED, BLUE, (200, 200)), "PNG")
    light = np.stack([altered(data, WINDOW, [0, row], strong=False) for row in range(40)])
    colours = {tuple(colour) for colour in light.transpose(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert RED in colours
    assert BLUE in colours
    blue = (light[:, 2] > light[:, 0]).mean(axis=(1, 2))
    assert blue.std() > 0.02
    mirrored = [
        bool((one[2, :8, 16:] > one[0, :8, 16:]).mean() > (one[2, :8, :16] > one[0, :8, :16]).mean()) for one in light
    ]
    assert 8 < sum(mirrored) < 32
    strong = np.stack([altered(data, WINDOW, [0, row], strong=True) for row in range(40)])
    assert np.std(strong.mean(axis=(1, 2, 3))) > 1.5 * np.std(light.mean(axis=(1, 2, 3)))
