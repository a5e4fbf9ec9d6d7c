"""Pins: the category that a person gave to a product by its id.

Each node keeps them on its disk as one Arrow file that its processes map into memory, sorted by a hash of the id: a million pins cost
a process nothing but the pages that it looks at.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.curation.known import Known
from cataloger.curation.tables import ids_of, in_utc, paths_of, read_table
from cataloger.data import ids
from cataloger.data.ids import as_text
from cataloger.data.kinds import is_list
from cataloger.errors import ConfigError
from cataloger.infra import runtime
from cataloger.infra.node_cache import working_folder

log = logging.getLogger(__name__)
FILE = "pins.arrow"
ABOUT = ("who", "when", "note")


@dataclass(frozen=True)
class Pins:
    """Pins on their way to the cluster. `table` has id, category_path, and who, when and note as far as they were there; one row per id."""

    table: pa.Table
    repeated: int
    """Ids that were pinned more than once, of which the last pin counts."""
    digest: str

    @property
    def lists(self) -> bool:
        """Whether each pin is a list of categories."""
        return is_list(self.table.schema.field("category_path").type)

    @property
    def paths(self) -> tuple[str, ...]:
        """All categories that are pinned, each once."""
        column = self.table.column("category_path").combine_chunks()
        return tuple(pc.unique(column.flatten() if self.lists else column).to_pylist())

    def share(self) -> "SharedPins":
        """Needs a running Ray."""
        with working_folder("pins") as folder:
            _write(self.table, folder / FILE)
            return SharedPins(self.digest, self.lists, self.paths, [runtime.share_folder(folder)])


@dataclass(frozen=True)
class SharedPins:
    """Pins in Ray's object store, known by `digest`."""

    digest: str
    lists: bool
    paths: tuple[str, ...]
    shared: list[Any] = field(repr=False)  # a list, so that Ray passes the reference on instead of the bytes

    def find(self, own: pa.Array | pa.ChunkedArray) -> pa.Array:
        """[N] the category of each id, or its list of them; null for ids without a pin."""
        return _open(runtime.local_copy(self.shared[0], f"pins-{self.digest}") / FILE).find(own)


def read_pins(uri: str, flag: str = "--pins", also: Sequence[str] = ()) -> Pins:
    """Read and check pins; of several of one id the one with the latest `when` counts, or else the last one. Raises CatalogerError.

    The columns `also` are kept as they are, where they are there.
    """
    where = f"{flag} {uri}"
    others = (*ABOUT, *(name for name in also if name not in ("id", "category_path", *ABOUT)))
    table = read_table(uri, flag, ("id", "category_path"), others)
    columns: Mapping[str, pa.Array] = {
        "id": ids_of(table, where),
        "category_path": paths_of(table, where),
        **{name: table.column(name) for name in others if name in table.column_names},
    }
    table = pa.table(columns)
    order = pa.array(np.arange(len(table)))
    if "when" in columns:
        # Of equal ones, and of those without, the last in the file is the last.
        when = columns["when"].combine_chunks() if isinstance(columns["when"], pa.ChunkedArray) else columns["when"]
        when = when.cast(when.type.value_type) if pa.types.is_dictionary(when.type) else when
        if pa.types.is_string(when.type) or pa.types.is_large_string(when.type):
            when = pa.array([None if one is None else in_utc(one) for one in when.to_pylist()], pa.string())
        keys = pa.table({"when": when, "row": order})
        try:
            order = pc.sort_indices(keys, [("when", "ascending"), ("row", "ascending")], null_placement="at_start")
        except pa.ArrowException as error:
            raise ConfigError(
                f"{where}: column 'when' is {keys.column('when').type}, expected times, dates or text"
            ) from error
    own = pa.table({"id": columns["id"].take(order), "place": np.arange(len(table))})
    last = own.group_by("id").aggregate([("place", "max")]).column("place_max").to_numpy()
    repeated = len(table) - len(last)
    if repeated:
        log.warning("%s: %s of its rows are of ids that are pinned again; the later pin counts", where, f"{repeated:,}")
        table = table.take(pa.array(np.sort(order.to_numpy()[last])))
    by_id = table.select(["id", "category_path"]).take(pc.sort_indices(table.column("id")))
    digest = hashlib.sha256()
    for batch in by_id.combine_chunks().to_batches():
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update(repr(row).encode())
    return Pins(table, repeated, digest.hexdigest()[:16])


def check(pins: Pins | SharedPins, known: Known, where: str, lists: bool) -> None:
    """Raises ConfigError for pins that a model with these categories, or lists of them, cannot have given."""
    if pins.lists != lists:
        has, wants = (
            ("lists of categories", "one") if pins.lists else ("one category for each product", "lists of them")
        )
        raise ConfigError(f"{where}: has {has}, and the model gives {wants}; write category_path so")
    known.check(pins.paths, where)


def _write(table: pa.Table, file: Path) -> None:
    hashes = ids.hash_ids(table.column("id"))
    order = pa.array(np.argsort(hashes, kind="stable"))
    table = table.select(["id", "category_path"]).take(order).add_column(0, "hash", pa.array(hashes).take(order))
    with pa.ipc.new_file(str(file), table.schema) as sink:
        sink.write_table(table.combine_chunks())


class PinFile:
    """Pins that are mapped into memory."""

    def __init__(self, file: Path) -> None:
        self.table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()

    @cached_property
    def _hashes(self) -> Any:
        return self.table.column("hash").combine_chunks().to_numpy() if len(self.table) else np.empty(0, np.uint64)

    def find(self, own: pa.Array | pa.ChunkedArray) -> pa.Array:
        """See `SharedPins.find`."""
        plain = as_text(own)
        hashes = ids.hash_ids(plain)
        first, end = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        rows = np.flatnonzero(end > first)
        found = np.full(len(hashes), -1)
        pinned = self.table.column("id")
        # Two ids may have the same hash: those that have are looked at one after the other.
        for ahead in range(int((end - first).max(initial=0))):
            at = first[rows] + ahead
            there = at < end[rows]
            same = pc.equal(pinned.take(pa.array(at[there])), plain.take(pa.array(rows[there])))
            hit = pc.fill_null(same, False).to_numpy()
            found[rows[there][hit]] = at[there][hit]
        return _combined(self.table.column("category_path").take(pa.array(found, mask=found < 0)))


def _combined(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


@lru_cache(maxsize=2)
def _open(file: Path) -> PinFile:
    return PinFile(file)
