"""What a model reads of a row, and how it becomes the arguments of a network."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import Spec, network_shape
from cataloger.data.batching import Batch, IntArray, Tokens
from cataloger.data.text import compose, hash_texts, load_tokenizer, tokenize, undecodable

SHOWN_CHARACTERS = 200
NO_TEXT = "no text in any of the text columns"
NOT_UTF8 = "a text column is not valid UTF-8"


@dataclass(frozen=True)
class Values:
    """What is read of the N rows of a table, which has null for what cannot be read.

    `values` is a column that Arrow can encode as a dictionary, null where nothing was read. `reasons` says why a row cannot be
    answered, null where it can: a row of which a part cannot be read has a reason too.
    """

    table: pa.Table
    values: pa.Array
    reasons: pa.Array


class Encoded(Protocol):
    """N rows that are ready for a network."""

    def __len__(self) -> int: ...

    @property
    def costs(self) -> IntArray:
        """[N] what a row costs in a batch, in tokens: those of a batch cost as many as its dearest row times their number."""

    def batch(self, rows: IntArray) -> Batch:
        """The network's arguments by name."""

    def take(self, rows: IntArray) -> Self: ...

    def slice(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop`, without a copy."""

    def to_arrow(self) -> pa.Table: ...


class Input(Protocol):
    """One kind of thing that a model reads: for now its texts."""

    columns: tuple[str, ...]

    def read(self, table: pa.Table) -> Values:
        """Of a table with these columns."""

    def key(self, values: pa.Array) -> pa.Array:
        """A hash of all that is read of each row, as 32 hex digits."""

    def shown(self, values: pa.Array) -> pa.Array:
        """What a person is shown of each row: at most 200 characters."""

    def encode(self, values: pa.Array) -> Any:
        """`Encoded`, of values without nulls."""

    def from_arrow(self, table: pa.Table) -> Any:
        """`Encoded.to_arrow` the other way."""

    def example(self) -> Any:
        """`Encoded`, of one row that every network must have an answer for."""


class TextInput:
    """The texts of some columns, composed into one, as tokens of the tokenizer in a model's folder."""

    def __init__(self, folder: Path, columns: Sequence[str], max_tokens: int) -> None:
        self.folder, self.columns, self.max_tokens = folder, tuple(columns), max_tokens

    def read(self, table: pa.Table) -> Values:
        reasons = pa.nulls(len(table), pa.string())
        for name in self.columns:
            bad = undecodable(table.column(name))
            if bad.any():
                # Nulled before composing: Arrow's string functions stop at invalid bytes.
                field = pc.if_else(pa.array(bad), pa.scalar(None, table.schema.field(name).type), table.column(name))
                table = table.set_column(table.column_names.index(name), name, field)
                reasons = pc.if_else(pa.array(bad), NOT_UTF8, reasons)
        texts = compose(table, self.columns, self.max_tokens)
        missing = pc.if_else(texts.is_valid(), pa.scalar(None, pa.string()), NO_TEXT)
        return Values(table, texts, pc.coalesce(reasons, missing))

    def key(self, values: pa.Array) -> pa.Array:
        return hash_texts(values)

    def shown(self, values: pa.Array) -> pa.Array:
        return pc.utf8_slice_codeunits(values, 0, SHOWN_CHARACTERS)

    def encode(self, values: pa.Array) -> Tokens:
        return self.from_arrow(pa.table({"tokens": tokenize(self._tokenizer, values)}))

    def example(self) -> Tokens:
        return Tokens(np.zeros(2, np.int32), np.array([0, 2]), self._pad_id)

    def from_arrow(self, table: pa.Table) -> Tokens:
        return Tokens.from_arrow(table.column("tokens"), self._pad_id)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.max_tokens)

    @functools.cached_property
    def _pad_id(self) -> int:
        return network_shape(self.folder)[0]


def input_of(spec: Spec, folder: Path, columns: Sequence[str] = ()) -> Input:
    """That of the model in a folder; `columns` may have other names than those it was trained with."""
    return _text_input(folder, tuple(columns or spec.text_columns), spec.max_tokens)


@functools.lru_cache(maxsize=4)
def _text_input(folder: Path, columns: tuple[str, ...], max_tokens: int) -> TextInput:
    """Kept for the next units: to read a tokenizer takes a tenth of a second. A few, as a service may load one model after another."""
    return TextInput(folder, columns, max_tokens)
