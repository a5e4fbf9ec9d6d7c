"""Never twice: the labels of the published run, found again by the hash of the text they were given to.

An export mostly keeps its order from night to night. So a unit looks into the few parts of the published run that have its rows,
which their sketches tell. Where an export does not, and in a small run, all units look into the whole: each node keeps that on its
disk as Arrow files, cut by the first bits of the hash and sorted by it. The processes of a node map them into memory, so there is
one copy per node, in the page cache, bounded by whatever memory is free.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cataloger.data.text import hash_words
from cataloger.errors import StorageError
from cataloger.heads.category_columns import MODELS, SOURCE
from cataloger.heads.columns import also, by_the_model, columns_of
from cataloger.infra import deciding
from cataloger.infra.node_cache import once_per_node
from cataloger.infra.storage import Location, explain
from cataloger.publishing import snapshot
from cataloger.publishing.parts import part_name
from cataloger.publishing.sketches import Sketches, Words
from cataloger.spec import Spec

# Of the parts that a process has looked into: neighbouring units have one in common.
PARTS_HELD = 2
# Sorted in memory one after the other while they are made.
ROWS_PER_BUCKET = 1 << 22
# In nights a day apart, yesterday's are gone when tonight's are made: of 10^9 rows, one copy is 68 GB.
KEPT_SECONDS = 6 * 3600

_held: OrderedDict[tuple[Any, ...], pa.Table] = OrderedDict()
_known: dict[str, Sketches] = {}


@dataclass(frozen=True)
class Published:
    """The run whose labels are carried over: made by the same model with the same settings. Pinned by the plan."""

    run: str
    folder: Location
    units: int
    rows: int
    alternatives: int
    explain: int = 0
    decided: bool = False
    """Whether pins or rules had a part in its labels: what the model says is carried over, not what they say."""
    sketches: Any = None
    """Where units look into the parts that have their rows alone: a reference to `Sketches` in Ray's object store."""

    @property
    def bits(self) -> int:
        """How many leading bits of a hash choose its bucket."""
        return max(0, (self.rows - 1) // ROWS_PER_BUCKET).bit_length()


def find(published: Published, spec: Spec, hashes: pa.Array) -> tuple[npt.NDArray[np.bool_], pa.Table]:
    """(which of the text hashes were labelled in the published run, their answers in the order of `hashes`).

    Without any answer the table has no columns. Raises StorageError when the published run cannot be read.
    """
    words = hash_words(hashes)
    known, rows, tables = np.zeros(len(words), bool), [np.empty(0, np.int64)], list[pa.Table]()
    for table, wanted in _where(published, spec, words):
        if not len(table):
            continue
        first, second = (table.column(name).to_numpy() for name in ("first", "second"))
        wanted = wanted[~known[wanted]]
        at = np.minimum(np.searchsorted(first, words[wanted, 0]), len(first) - 1)
        hit = (first[at] == words[wanted, 0]) & (second[at] == words[wanted, 1])
        known[wanted[hit]] = True
        rows.append(wanted[hit])
        tables.append(table.take(pa.array(at[hit])))
    found = np.concatenate(rows)
    if not len(found):
        return known, pa.table({})
    return known, pa.concat_tables(tables).take(pa.array(np.argsort(found))).drop_columns(["first", "second"])


def _where(published: Published, spec: Spec, words: Words) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
    """Answers of the published run in the order of their hashes, and which of the wanted ones may be among them."""
    if published.sketches is not None:
        # In their order, so that the one which the next unit needs as well is held.
        for unit in sorted(_sketches(published).parts_with(words[:, 0])[0]):
            yield _part(published, spec, unit), np.arange(len(words))
        return
    key = f"{published.run}-{deciding.digest()}"
    folder = once_per_node("carry", key, lambda aside: _build(published, spec, aside), KEPT_SECONDS)
    buckets = _bucket(words, published.bits)
    for bucket in np.unique(buckets):
        yield _open(folder, int(bucket)), np.flatnonzero(buckets == bucket)


def _sketches(published: Published) -> Sketches:
    """Those of one run are in a process at a time, and in the memory that its node shares."""
    if published.run not in _known:
        _known.clear()
        _known[published.run] = ray.get(published.sketches)
    return _known[published.run]


def _part(published: Published, spec: Spec, unit: int) -> pa.Table:
    """The answers of one part."""
    key = (published.folder.uri, published.alternatives, published.explain, spec, unit)
    if key not in _held:
        while len(_held) >= PARTS_HELD:
            _held.popitem(last=False)
        _held[key] = _read(published, spec, published.folder / part_name(unit))
    _held.move_to_end(key)
    return _held[key]


def _read(published: Published, spec: Spec, part: Location) -> pa.Table:
    """A part's distinct hashes in their order, and their answers."""
    columns = columns_of(spec)
    others = (SOURCE, MODELS) if published.decided else ()
    try:
        labels = pq.read_table(
            part.path,
            filesystem=part.filesystem,
            columns=["text_hash", *columns.kept, *also(spec, published.explain), *others],
            partitioning=None,
        )
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{part}: cannot be read, to carry its labels over: {explain(error)}") from error
    labels = by_the_model(labels) if published.decided else labels
    words = hash_words(labels.column("text_hash").combine_chunks())
    table = columns.from_labels(labels, published.alternatives)
    table = table.add_column(0, "first", pa.array(words[:, 0])).add_column(1, "second", pa.array(words[:, 1]))
    _, once = np.unique(words[:, 0], return_index=True)
    return table.take(pa.array(once)).combine_chunks()


def _build(published: Published, spec: Spec, folder: Path) -> None:
    """Write the labels to their buckets, part by part, then sort the buckets one by one."""
    writers: dict[int, Any] = {}
    parts = snapshot.label_files(published.folder, published.units)
    for table in snapshot.each(parts, functools.partial(_read, published, spec)):
        words = np.stack([table.column("first").to_numpy(), table.column("second").to_numpy()], axis=1)
        buckets = _bucket(words, published.bits)
        for bucket in np.unique(buckets):
            if bucket not in writers:
                writers[bucket] = pa.ipc.new_stream(str(folder / f"{bucket}.unsorted"), table.schema)
            writers[bucket].write_table(table.filter(pa.array(buckets == bucket)))
        schema = table.schema
    for bucket in range(1 << published.bits):
        table = schema.empty_table()
        if bucket in writers:
            writers[bucket].close()
            unsorted = folder / f"{bucket}.unsorted"
            with pa.ipc.open_stream(str(unsorted)) as stream:
                table = stream.read_all()
            unsorted.unlink()
        table = table.take(pc.sort_indices(table, [("first", "ascending"), ("second", "ascending")])).combine_chunks()
        with pa.ipc.new_file(str(folder / f"{bucket}.arrow"), table.schema) as file:
            file.write_table(table)


def _bucket(words: Words, bits: int) -> Words:
    return words[:, 0] >> np.uint64(64 - bits) if bits else np.zeros(len(words), np.uint64)


@functools.cache
def _open(folder: Path, bucket: int) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(folder / f"{bucket}.arrow"))).read_all().combine_chunks()
