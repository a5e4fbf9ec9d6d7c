"""The input that most models have: the texts of some columns, composed into one, as tokens."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import network_shape
from cataloger.data.batching import Tokens
from cataloger.data.text import compose, hash_texts, load_tokenizer, tokenize, undecodable
from cataloger.data.values import Distinct, Values

SHOWN_CHARACTERS = 200
NO_TEXT = "no text in any of the text columns"
NOT_UTF8 = "a text column is not valid UTF-8"


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

    def distinct(self, values: pa.Array) -> Distinct:
        found = values.dictionary_encode()
        return Distinct(found.dictionary, hash_texts(found.dictionary), found.indices)

    def texts(self, values: pa.Array) -> pa.Array:
        return values

    def identity(self, values: pa.Array) -> pa.Array:
        return values

    def shown(self, values: pa.Array) -> pa.Array:
        return pc.utf8_slice_codeunits(values, 0, SHOWN_CHARACTERS)

    def thumbnails(self, values: pa.Array) -> list[bytes | None]:
        return [None] * len(values)

    def encode(self, values: pa.Array) -> Tokens:
        return self.from_arrow(pa.table({"tokens": tokenize(self._tokenizer, values)}))

    def found_out(self, values: pa.Array, encoded: Tokens) -> tuple[pa.Array, pa.Array]:
        return pa.nulls(len(values), pa.string()), pa.nulls(len(values), pa.string())

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
