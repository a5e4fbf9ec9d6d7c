"""Tags as sets, so that they are scored as categories are: a value is a path, `Brand > Sony`, and so is the place of a tag.

The first level is the name alone. A row that has a value twice has it once; where it stands counts for the places.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cataloger.data.spans import Span, name_of, spans_of
from cataloger.heads.sets import Sets
from cataloger.taxonomy import SEPARATOR

# Columns of a row's own texts among its labels, by number; of the paths of places in predictions.
OWN, PLACES, TRUE_PLACES = "own.", "places", "true_places"
# Of predictions, the counts of `pairs`.
PAIRS = ("pairs_right", "pairs_given", "pairs_there")
LISTS = pa.list_(pa.string())


def path(name: str, what: str) -> str:
    """In the form of a category; what would part it into further levels is written in another way."""
    return SEPARATOR.join(" ".join(part.split()).replace(SEPARATOR, " › ") for part in (name, what))


def scored_paths(tags: pa.ChunkedArray) -> list[list[tuple[str, float]]]:
    """(value, confidence) of each row's published tags."""
    return [[(path(tag["name"], tag["value"]), tag["confidence"]) for tag in row] for row in tags.to_pylist()]


def given_paths(
    tags: pa.ChunkedArray, hidden: Sequence[Sequence[Span]], columns: Sequence[str]
) -> tuple[pa.Array, pa.Array]:
    """(values, places) of published tags, each a list per row; without the places of which nobody knows whether they are right."""
    rows = tags.to_pylist()
    values = [sorted({path(tag["name"], tag["value"]) for tag in row}) for row in rows]
    places = []
    for row, unknown in zip(rows, hidden, strict=True):
        known = [
            tag
            for tag in row
            if not any(
                columns[span.field] == tag["field"] and span.start < tag["end"] and tag["start"] < span.end
                for span in unknown
            )
        ]
        places.append(sorted({_place(tag["name"], tag["field"], tag["start"], tag["end"]) for tag in known}))
    return pa.array(values, LISTS), pa.array(places, LISTS)


def true_paths(labels: pa.Table, columns: Sequence[str], placed: bool) -> tuple[pa.Array, pa.Array, list[list[Span]]]:
    """(values, places, what may be a tag) of `written`, null for a row without a list; `own.N` are the texts of the columns by number.

    With `placed`, tags are stretches of the texts. Without, they are values, whose places are those that can be told.
    """
    own_texts = [labels.column(f"{OWN}{number}").cast(pa.large_string()) for number in range(len(columns))]
    texts = [[text or "" for text in column.to_pylist()] for column in own_texts]
    hidden: list[list[Span]] = []
    values: list[list[str] | None] = []
    places: list[list[str] | None] = []
    for row, written in enumerate(labels.column("written").to_pylist()):
        hidden.append([])
        if written is None:
            values.append(None)
            places.append(None)
            continue
        own = [column[row] for column in texts]
        spans, _ = spans_of(written, own, columns, placed)
        hidden[-1] = [span for span in spans if span.hidden]
        spans = [span for span in spans if not span.hidden]
        found = [(span.name, own[span.field][span.start : span.end]) for span in spans] if placed else _values(written)
        values.append(sorted({path(name, value) for name, value in found}))
        places.append(sorted({_place(span.name, columns[span.field], span.start, span.end) for span in spans}))
    return pa.array(values, LISTS), pa.array(places, LISTS), hidden


def _values(written: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, str]]:
    return [(name, tag["value"]) for tag in written if tag and tag["value"] and (name := name_of(tag))]


def _place(name: str, field: str, start: int, end: int) -> str:
    return path(name, f"{field} {start}-{end}")


def counts_by_name(true: Sets, given: Sets) -> pd.DataFrame:
    """Precision, recall and F1 of each name over what is below it, and how many true ones there are; the largest first."""
    names = [name.split(SEPARATOR)[0] for name in true.names]
    order = sorted(set(names))
    place = {name: number for number, name in enumerate(order)}
    of = np.array([place[name] for name in names], np.int64)
    both = true.rows.multiply(given.rows).tocsr()
    had, found, right = (
        np.bincount(of[matrix.indices], minlength=len(order)) for matrix in (true.rows, given.rows, both)
    )
    report = pd.DataFrame(
        {
            "name": order,
            "precision": right / np.maximum(found, 1),
            "recall": right / np.maximum(had, 1),
            "f1": 2 * right / np.maximum(had + found, 1),
            "true": had,
        }
    )
    return report[had + found > 0].sort_values(["true", "name"], ascending=[False, True])


def pairs(
    true: Sequence[Sequence[str] | None],
    given: Sequence[Sequence[tuple[str, float]]],
    asked: Sequence[Sequence[str]] | None = None,
) -> npt.NDArray[np.int64]:
    """[rows, 3] pairs of a product and a name: that are right, that are given, that there are (as WDC-PAVE counts; Baumann, Brinkmann and
    Bizer 2024).

    A pair is right where the most confident value that is given is one of the true ones. `given` are (path, confidence) of each
    row; `asked` are the names that count in each row, all of them without it.
    """
    found = np.zeros((len(given), 3), np.int64)
    for row, (theirs, mine) in enumerate(zip(true, given, strict=True)):
        values: dict[str, set[str]] = {}
        for value in theirs or ():
            values.setdefault(value.split(SEPARATOR)[0], set()).add(value)
        best = {value.split(SEPARATOR)[0]: value for value, _ in sorted(mine, key=lambda pair: pair[1])}
        for name in {*values, *best} if asked is None else set(asked[row]) & {*values, *best}:
            right = name in best and best[name] in values.get(name, ())
            found[row] += (right, name in best, name in values)
    return found


def value_f1(counts: npt.NDArray[np.int64]) -> float:
    """F1 over all pairs that are counted: a wrong value counts against precision, and against recall as well where there is a true one."""
    right, given, true = counts.sum(axis=0).tolist()
    return float(2 * right / max(1, given + true))
