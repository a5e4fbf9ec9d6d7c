"""The tokens and labels of a training's rows lie on the node's disk: the same ones, whatever they were cut into, and once."""

import errno
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from cataloger.data.batching import Ragged
from cataloger.errors import StorageError
from cataloger.training import archive

pytestmark = pytest.mark.usefixtures("ray_session")


LISTS, TOGETHER = ("tokens", "labels"), ((0, 2), (1,), (7,))


def block(rng: np.random.Generator, rows: int, longest: int) -> pa.Table:
    def lists(most: int) -> pa.Array:
        found = [rng.integers(0, 30_000, rng.integers(0, most + 1)).astype(np.int32) for _ in range(rows)]
        return pa.array(found, pa.list_(pa.int32()))

    uses, group = rng.integers(-1, 3, rows).astype(np.int8), rng.integers(0, 99, rows).astype(np.uint64)
    return pa.table({"tokens": lists(longest), "labels": lists(2), "group": group, "use": uses})


def stored(tables: list[pa.Table], key: str) -> dict[int, archive.Stored]:
    return archive.stored([ray.put(table) for table in tables], key, LISTS, {"group": np.uint64}, TOGETHER)


def rows(found: Ragged) -> list[list[int]]:
    return [found.flat[first:last].tolist() for first, last in zip(found.offsets, found.offsets[1:], strict=False)]


def test_they_are_those_of_the_tables_in_their_order() -> None:
    rng = np.random.default_rng(0)
    tables = [block(rng, count, 9) for count in (5, 0, 40, 1)]
    tables[2] = pa.concat_tables([tables[2].slice(0, 7), tables[2].slice(7)])  # as Ray may hand them on
    whole, found = pa.concat_tables(tables), stored(tables, "in-order")
    for use in (0, 1, 2):
        expected = whole.filter(pa.array(whole.column("use").to_numpy() == use))
        assert len(expected)
        for name in LISTS:
            assert rows(found[use].lists[name]) == expected.column(name).to_pylist()
        assert found[use].numbers["group"].tolist() == expected.column("group").to_pylist()
    assert len(found[7].lists["tokens"]) == len(found[7].numbers["group"]) == 0


def test_what_lies_together_is_joined_without_a_copy() -> None:
    tables = [block(np.random.default_rng(seed), 30, 9) for seed in (1, 2)]
    found = stored(tables, "together")
    learnt, others = (found[use].lists["tokens"] for use in (0, 2))
    both = Ragged.joined([learnt, others])
    assert both.flat is learnt.flat
    assert rows(both) == rows(learnt) + rows(others)
    turned = Ragged.joined([others, learnt])
    assert turned.flat is not learnt.flat
    assert rows(turned) == rows(others) + rows(learnt)


def test_the_workers_of_a_node_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(archive, "_write", lambda *of, write=archive._write: written.append(of) or write(*of))
    table, other = (block(np.random.default_rng(seed), 20, 5) for seed in (1, 2))
    first, second = (stored([table], "shared")[0].lists["tokens"] for _ in range(2))
    assert len(written) == 1
    assert rows(first) == rows(second)
    others = stored([other], "another")[0].lists["tokens"]
    assert rows(others) != rows(first), "another training's are others"


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
    found = archive.stored(blocks, "large", ["tokens"], {}, ((0,),))[0].lists["tokens"]
    counts = found.counts_of_first(30_000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.flat) == 12_000_000
    assert counts.sum() == len(found) == 24_000
    assert len(most) >= 12
    assert max(most) < 2 * flat.nbytes, "of 48 MB"
    assert peak < 3 * flat.nbytes
    assert held < 1e6


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*of: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_write", full)
    with pytest.raises(StorageError, match="No space left on device; make room"):
        stored([block(np.random.default_rng(4), 20, 5)], "full")
