"""The texts of some columns as one, and where each of its characters stands in the row's own texts.

What the model reads is composed (`text.compose`): white space collapsed, empty fields left out, the rest joined. What it finds
there is published in the characters of the catalog's columns.
"""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.batching import IntArray
from cataloger.data.text import SEPARATOR, compose

Characters = npt.NDArray[np.uint32]
# What the regular expression `\s` of `compose` finds; and what Arrow trims, Unicode's white space.
COLLAPSED = np.array([9, 10, 12, 13, 32], np.uint32)
TRIMMED = np.array(
    [*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000],
    np.uint32,
)
NOWHERE = -1
# Scripts without a space between words: each of their tokens is a word of its own.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
BASIC = 1 << 16


@dataclass(frozen=True)
class Composed:
    """N texts of C characters together; those of row i are `offsets[i]` to `offsets[i + 1]`."""

    texts: pa.Array
    """What `text.compose` makes of them."""
    offsets: IntArray
    characters: Characters
    """[C]"""
    field: npt.NDArray[np.int16]
    """[C] the number of the column that each came from, `NOWHERE` between two of them."""
    place: npt.NDArray[np.int32]
    """[C] where it stands in the column's own text."""


def composed(columns: Sequence[pa.Array], max_tokens: int) -> Composed:
    """Of columns of large strings without nulls, row by row: as `compose` reads so many tokens."""
    names = [str(number) for number in range(len(columns))]
    table = pa.table(dict(zip(names, columns, strict=True)))
    texts = compose(table, names, max_tokens)
    rows, collapsed = len(table), [_collapsed(column) for column in columns]
    lengths = np.stack([np.bincount(row, minlength=rows) for row, _ in collapsed], axis=1)
    there = lengths > 0
    before = (np.cumsum(there, axis=1) > 1) & there
    # Where each field begins: behind all before it, and behind a separator where there is one.
    widths = lengths + before * len(SEPARATOR)
    starts = np.cumsum(widths, axis=1) - lengths
    offsets = np.concatenate([[0], np.cumsum(widths.sum(axis=1))])
    field = np.full(offsets[-1], NOWHERE, np.int16)
    place = np.zeros(offsets[-1], np.int32)
    for number, (row, own) in enumerate(collapsed):
        first = np.cumsum(lengths[:, number]) - lengths[:, number]
        at = offsets[row] + starts[row, number] + np.arange(len(row)) - first[row]
        field[at], place[at] = number, own
    return _cut(texts, offsets, field, place)


def _cut(texts: pa.Array, offsets: IntArray, field: npt.NDArray[np.int16], place: npt.NDArray[np.int32]) -> Composed:
    """To the length that `compose` has cut the texts to."""
    characters, kept = characters_of(texts)
    of = np.repeat(offsets[:-1], kept) + _within(kept)
    return Composed(texts, np.concatenate([[0], np.cumsum(kept)]), characters, field[of], place[of])


def _collapsed(column: pa.Array) -> tuple[IntArray, IntArray]:
    """(row, place in its text) of each character that stays."""
    characters, lengths = characters_of(column)
    row, place = np.repeat(np.arange(len(lengths)), lengths), _within(lengths)
    white = np.isin(characters, COLLAPSED)
    again = np.zeros(len(white), bool)
    again[1:] = white[1:] & white[:-1] & (place[1:] > 0)
    row, place, characters = row[~again], place[~again], characters[~again]
    solid = np.flatnonzero(~np.isin(characters, TRIMMED))
    last, first = np.full(len(lengths), -1), np.full(len(lengths), len(characters))
    last[row[solid]] = solid
    first[row[solid[::-1]]] = solid[::-1]
    at = np.arange(len(characters))
    inside = (at >= first[row]) & (at <= last[row])
    return row[inside], place[inside]


def _within(lengths: IntArray) -> IntArray:
    """0, 1, … for each row of so many."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def characters_of(texts: pa.Array) -> tuple[Characters, IntArray]:
    """(the code points of all texts end to end, how many each has); a null has none."""
    strings = [text or "" for text in texts.to_pylist()]
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    return np.frombuffer("".join(strings).encode("utf-32-le"), np.uint32), lengths


def of_marks(characters: Characters, formats: bool = False) -> npt.NDArray[np.bool_]:
    """Which characters belong to the one before them: marks, and those that only say how text is set, such as soft hyphens."""
    basic = np.where(characters < BASIC, characters, 0)
    return np.asarray(_silent_ones(formats)[basic])


@functools.cache
def _silent_ones(formats: bool) -> npt.NDArray[np.bool_]:
    wanted = "M" if not formats else ("M", "Cf")
    return np.array([unicodedata.category(chr(code)).startswith(wanted) for code in range(BASIC)])


def _is_silent(character: str) -> bool:
    return unicodedata.category(character).startswith(("M", "Cf"))


def of_words(characters: Characters) -> npt.NDArray[np.bool_]:
    """Which characters are one word with another such one beside them: letters, digits and their marks, in scripts that put a space
    between words."""
    basic = np.where(characters < BASIC, characters, 0)
    return np.asarray(_basic_plane()[basic])


@functools.cache
def _basic_plane() -> npt.NDArray[np.bool_]:
    return np.array([_of_word(chr(code)) for code in range(BASIC)])


def _of_word(character: str) -> bool:
    if not (character.isalnum() or _is_silent(character)):
        return False
    return not unicodedata.name(character, "").startswith(UNSPACED)
