"""The tags that somebody wrote: which are learnt from, and why others are not."""

from typing import Any

import pyarrow as pa
import pytest

from cataloger.data.kinds import SPANS, VALUES, is_tags, label_kind
from cataloger.data.spans import (
    AMBIGUOUS,
    NOT_FOUND,
    OUTSIDE,
    OVERLAPPED,
    UNKNOWN_FIELD,
    UNNAMED,
    Span,
    spans_of,
)

COLUMNS, TEXTS = ("title", "description"), ("Red Shoe  36 red", "a shoe, made of red\tleather")


def at(start: int | None, end: int | None, name: str | None = "Colour", field: str = "title") -> dict[str, Any]:
    return {"field": field, "start": start, "end": end, "name": name}


@pytest.mark.parametrize(
    ("tags", "kept", "problems"),
    [
        ([at(0, 3)], [Span(0, 0, 3, "Colour")], {}),
        ([at(0, 3, " Colour ")], [Span(0, 0, 3, "Colour")], {}),
        ([at(0, 3), at(0, 3)], [Span(0, 0, 3, "Colour")], {}),
        ([at(0, 17), at(3, 3), at(4, 2), at(-1, 2), at(None, 3)], [], {OUTSIDE: 5}),
        ([at(0, 3, field="brand")], [], {UNKNOWN_FIELD: 1}),
        ([at(0, 3, ""), at(0, 3, None), None], [], {UNNAMED: 3}),
        ([at(0, 3), at(0, 8, "Kind")], [Span(0, 0, 8, "Kind")], {OVERLAPPED: 1}),
        ([at(0, 8), at(0, 3)], [Span(0, 0, 8, "Colour")], {}),  # of the same name, it is no loss
        ([at(0, 3), at(0, 3, "Kind")], [Span(0, 0, 3, "Colour")], {OVERLAPPED: 1}),
        ([], [], {}),
    ],
)
def test_of_stretches(tags: list[Any], kept: list[Span], problems: dict[str, int]) -> None:
    assert spans_of(tags, TEXTS, COLUMNS, placed=True) == (kept, problems)


@pytest.mark.parametrize(
    ("value", "kept", "problems"),
    [
        ("36", [Span(0, 10, 12, "x")], {}),
        ("Red", [Span(0, 0, 3, "x")], {}),
        ("leather", [Span(1, 20, 27, "x")], {}),
        ("RED LEATHER", [Span(1, 16, 27, "x")], {}),
        ("shoe", [Span(1, 2, 6, "x")], {}),  # just so, and once; in capitals it stands in the title as well
        ("SHOE", [Span(0, 4, 8, "x", hidden=True), Span(1, 2, 6, "x", hidden=True)], {AMBIGUOUS: 1}),
        ("red", [Span(0, 13, 16, "x", hidden=True), Span(1, 16, 19, "x", hidden=True)], {AMBIGUOUS: 1}),
        ("ed", [], {NOT_FOUND: 1}),
        ("blue", [], {NOT_FOUND: 1}),
        ("(", [], {NOT_FOUND: 1}),
        (None, [], {NOT_FOUND: 1}),
    ],
)
def test_of_values(value: str | None, kept: list[Span], problems: dict[str, int]) -> None:
    assert spans_of([{"name": "x", "value": value}], TEXTS, COLUMNS, placed=False) == (kept, problems)


def test_what_is_known_goes_before_what_is_not() -> None:
    tags = [{"name": "x", "value": "red"}, {"name": "y", "value": "red\tleather"}]
    spans, problems = spans_of(tags, TEXTS, COLUMNS, placed=False)
    assert [span for span in spans if not span.hidden] == [Span(1, 16, 27, "y")]
    assert problems == {AMBIGUOUS: 1}


def test_the_types_of_label_columns() -> None:
    stretches = [("field", pa.string()), ("start", pa.int32()), ("end", pa.int64()), ("name", pa.large_string())]
    assert label_kind(pa.list_(pa.struct(stretches))) == SPANS
    assert label_kind(pa.large_list(pa.struct([("name", pa.string()), ("value", pa.string())]))) == VALUES
    assert label_kind(pa.list_(pa.struct([("name", pa.string()), ("value", pa.int64())]))) is None
    assert label_kind(pa.list_(pa.string())) == "lists of paths"
    assert label_kind(pa.int64()) is None
    assert not is_tags(pa.string())


def test_a_value_is_found_where_there_is_no_space_between_words() -> None:
    found, problems = spans_of([{"name": "x", "value": "红色"}], ("漂亮红色连衣裙",), ("title",), placed=False)
    assert (found, problems) == ([Span(0, 2, 4, "x")], {})


def test_values_may_say_more_than_they_need() -> None:
    """What a structure has beside name and value makes it no stretch."""
    kind = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string()), ("start", pa.float64())]))
    assert label_kind(kind) == VALUES
    tags = [{"name": "x", "value": "36", "start": 1.5}]
    assert spans_of(tags, TEXTS, COLUMNS, placed=False) == ([Span(0, 10, 12, "x")], {})
