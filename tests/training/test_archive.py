"""The tokens of a training's rows lie on the node's disk: the same ones, whatever they were cut into, and once."""

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from cataloger.data.batching import Ragged
from cataloger.errors import StorageError
from cataloger.training import archive

pytestmark = pytest.mark.usefixtures("ray_session")


def block(rng: np.random.Generator, rows: int, longest: int) -> pa.Table:
    tokens = [rng.integers(0, 30_000, rng.integers(0, longest + 1)).astype(np.int32) for _ in range(rows)]
    uses = rng.integers(-1, 3, rows).astype(np.int8)
    return pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32())), "use": uses})


def uses_of(tables: list[pa.Table]) -> Any:
    return pa.concat_tables(tables).column("use").to_numpy()


def lists(tokens: Any) -> list[list[int]]:
    return [tokens.flat[first:last].tolist() for first, last in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def test_they_are_those_of_the_tables_in_their_order() -> None:
    rng = np.random.default_rng(0)
    tables = [block(rng, rows, 9) for rows in (5, 0, 40, 1)]
    tables[2] = pa.concat_tables([tables[2].slice(0, 7), tables[2].slice(7)])  # as Ray may hand them on
    whole = pa.concat_tables(tables)
    found = archive.tokens_of([ray.put(table) for table in tables], uses_of(tables), (0, 1, 2, 7), 99)
    for use in (0, 1, 2):
        expected = whole.filter(pa.array(whole.column("use").to_numpy() == use)).column("tokens").to_pylist()
        assert lists(found[use]) == expected
        assert found[use].lengths.tolist() == [len(row) for row in expected]
    assert len(found[7]) == 0
    last = found[0].batch(np.array([0, len(found[0]) - 1]))
    assert last["input_ids"].shape == last["attention_mask"].shape
    assert (last["input_ids"][~last["attention_mask"]] == 99).all()


def test_the_workers_of_a_node_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(archive, "_write", lambda *of, write=archive._write: written.append(of) or write(*of))
    table, other = (block(np.random.default_rng(seed), 20, 5) for seed in (1, 2))
    blocks = [ray.put(table)]
    first, second = (archive.tokens_of(blocks, uses_of([table]), (0,), 0)[0] for _ in range(2))
    assert len(written) == 1
    assert lists(first) == lists(second)
    others = archive.tokens_of([ray.put(other)], uses_of([other]), (0,), 0)[0]
    assert lists(others) != lists(first), "another training's are others"


def test_no_more_than_one_table_is_read_at_a_time_and_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    flat = rng.integers(0, 30_000, 1_000_000).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(np.arange(0, 1_000_001, 500, dtype=np.int32)), pa.array(flat))
    table = pa.table({"tokens": tokens, "use": np.zeros(len(tokens), np.int8)})
    blocks = [ray.put(table) for _ in range(12)]
    before, most = pa.total_allocated_bytes(), []
    read = Ragged.from_arrow

    def watched(column: pa.ChunkedArray) -> Ragged:
        found = read(column)
        most.append(pa.total_allocated_bytes() - before)
        return found

    monkeypatch.setattr(archive.Ragged, "from_arrow", watched)
    tracemalloc.start()
    found = archive.tokens_of(blocks, uses_of([table] * 12), (0,), 0)[0]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.flat) == 12_000_000
    assert len(most) >= 12
    assert max(most) < 2 * flat.nbytes, "of 48 MB"
    assert peak < 3 * flat.nbytes
    assert held < 1e6


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = block(np.random.default_rng(4), 20, 5)

    def full(*of: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_write", full)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        archive.tokens_of([ray.put(table)], uses_of([table]), (0,), 0)
