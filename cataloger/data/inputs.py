"""What a model reads of a row, and how it becomes the arguments of a network: the seam, and which input a model has."""

import functools
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa

from cataloger.data.batching import Batch, IntArray
from cataloger.data.pictures import PictureInput
from cataloger.data.tagging import TagInput
from cataloger.data.texts import TextInput
from cataloger.data.values import Distinct, Values
from cataloger.spec import Spec


class Encoded(Protocol):
    """N rows that are ready for a network."""

    def __len__(self) -> int: ...

    @property
    def costs(self) -> IntArray:
        """[N] what a row costs in a batch, in tokens: those of a batch cost as many as its dearest row times their number."""

    def costs_of(self, rows: IntArray) -> IntArray:
        """Those of some rows, without a look at all others."""

    def batch(self, rows: IntArray) -> Batch:
        """The network's arguments by name."""

    def ahead(self, rows: IntArray) -> None:
        """That the batch of these rows will be asked for soon."""

    def take(self, rows: IntArray) -> Self: ...

    def slice(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop`, without a copy."""

    def to_arrow(self) -> pa.Table: ...


class Input(Protocol):
    """What a model reads: texts, pictures, or both."""

    columns: tuple[str, ...]

    def read(self, table: pa.Table) -> Values:
        """Of a table with these columns."""

    def distinct(self, values: pa.Array) -> Distinct:
        """What is read more than once, once."""

    def texts(self, values: pa.Array) -> pa.Array:
        """What words read of values without nulls: empty where there is no text."""

    def identity(self, values: pa.Array) -> pa.Array:
        """The string by which a row is split that belongs to no group."""

    def shown(self, values: pa.Array) -> pa.Array:
        """What a person is shown of each row: at most 200 characters."""

    def thumbnails(self, values: pa.Array) -> list[bytes | None]:
        """And its picture, as a small JPEG."""

    def encode(self, values: pa.Array) -> Any:
        """`Encoded`, of values without nulls."""

    def found_out(self, values: pa.Array, encoded: Any) -> tuple[pa.Array, pa.Array]:
        """(keys, reasons) that only encoding has shown: another key of what was not read after all, and why there is no answer.

        Null where nothing has changed.
        """

    def from_arrow(self, table: pa.Table) -> Any:
        """`Encoded.to_arrow` the other way."""

    def example(self) -> Any:
        """`Encoded`, of one row that every network must have an answer for."""


def input_of(spec: Spec, folder: Path, base: str = "") -> Input:
    """That of the model in a folder; `base` is the folder of the catalog, which pictures may lie in."""
    if spec.picture:
        return _picture_input(folder, spec.text_columns, spec.max_tokens, spec.picture, base)
    if spec.tags:
        return _tag_input(folder, spec.text_columns, spec.max_tokens)
    return _text_input(folder, spec.text_columns, spec.max_tokens)


# Kept for the next units: to read a tokenizer takes a tenth of a second. A few, as a service may load one model after another.
_text_input = functools.lru_cache(maxsize=4)(TextInput)
_tag_input = functools.lru_cache(maxsize=4)(TagInput)
_picture_input = functools.lru_cache(maxsize=4)(PictureInput)
