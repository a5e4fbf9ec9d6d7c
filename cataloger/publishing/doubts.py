"""The labels that most need a person's look, and the words and pictures that they were given to.

Published parts hold neither. Those of a few products are read again from the catalog: just the rows in question, on the
driver, whatever wrote the parts and when.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.data.catalog import Catalog
from cataloger.data.inputs import Input
from cataloger.data.reading import read_units
from cataloger.data.texts import SHOWN_CHARACTERS
from cataloger.data.units import Unit
from cataloger.errors import CatalogerError, StorageError
from cataloger.heads.columns import published_in
from cataloger.infra.storage import Location, explain
from cataloger.publishing.parts import part_name

log = logging.getLogger(__name__)
SHOWN = 12
ROWS_HASHED_AT_ONCE = 256
# Of the named columns of a row group, decompressed: to read one row of it, the driver must hold its chunks compressed.
MAX_ROW_GROUP_BYTES = 1 << 30


@dataclass(frozen=True)
class Doubt:
    """A label that needs review: row `row` of the part of `unit`; `text` is a hash of what was labelled."""

    confidence: float
    text: int
    unit: int
    row: int


@dataclass(frozen=True)
class Product:
    """A doubtful label for people: categories and alternatives are (path, confidence), the most probable first.

    `confidence` is that of the label as a whole. `words` are the first 200 characters of what the model read, None where the
    catalog could not be read again; `picture` is a small JPEG of what it saw.
    """

    id: str | None
    confidence: float
    categories: tuple[tuple[str, float], ...]
    alternatives: tuple[tuple[str, float], ...]
    words: str | None
    picture: bytes | None = None


@dataclass(frozen=True)
class Origin:
    """What a run was made from: its catalog, in units, of which so many rows were rejected, and what its model reads of a row."""

    catalog: Catalog
    units: Sequence[Unit]
    rejects: Mapping[int, int]
    reads: Input


def in_part(
    confidence: npt.NDArray[np.float32], needs_review: npt.NDArray[np.bool_], texts: pa.ChunkedArray, unit: int
) -> tuple[Doubt, ...]:
    """The least certain labels of a part that need review, one for each text."""
    rows = np.flatnonzero(needs_review)
    rows = rows[np.argsort(confidence[rows], kind="stable")]
    found: dict[int, Doubt] = {}
    for first in range(0, len(rows), ROWS_HASHED_AT_ONCE):
        some = rows[first : first + ROWS_HASHED_AT_ONCE]
        for row, text in zip(some, ids.hash_ids(texts.take(pa.array(some))), strict=True):
            found.setdefault(int(text), Doubt(float(confidence[row]), int(text), unit, int(row)))
        if len(found) >= SHOWN:
            break
    return tuple(found.values())[:SHOWN]


def least(doubts: Iterable[Doubt]) -> tuple[Doubt, ...]:
    """The least certain of these, one for each text."""
    of_text: dict[int, Doubt] = {}
    for doubt in sorted(doubts, key=lambda doubt: (doubt.confidence, doubt.unit, doubt.row)):
        of_text.setdefault(doubt.text, doubt)
    return tuple(of_text.values())[:SHOWN]


def products(doubts: Sequence[Doubt], folder: Location, origin: Origin) -> list[Product]:
    """What the parts in `folder` and the catalog say of these labels, in their order. Raises StorageError for a part.

    Without words and pictures where the catalog cannot be read any more, is another one by now, or has such large row groups that the
    driver had better not.
    """
    labels = dict(_labels(doubts, folder))
    given = _given(doubts, origin, {label["text_hash"] for label in labels.values()})
    found = {doubt: _product(label, *given.get(label["text_hash"], (None, None))) for doubt, label in labels.items()}
    return [found[doubt] for doubt in doubts]


def _labels(doubts: Sequence[Doubt], folder: Location) -> Iterator[tuple[Doubt, dict[str, Any]]]:
    """Each doubt with its row of the labels, part by part."""
    for unit, of_unit in groupby(sorted(doubts, key=lambda doubt: doubt.unit), key=lambda doubt: doubt.unit):
        rows, part = list(of_unit), folder / part_name(unit)
        try:
            with pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
                columns = published_in(file.schema_arrow)
                table = file.read(columns=["id", "text_hash", *columns.kept])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StorageError(f"{part}: cannot be read, to show its least certain labels: {explain(error)}") from error
        table = table.take([doubt.row for doubt in rows])
        confidence = columns.confidence(table).to_pylist()
        for doubt, label, categories, sure in zip(
            rows, table.to_pylist(), columns.scored(table), confidence, strict=True
        ):
            yield doubt, {**label, "scored": categories, "confidence": sure}


def _product(label: Mapping[str, Any], words: str | None, picture: bytes | None) -> Product:
    return Product(
        id=None if label["id"] is None else str(label["id"])[:SHOWN_CHARACTERS],
        confidence=label["confidence"],
        categories=tuple(label["scored"]),
        alternatives=tuple((other["category"], other["confidence"]) for other in label.get("alternatives", ())),
        words=words,
        picture=picture,
    )


def _given(doubts: Sequence[Doubt], origin: Origin, wanted: Set[str]) -> dict[str, tuple[str, bytes | None]]:
    """What the model was given, by its hash: the beginning of the text, and the picture; as far as they can be had."""
    looked_up = _rows(doubts, origin)
    paths = {segment.path for part in looked_up for segment in part.segments}
    sizes = {file.path: file.sizes for file in origin.catalog.files if file.path in paths}
    rows = [
        part
        for part in looked_up
        if all(sizes[segment.path][segment.row_group] <= MAX_ROW_GROUP_BYTES for segment in part.segments)
    ]
    # A column may be named twice, and is read once.
    schema = pa.schema([origin.catalog.schema.field(name) for name in dict.fromkeys(origin.reads.columns)])
    found: dict[str, tuple[str, bytes | None]] = {}
    try:
        for _, table in read_units(origin.catalog.location.filesystem, rows, schema):
            here = origin.reads.distinct(origin.reads.read(table).values)
            chosen = pc.is_in(here.keys, pa.array(sorted(wanted - found.keys() - {None}), here.keys.type))
            values = here.values.filter(chosen)
            pairs = zip(origin.reads.shown(values).to_pylist(), origin.reads.thumbnails(values), strict=True)
            found.update(zip(here.keys.filter(chosen).to_pylist(), pairs, strict=True))
    except (CatalogerError, OSError, pa.ArrowException) as error:
        # A catalog may be replaced as soon as it has been labelled.
        log.warning("the words of the least certain products could not be read again: %s", error)
    return found


def _rows(doubts: Sequence[Doubt], origin: Origin) -> list[Unit]:
    """The rows of the catalog that the doubtful labels may be of, each once and in its order.

    A unit's labels stand in the order of its rows, with the rejected ones left out: row n of the labels is at most as many
    rows further on as were rejected.
    """
    spans: list[tuple[int, int, int]] = []
    for unit, row in sorted((doubt.unit, doubt.row) for doubt in doubts):
        first, end = row, row + origin.rejects.get(unit, 0) + 1
        if spans and spans[-1][0] == unit and first <= spans[-1][2]:
            first = spans.pop()[1]
        spans.append((unit, first, end))
    units = {unit.index: unit for unit in origin.units}
    return [_cut(units[unit], first, end) for unit, first, end in spans]


def _cut(unit: Unit, first: int, end: int) -> Unit:
    """Rows `first` to `end` of a unit."""
    segments, start = [], 0
    for segment in unit.segments:
        skipped, stop = max(0, first - start), min(segment.rows, end - start)
        if skipped < stop and segment.stored:
            # Of a table, whose rows lie there with deleted ones between them.
            there = np.setdiff1d(np.arange(segment.stored.rows), segment.stored.deleted)[skipped:stop]
            stored = segment.stored.piece(int(there[0]), int(there[-1] - there[0] + 1))
            rows = stop - skipped
            segments.append(replace(segment, start=segment.start + int(there[0]), rows=rows, stored=stored))
        elif skipped < stop:
            segments.append(replace(segment, start=segment.start + skipped, rows=stop - skipped))
        start += segment.rows
    return Unit(unit.index, tuple(segments))
