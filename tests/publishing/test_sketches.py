"""The parts that have the rows of a unit are found by samples of their texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cataloger.data.text import hash_texts, hash_words
from cataloger.errors import StorageError
from cataloger.infra.storage import locate
from cataloger.publishing import sketches
from cataloger.publishing.parts import Part
from cataloger.publishing.sketches import Sketches

ROWS, UNITS = 4_000, 50
Rows = Any


def hashes(rows: Rows) -> pa.ChunkedArray:
    return pa.chunked_array([hash_texts(pa.array([f"product {row}" for row in rows], pa.string()))])


def run_of(folder: Path, parts: Sequence[Rows]) -> Sketches:
    """The sketches of parts with these products, as a night reads them."""
    made = {unit: Part(unit, len(rows), 0, 0, (), sketch=sketches.of(hashes(rows))) for unit, rows in enumerate(parts)}
    sketches.keep(locate(str(folder)), dict(reversed(made.items())))  # parts come in any order
    found = sketches.read(locate(str(folder)), len(parts))
    assert found is not None
    return found


def parts_with(run: Sketches, rows: Rows) -> tuple[list[int], float]:
    return run.parts_with(hash_words(hashes(rows))[:, 0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Sketches:
    """Of 50 units of 4,000 products each."""
    return run_of(tmp_path_factory.mktemp("sketches"), np.arange(ROWS * UNITS).reshape(UNITS, ROWS))


def test_a_sketch_is_a_kilobyte_whatever_the_part_has(run: Sketches) -> None:
    assert len(run.hashes) == len(run.units) == UNITS * sketches.SMALLEST
    assert (run.hashes[1:] > run.hashes[:-1]).all()


def test_a_unit_of_the_same_rows_needs_one_part(run: Sketches) -> None:
    assert parts_with(run, np.arange(8 * ROWS, 9 * ROWS)) == ([8], 1.0)
    assert parts_with(run, np.arange(ROWS * UNITS, ROWS * (UNITS + 1))) == ([], 1.0), "all of them are new"
    assert parts_with(run, []) == ([], 1.0)


def test_a_unit_that_is_cut_elsewhere_needs_the_part_beside_it(run: Sketches) -> None:
    assert parts_with(run, np.arange(8 * ROWS + 1_000, 9 * ROWS + 1_000)) == ([8, 9], 1.0)
    assert parts_with(run, np.arange(8 * ROWS + 100, 9 * ROWS + 100)) == ([8, 9], 1.0), "for a fortieth of its rows"
    several, share = parts_with(run, np.arange(8 * ROWS, 16 * ROWS))
    assert (sorted(several), share) == (list(range(8, 16)), 1.0), "a unit eight times as large"


def test_single_products_from_elsewhere_are_worth_no_part(run: Sketches) -> None:
    moved = np.arange(20, 50) * ROWS + 7
    chosen, share = parts_with(run, np.concatenate([np.arange(8 * ROWS, 9 * ROWS - len(moved)), moved]))
    assert chosen == [8]
    assert share > 0.9


def test_a_unit_of_another_order_has_its_rows_all_over_the_run(run: Sketches) -> None:
    mixed = np.random.default_rng(0).permutation(ROWS * UNITS)
    chosen, share = parts_with(run, mixed[:ROWS])
    assert len(chosen) <= sketches.MOST_PARTS
    assert share < 0.6


@pytest.mark.parametrize(("texts", "repeated"), [(4_000, 0.3), (12_000, 1.0), (100_000, 1.0)])
def test_texts_that_many_parts_have_hide_no_part(tmp_path: Path, texts: int, repeated: float) -> None:
    """A part says nothing of the texts beyond the last one of its sample, which other parts may sample."""
    rng = np.random.default_rng(texts)
    common = int(repeated * 2_000)
    parts = [
        np.unique(np.concatenate([rng.integers(0, texts, common), texts + np.arange(unit * 2_000, (unit + 1) * 2_000 - common)]))
        for unit in range(60)
    ]  # fmt: skip
    run = run_of(tmp_path, parts)
    for unit in range(0, 60, 7):
        chosen, share = parts_with(run, parts[unit])
        assert chosen[0] == unit
        assert share > 0.95


def test_a_text_that_is_in_every_part_says_nothing(tmp_path: Path) -> None:
    common = np.arange(40)
    own = [np.concatenate([common, np.arange(1_000 * unit, 1_000 * unit + 400)]) for unit in range(1, 20)]
    assert parts_with(run_of(tmp_path, own), own[7]) == ([7], 1.0)


def test_rows_without_a_hash_and_runs_without_rows_are_none_of_it(tmp_path: Path) -> None:
    assert sketches.of(pa.chunked_array([pa.array([None, None], pa.string())])) == ""
    assert parts_with(run_of(tmp_path, [[], []]), [1, 2]) == ([], 1.0)


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    assert sketches.read(locate(str(tmp_path)), 1) is None
    run_of(tmp_path, [range(300)])
    file = tmp_path / sketches.SKETCHES
    whole = file.read_bytes()
    for damaged in (b"", whole[:-20], b"x" * len(whole)):
        file.write_bytes(damaged)
        with pytest.raises(StorageError, match="_sketches.arrow: is damaged"):
            sketches.read(locate(str(tmp_path)), 1)
    file.write_bytes(whole)
    with pytest.raises(StorageError, match="or of no unit"):
        sketches.read(locate(str(tmp_path)), 0)
