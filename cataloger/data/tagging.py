"""The input of models that find something in texts: words, each with its place in the row's own columns."""

import functools
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import network_shape
from cataloger.data.batching import IntArray, Ragged, Tokens
from cataloger.data.fields import NOWHERE, TRIMMED, Composed, composed, of_marks, of_words
from cataloger.data.text import CHARACTERS_PER_TOKEN, hash_texts, load_tokenizer
from cataloger.data.texts import SHOWN_CHARACTERS, TextInput
from cataloger.data.values import Distinct, Values
from cataloger.data.windows import MOST_WINDOWS, Frame, Windows

# So many texts are tokenized at a time: where their characters stand takes far more memory than they do.
AT_ONCE = 4_096
# Of white space that a token begins or ends with, so much is taken off.
MOST_SPACES = 4


class TagInput:
    """The texts of some columns as words. Rows are equal where the texts of all columns are, as they stand there."""

    def __init__(self, folder: Path, columns: Sequence[str], max_tokens: int) -> None:
        self.folder, self.columns, self.max_tokens = folder, tuple(columns), max_tokens
        # It composes as many characters as all windows together may have tokens for.
        self.most = MOST_WINDOWS * max_tokens
        self._composing = TextInput(folder, columns, self.most)

    def read(self, table: pa.Table) -> Values:
        found = self._composing.read(table)
        fields = [self._own(found.table.column(name)) for name in self.columns]
        names = [str(number) for number in range(len(fields))]
        values = pa.StructArray.from_arrays(fields, names, mask=found.values.is_null())
        return Values(found.table, values, found.reasons)

    def _own(self, column: pa.ChunkedArray) -> pa.Array:
        """A column's texts as far as they are read."""
        most = 2 * self.most * CHARACTERS_PER_TOKEN
        return pc.fill_null(pc.utf8_slice_codeunits(column.cast(pa.large_string()), 0, most).combine_chunks(), "")

    def distinct(self, values: pa.Array) -> Distinct:
        fields = _fields(values)
        lengths = [pc.utf8_length(field).cast(pa.large_string()) for field in fields]
        # With the lengths before the texts, no two rows are joined to the same string.
        parts = [part for pair in zip(lengths, fields, strict=True) for part in pair]
        joined = pc.binary_join_element_wise(*parts, pa.scalar(":", pa.large_string()))
        return Distinct.by_key(values, hash_texts(pc.if_else(values.is_valid(), joined, pa.scalar(None, joined.type))))

    def texts(self, values: pa.Array) -> pa.Array:
        """Null for null."""
        names = [str(number) for number in range(len(self.columns))]
        table = pa.table(dict(zip(names, _fields(values), strict=True)))
        return TextInput(self.folder, names, self.most).read(table).values

    def identity(self, values: pa.Array) -> pa.Array:
        return self.texts(values)

    def shown(self, values: pa.Array) -> pa.Array:
        return pc.utf8_slice_codeunits(self.texts(values), 0, SHOWN_CHARACTERS)

    def thumbnails(self, values: pa.Array) -> list[bytes | None]:
        return [None] * len(values)

    def encode(self, values: pa.Array) -> Windows:
        parts = [self._encode(values.slice(start, AT_ONCE)) for start in range(0, len(values), AT_ONCE)]
        parts = parts or [self._encode(values)]
        fields = pa.table(dict(zip(self.columns_by_number, _fields(values), strict=True)))
        return Windows(
            Tokens.joined([tokens for tokens, _, _ in parts]),
            Ragged.joined([words for _, words, _ in parts]),
            np.concatenate([origins for _, _, origins in parts]),
            self._frame,
            fields,
        )

    @property
    def columns_by_number(self) -> list[str]:
        """Names that no two of the columns share, even where one is named twice."""
        return [str(number) for number in range(len(self.columns))]

    def own_texts(self, values: pa.Array) -> list[list[str]]:
        """The texts of each column as they stand there."""
        return [field.to_pylist() for field in _fields(values)]

    def found_out(self, values: pa.Array, encoded: Windows) -> tuple[pa.Array, pa.Array]:
        return pa.nulls(len(values), pa.string()), pa.nulls(len(values), pa.string())

    def example(self) -> Windows:
        word = Ragged(np.zeros(1, np.int32), np.array([0, 1]))
        return Windows(
            Tokens(np.zeros(1, np.int32), np.array([0, 1]), self._pad_id), word, np.zeros((1, 3), np.int32), self._frame
        )

    def from_arrow(self, table: pa.Table) -> Windows:
        return Windows.from_arrow(table, self._pad_id, self._frame)

    def _encode(self, values: pa.Array) -> tuple[Tokens, Ragged, npt.NDArray[np.int32]]:
        """(tokens, the first token of each word, where each word stands)"""
        text = composed(_fields(values), self.most)
        found = self._tokenizer.encode_batch(text.texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter((len(one.ids) for one in found), np.int64, len(found))
        ids = np.fromiter(chain.from_iterable(one.ids for one in found), np.int32, lengths.sum())
        flat = chain.from_iterable(chain.from_iterable(one.offsets for one in found))
        bounds = np.fromiter(flat, np.int64, 2 * lengths.sum()).reshape(-1, 2)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        row = np.repeat(np.arange(len(found)), lengths)
        start, end = _solid(text, text.offsets[row] + bounds[:, 0], text.offsets[row] + bounds[:, 1])
        first = _begins(text, row, start, _beyond(text, end, formats=True))
        # What is nothing but white space is of no word, and ends none.
        last = np.maximum.reduceat(np.where(start < end, end, 0), np.flatnonzero(first)) if len(first) else end
        words = Ragged(
            (np.flatnonzero(first) - offsets[row[first]]).astype(np.int32),
            np.concatenate([[0], np.cumsum(np.bincount(row[first], minlength=len(found)))]),
        )
        return Tokens(ids, offsets, self._pad_id), words, _origins(text, start[first], _beyond(text, last))

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self._frame.most_tokens)

    @functools.cached_property
    def _frame(self) -> Frame:
        whole = load_tokenizer(self.folder, self.max_tokens).encode("a")
        special = np.array(whole.special_tokens_mask, bool)
        own = np.flatnonzero(~special)
        return Frame(tuple(whole.ids[: own[0]]), tuple(whole.ids[own[-1] + 1 :]), self.max_tokens)

    @functools.cached_property
    def _pad_id(self) -> int:
        return network_shape(self.folder)[0]


def _fields(values: pa.Array) -> list[pa.Array]:
    """The texts of each column, empty where a value is null."""
    return [pc.fill_null(pc.struct_field(values, [number]), "") for number in range(values.type.num_fields)]


def _solid(text: Composed, start: IntArray, end: IntArray) -> tuple[IntArray, IntArray]:
    """The bounds of tokens without the white space that some tokenizers count in."""
    if not len(text.characters):
        return start, end
    white, last = np.isin(text.characters, TRIMMED), len(text.characters) - 1
    for _ in range(MOST_SPACES):
        start = start + ((start < end) & white[np.minimum(start, last)])
        end = end - ((start < end) & white[np.maximum(end - 1, 0)])
    return start, end


def _beyond(text: Composed, end: IntArray, formats: bool = False) -> IntArray:
    """The ends moved behind the marks that follow them in their row: tokenizers may leave these out."""
    size = len(text.characters)
    if not size:
        return end
    solid = np.append(np.where(of_marks(text.characters, formats), size, np.arange(size)), size)
    following = np.minimum.accumulate(solid[::-1])[::-1]  # of each character, the first one from it on that is no mark
    row_end = text.offsets[np.searchsorted(text.offsets, np.maximum(end - 1, 0), side="right")]
    return np.maximum(end, np.minimum(following[np.minimum(end, size)], row_end))


def _begins(text: Composed, row: IntArray, start: IntArray, end: IntArray) -> npt.NDArray[np.bool_]:
    """Which tokens begin a word: all but those that go on with letters or digits where the one before ended."""
    if not len(row):
        return np.empty(0, bool)
    one = of_words(text.characters)
    there = np.minimum(start[1:], len(one) - 1)
    goes_on = (row[1:] == row[:-1]) & (
        (start[1:] < end[:-1]) | ((start[1:] == end[:-1]) & one[there] & one[np.maximum(there - 1, 0)])
    )
    # A token of no character at all goes on as well, whatever it stands beside.
    goes_on |= (row[1:] == row[:-1]) & (start[1:] >= end[1:])
    return np.append(True, ~goes_on)


def _origins(text: Composed, start: IntArray, end: IntArray) -> npt.NDArray[np.int32]:
    """(column, start, end) of words whose first character is `start`, and the one behind their last `end`, in all texts."""
    if not len(start):
        return np.empty((0, 3), np.int32)
    first = np.minimum(start, len(text.field) - 1)
    last = np.maximum(end, start + 1) - 1
    last = np.minimum(last, len(text.field) - 1)
    field = text.field[first].astype(np.int32)
    field[(text.field[last] != field) | (end <= start)] = NOWHERE
    return np.stack([field, text.place[first], text.place[last] + 1], axis=1).astype(np.int32)
