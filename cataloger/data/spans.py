"""The true tags of a labelled catalog: stretches of a row's own texts, each with a name, or values that are looked for there."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cataloger.data.batching import IntArray, Ragged
from cataloger.data.fields import of_words
from cataloger.data.windows import Windows

# Why a tag that somebody wrote is not learnt from.
UNNAMED, UNKNOWN_FIELD, OUTSIDE = "without a name", "of a column that is not read", "not inside the text"
OVERLAPPED, NOT_FOUND = "within a longer one of another name", "not in the text"
AMBIGUOUS, UNREAD = "in several places of the text", "beyond what is read"
# Numbers of words: outside of all tags, and what nobody knows.
OUT, HIDDEN = 0, -1


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a column; `hidden` where nobody knows whether they have the name."""

    field: int
    start: int
    end: int
    name: str
    hidden: bool = False


def name_of(written: Mapping[str, Any] | None) -> str | None:
    """The name of a tag as written, without white space around it; None where it has none."""
    name = written["name"] if written else None
    return (name.strip() or None) if name else None


def spans_of(
    written: Sequence[Mapping[str, Any] | None] | None, texts: Sequence[str], columns: Sequence[str], placed: bool
) -> tuple[list[Span], Counter[str]]:
    """(the tags of a row, how many of those that are written are left out, by why). `texts` are those of the columns; `placed` is
    whether the tags say where they stand.

    Of stretches that overlap and have different names, the longest is kept, and the first of equal ones.
    """
    found: list[Span] = []
    problems: Counter[str] = Counter()
    for tag in written or ():
        name = name_of(tag)
        if tag is None or name is None:
            problems[UNNAMED] += 1
            continue
        own = _placed(tag, name, texts, columns) if placed else _searched(tag["value"], name, texts)
        if isinstance(own, str):
            problems[own] += 1
        else:
            problems[AMBIGUOUS] += any(span.hidden for span in own)
            found += own
    kept: list[Span] = []
    for span in sorted(set(found), key=lambda span: (span.hidden, span.start - span.end, found.index(span))):
        if not any(_overlap(span, other) for other in kept):
            kept.append(span)
        elif not span.hidden and not any(
            _overlap(span, other) and other.name == span.name and not other.hidden for other in kept
        ):
            problems[OVERLAPPED] += 1
    return sorted(kept, key=lambda span: (span.field, span.start)), +problems


def _placed(tag: Mapping[str, Any], name: str, texts: Sequence[str], columns: Sequence[str]) -> list[Span] | str:
    field, start, end = tag["field"], tag["start"], tag["end"]
    if field not in columns:
        return UNKNOWN_FIELD
    number = columns.index(field)
    if start is None or end is None or not 0 <= start < end <= len(texts[number]):
        return OUTSIDE
    return [Span(number, start, end, name)]


def _searched(value: str | None, name: str, texts: Sequence[str]) -> list[Span] | str:
    """Where a value stands: just so, or else with other white space, in capitals or not; never within a word."""
    parts = (value or "").split()
    if not parts:
        return NOT_FOUND
    pattern = r"\s+".join(re.escape(part) for part in parts)
    for flags in (re.NOFLAG, re.IGNORECASE):
        found = [
            (number, *match.span())
            for number, text in enumerate(texts)
            for match in re.finditer(pattern, text, flags)
            if not (_within_a_word(text, match.start()) or _within_a_word(text, match.end()))
        ]
        if found:
            return [Span(field, start, end, name, hidden=len(found) > 1) for field, start, end in found]
    return NOT_FOUND


def _within_a_word(text: str, place: int) -> bool:
    """Whether the characters before and at a place are of one word."""
    pair = text[max(0, place - 1) : place + 1]
    return 0 < place < len(text) and bool(of_words(np.array([ord(one) for one in pair], np.uint32)).all())


def _overlap(one: Span, other: Span) -> bool:
    return one.field == other.field and one.start < other.end and other.start < one.end


def taught(
    rows: Sequence[Sequence[Span]],
    encoded: Windows,
    names: Mapping[str, int],
    told: npt.NDArray[np.bool_] | None = None,
) -> tuple[Ragged, int]:
    """(for each word of each row OUT, 1 + 2n where a tag of name n begins, 2 + 2n where it goes on, HIDDEN; how many tags no word is of).

    A word that a tag has a part of is the tag's. Of rows that are not `told`, nothing is known.
    """
    words, origins = encoded.words, encoded.origins
    labels = np.zeros(len(origins), np.int32)
    beyond = 0
    for row, spans in enumerate(rows):
        first, last = words.offsets[row], words.offsets[row + 1]
        own = origins[first:last]
        if told is not None and not told[row]:
            labels[first:last] = HIDDEN
        for span in spans:
            inside = np.flatnonzero((own[:, 0] == span.field) & (own[:, 1] < span.end) & (own[:, 2] > span.start))
            beyond += not len(inside)
            inside = inside[labels[first:last][inside] == OUT]
            if len(inside):
                number = names.get(span.name)
                known = number is not None and number >= 0 and not span.hidden
                labels[first + inside] = 2 + 2 * number if known else HIDDEN  # type: ignore[operator]
                if known:
                    labels[first + inside[0]] -= 1
    return Ragged(labels, words.offsets), beyond


def names_in(labels: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """(first word, last word, name) of the tags in labels of words end to end, as `taught` makes them."""
    name = np.where(labels > 0, (labels - 1) // 2, -1)
    begins = (name >= 0) & ((labels % 2 == 1) | (np.append(-1, name[:-1]) != name))
    ends = (name >= 0) & (np.append(begins[1:], True) | (np.append(name[1:], -1) != name))
    return np.flatnonzero(begins), np.flatnonzero(ends), name[begins]
