"""Which rules match which products, of many rules at once.

Most rules ask first whether a field is a certain value, a brand for instance. All values of a column are looked up in one pass, and what
else such a rule says is asked of the few products that have its value.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.curation.conditions import All, Condition, OneOf, Rows

Hits = npt.NDArray[np.int64]


def matches(conditions: Sequence[Condition], table: pa.Table) -> list[Hits]:
    """Of each condition the rows that fulfil it, in their order."""
    rows, found = Rows(table), [np.empty(0, np.int64) for _ in conditions]
    by_column = defaultdict[str, list[tuple[int, OneOf]]](list)
    for number, condition in enumerate(conditions):
        if key := _key(condition):
            by_column[key.column].append((number, key))
        else:
            found[number] = _true(condition.holds(rows))
    for column, keyed in by_column.items():
        own = _rows_by_value(rows, column, {text for _, key in keyed for text in key.texts})
        for number, key in keyed:
            some = [own[text] for text in dict.fromkeys(key.texts) if text in own]
            if not some:
                continue
            candidates = np.sort(np.concatenate(some))
            if conditions[number] != key:
                few = Rows(table.take(pa.array(candidates)))
                candidates = candidates[_true(conditions[number].holds(few))]
            found[number] = candidates
    return found


def _key(condition: Condition) -> OneOf | None:
    """What must be a certain text of whatever fulfils the condition."""
    parts = condition.of if isinstance(condition, All) else (condition,)
    return next((part for part in parts if isinstance(part, OneOf) and not part.numbers), None)


def _rows_by_value(rows: Rows, column: str, values: set[str]) -> dict[str, Hits]:
    """The rows of each value that any has."""
    known = pa.array(sorted(values), pa.large_string())
    place = pc.fill_null(pc.index_in(rows.plain(column), known), -1).to_numpy()
    there = np.flatnonzero(place >= 0)
    order = there[np.argsort(place[there], kind="stable")]
    each, starts = np.unique(place[order], return_index=True)
    names = known.take(pa.array(each)).to_pylist()
    return dict(zip(names, np.split(order, starts[1:]), strict=True)) if len(names) else {}


def _true(holds: pa.Array) -> Hits:
    return np.flatnonzero(holds.to_numpy(zero_copy_only=False))
