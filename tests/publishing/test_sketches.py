"""The parts that have the rows of a unit are found by samples of their texts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cataloger.data.text import hash_texts, hash_words
from cataloger.infra.storage import locate
from cataloger.publishing import sketches
from cataloger.publishing.parts import Part

ROWS, UNITS = 4_000, 50


def hashes(rows: np.ndarray) -> pa.ChunkedArray:
    return pa.chunked_array([hash_texts(pa.array([f"product {row}" for row in rows]))])


def found(rows: np.ndarray, run: tuple) -> list[int] | None:
    return sketches.parts_with(hash_words(hashes(rows))[:, 0], *run)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The sketches of 50 units of 4,000 products each, as a night reads them."""
    folder = tmp_path_factory.mktemp("sketches")
    rows = np.arange(ROWS * UNITS).reshape(UNITS, ROWS)
    parts = {unit: Part(unit, ROWS, 0, ROWS, (), sketch=sketches.of(hashes(rows[unit]))) for unit in range(UNITS)}
    sketches.keep(locate(str(folder)), dict(sorted(parts.items(), key=lambda pair: -pair[0])))
    return sketches.read(folder / sketches.SKETCHES)


def test_a_sketch_is_a_kilobyte_whatever_the_part_has(run) -> None:  # type: ignore[no-untyped-def]
    assert [len(column) for column in run] == [UNITS * sketches.SMALLEST] * 2
    assert (np.diff(run[0].astype(np.float64)) >= 0).all()


def test_a_unit_of_the_same_rows_needs_one_part(run) -> None:  # type: ignore[no-untyped-def]
    assert found(np.arange(8 * ROWS, 9 * ROWS), run) == [8]
    assert found(np.arange(ROWS * UNITS, ROWS * (UNITS + 1)), run) == [], "all of them are new"


def test_a_unit_that_is_cut_elsewhere_needs_the_part_beside_it(run) -> None:  # type: ignore[no-untyped-def]
    assert found(np.arange(8 * ROWS + 1_000, 9 * ROWS + 1_000), run) == [8, 9]
    assert found(np.arange(8 * ROWS + 100, 9 * ROWS + 100), run) == [8, 9], "for a fortieth of its rows"
    assert sorted(found(np.arange(8 * ROWS, 16 * ROWS), run) or []) == list(range(8, 16)), "a unit eight times as large"


def test_single_products_from_elsewhere_are_worth_no_part(run) -> None:  # type: ignore[no-untyped-def]
    moved = np.arange(20, 50) * ROWS + 7
    assert found(np.concatenate([np.arange(8 * ROWS, 9 * ROWS - len(moved)), moved]), run) == [8]


def test_a_unit_of_another_order_needs_the_whole_run(run) -> None:  # type: ignore[no-untyped-def]
    mixed = np.random.default_rng(0).permutation(ROWS * UNITS)
    assert found(mixed[:ROWS], run) is None


def test_a_text_that_is_in_every_part_says_nothing(tmp_path: Path) -> None:
    common = np.arange(40)
    own = [np.concatenate([common, np.arange(1_000 * unit, 1_000 * unit + 400)]) for unit in range(1, 20)]
    parts = {unit: Part(unit, 440, 0, 440, (), sketch=sketches.of(hashes(rows))) for unit, rows in enumerate(own)}
    sketches.keep(locate(str(tmp_path)), parts)
    assert found(own[7], sketches.read(tmp_path / sketches.SKETCHES)) == [7]


def test_rows_without_a_hash_are_none_of_it() -> None:
    assert sketches.of(pa.chunked_array([pa.array([None, None], pa.string())])) == ""
