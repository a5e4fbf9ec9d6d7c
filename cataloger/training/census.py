"""What the ingest's rows come to, counted on the nodes that have them: the driver adds up."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data import ids
from cataloger.data.batching import Ragged
from cataloger.data.images import UNREACHABLE
from cataloger.data.seen import KEPT, Keys, Seen
from cataloger.infra import spread
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.rows import NOT_UTF8, TAGS_LEFT_OUT

# What the categories are learnt from, or measured by.
LEARNT = (TRAINING, VALIDATION)


@dataclass
class Census:
    """Of all rows of the ingest's tables."""

    rows: Counter[int] = field(default_factory=Counter)
    """By use."""
    characters: Counter[int] = field(default_factory=Counter)
    """Of their texts, by use."""
    told: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Rows of a use that have an answer, by (use, number of the answer)."""
    not_utf8: int = 0
    first_not_utf8: str = ""
    pictured: int = 0
    unreachable: int = 0
    """Rows whose picture nobody answered for."""
    tags_left_out: Counter[str] = field(default_factory=Counter)
    """How many tags are not learnt from, by why."""

    def add(self, other: "Census") -> None:
        for name in ("rows", "characters", "told", "tags_left_out"):
            getattr(self, name).update(getattr(other, name))
        self.first_not_utf8 = self.first_not_utf8 or other.first_not_utf8
        for name in ("not_utf8", "pictured", "unreachable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def census(blocks: Sequence[Any]) -> Census:
    """Needs a running Ray."""
    found = Census()
    for one in spread.each(blocks, count):
        found.add(one)
    return found


def count(table: pa.Table) -> Census:
    """Of one of the ingest's tables."""
    uses, names = table.column("use").to_numpy(), table.column(NOT_UTF8).drop_null()
    found = Census(Counter(uses.tolist()), not_utf8=len(names), first_not_utf8=names[0].as_py() if len(names) else "")
    if "text" in table.column_names:
        lengths = pc.fill_null(pc.utf8_length(table.column("text")), 0).to_numpy()
        found.characters = Counter({use: int(lengths[uses == use].sum()) for use in found.rows})
    if "picture" in table.column_names:
        found.pictured = len(table) - table.column("picture").null_count
        found.unreachable = pc.sum(table.column(UNREACHABLE)).as_py() or 0
    answers = [name for name in table.column_names if name.partition(".")[0] == "labels"]
    for number in range(len(answers)):
        column = table.column(f"labels.{number}" if number else "labels")
        labels = Ragged.from_arrow(column.combine_chunks().fill_null([]))
        told = labels.has(labels.flat >= 0)
        found.told.update({(use, number): int((told & (uses == use)).sum()) for use in LEARNT})
    for said in table.column(TAGS_LEFT_OUT).drop_null().to_pylist() if TAGS_LEFT_OUT in table.column_names else ():
        found.tags_left_out += Counter(json.loads(said))
    return found


def seen_rows(blocks: Sequence[Any], uses: Sequence[int], rows: int) -> Seen:
    """A sample of the rows of these uses, of which there are so many: those that are learnt from or measured by."""
    # A power of two: what several trainings saw is then told by the smaller of their samples.
    every = 1 << (ids.sample_every(rows, KEPT) - 1).bit_length()
    found = [np.empty(0, np.uint64), *spread.each(blocks, functools.partial(_sampled, uses=tuple(uses), every=every))]
    return Seen(np.unique(np.concatenate(found)), every)


def _sampled(table: pa.Table, uses: tuple[int, ...], every: int) -> Keys:
    wanted = pa.array(np.isin(table.column("use").to_numpy(), uses))
    # Others may have no key: where one is null, pyarrow makes floating-point numbers of all.
    keys: Keys = table.column("key").filter(wanted).drop_null().to_numpy()
    kept: Keys = np.unique(keys[keys % np.uint64(every) == 0])
    return kept
