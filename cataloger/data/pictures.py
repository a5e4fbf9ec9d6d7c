"""The input of models that see: a picture of each row, and its texts as well where the model reads some.

What is read first is a reference: bytes of the catalog itself, or a place and the version that lies there now. So rows that
have a label already cost no download. `encode` fetches and decodes what is left.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data import fetching
from cataloger.data.album import Decoded, Pictured
from cataloger.data.batching import IntArray, Tokens
from cataloger.data.images import MISSING, MOST_BYTES, OK, TOO_LARGE, UNREACHABLE, Unreadable, decode, shrunk, thumbnail
from cataloger.data.text import hash_texts, undecodable
from cataloger.data.texts import NO_TEXT, SHOWN_CHARACTERS, TextInput
from cataloger.data.values import Distinct, Values
from cataloger.spec import Picture

READ = pa.struct(
    [
        ("text", pa.large_string()),
        ("place", pa.large_string()),
        ("bytes", pa.large_binary()),
        ("version", pa.string()),
        ("status", pa.string()),
    ]
)
_SEPARATOR = "\0"


class PictureInput:
    """A picture of a column, and the texts of others, for the model in a folder; `base` is the folder of the catalog."""

    def __init__(
        self, folder: Path, text_columns: Sequence[str], max_tokens: int, picture: Picture, base: str = ""
    ) -> None:
        self.words = TextInput(folder, text_columns, max_tokens) if text_columns else None
        self.picture, self.base = picture, base
        self.columns = (*text_columns, picture.column)

    def read(self, table: pa.Table) -> Values:
        texts, reasons = pa.nulls(len(table), pa.large_string()), pa.nulls(len(table), pa.string())
        if self.words:
            read = self.words.read(table)
            table, texts = read.table, read.values
            # Pictures make up for what has no text, not for what cannot be read.
            reasons = pc.if_else(pc.equal(read.reasons, NO_TEXT), pa.scalar(None, pa.string()), read.reasons)
        places, contents = self._referred(table.column(self.picture.column))
        status, versions = self._looked_up(places, contents)
        seen = pc.equal(status, OK)
        contents = pc.if_else(seen, contents, pa.scalar(None, pa.large_binary()))
        columns = [texts, places, contents, pc.if_else(seen, versions, pa.scalar(None, pa.string())), status]
        something = pc.or_(texts.is_valid(), seen)
        values = pa.StructArray.from_arrays(columns, fields=list(READ), mask=pc.invert(something))
        without = pc.binary_join_element_wise(_nothing(bool(self.words)), status, "")
        return Values(table, values, pc.coalesce(reasons, pc.if_else(something, pa.scalar(None, pa.string()), without)))

    def distinct(self, values: pa.Array) -> Distinct:
        return Distinct.by_key(values, self._keys(values))

    def texts(self, values: pa.Array) -> pa.Array:
        return pc.fill_null(values.field("text"), "")

    def identity(self, values: pa.Array) -> pa.Array:
        return pc.coalesce(
            *(pc.struct_field(values, name).cast(pa.large_string()) for name in ("text", "place", "version"))
        )

    def shown(self, values: pa.Array) -> pa.Array:
        words = pc.coalesce(pc.struct_field(values, "text"), pc.struct_field(values, "place"))
        return pc.utf8_slice_codeunits(
            pc.if_else(values.is_valid(), pc.fill_null(words, ""), words), 0, SHOWN_CHARACTERS
        )

    def thumbnails(self, values: pa.Array) -> list[bytes | None]:
        index, _, found = self._had(values, thumbnail)
        return [None if place < 0 else found[place] for place in index.tolist()]

    def encode(self, values: pa.Array) -> Pictured:
        index, status, found = self._had(values, lambda data: decode(data, self.picture))
        size = self.picture.size
        array = np.stack(found) if found else np.empty((0, 3, size, size), np.uint8)
        return Pictured(self._tokens(values), index, status, Decoded(array), size)

    def kept(self, values: pa.Array) -> pa.Table:
        """What a training keeps: tokens, and a picture as bytes of no more pixels than it has use for, in the row where it comes first;
        `picture` is its version, null where none could be had; `unreachable` says that tomorrow one may be."""
        index, status, found = self._had(values, lambda data: shrunk(data, self.picture))
        columns: dict[str, Any] = {"tokens": self._tokens(values).lists()} if self.words else {}  # type: ignore[union-attr]
        first = np.full(len(values), -1)
        for row in np.flatnonzero(index >= 0)[::-1]:
            first[index[row]] = row
        contents: list[bytes | None] = [None] * len(values)
        for number, data in enumerate(found):
            contents[first[number]] = data
        version = pc.if_else(pa.array(index >= 0), values.field("version"), pa.scalar(None, pa.string()))
        gone = pc.equal(status, UNREACHABLE)
        return pa.table(
            {**columns, "picture": version, "bytes": pa.array(contents, pa.large_binary()), UNREACHABLE: gone}
        )

    def found_out(self, values: pa.Array, encoded: Pictured) -> tuple[pa.Array, pa.Array]:
        planned, status = values.field("status"), encoded.status
        gone = pc.and_(pc.equal(planned, OK), pc.is_in(status, pa.array([MISSING, UNREACHABLE])))
        texts = values.field("text")
        keys = pc.if_else(gone, self._hashed(texts, _lost(status)), pa.scalar(None, pa.string()))
        useless = pc.and_(texts.is_null(), pc.not_equal(status, OK))
        reasons = pc.binary_join_element_wise(_nothing(bool(self.words)), status, "")
        return keys, pc.if_else(useless, reasons, pa.scalar(None, pa.string()))

    def from_arrow(self, table: pa.Table) -> Pictured:
        column = table.column("pixels").combine_chunks() if table.num_rows else pa.array([], pa.large_binary())
        size = self.picture.size
        _, ends, data = column.buffers() if len(column) else (None, None, None)
        pixels = np.empty(0, np.uint8)
        if ends is not None and data is not None:
            bounds = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
            pixels = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
        tokens = self.words.from_arrow(table) if self.words else None
        index, status = table.column("picture").to_numpy(), table.column("status").combine_chunks()
        return Pictured(tokens, index, status, Decoded(pixels.reshape(-1, 3, size, size)), size)

    def example(self) -> Pictured:
        size = self.picture.size
        tokens = self.words.example() if self.words else None
        return Pictured(tokens, np.array([0]), pa.array([OK]), Decoded(np.zeros((1, 3, size, size), np.uint8)), size)

    def _tokens(self, values: pa.Array) -> Tokens | None:
        return self.words.encode(self.texts(values)) if self.words else None

    def _keys(self, values: pa.Array) -> pa.Array:
        text, version, status = (pc.struct_field(values, name) for name in ("text", "version", "status"))
        return self._hashed(text, pc.coalesce(version, _lost(status)))

    def _hashed(self, texts: pa.Array, versions: pa.Array) -> pa.Array:
        """Null where there is neither."""
        both = pc.binary_join_element_wise(
            pc.fill_null(texts, ""),
            pc.fill_null(versions, "").cast(pa.large_string()),
            pa.scalar(_SEPARATOR, pa.large_string()),
        )
        return hash_texts(pc.if_else(pc.or_(texts.is_valid(), versions.is_valid()), both, pa.scalar(None, both.type)))

    def _referred(self, column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """(places, bytes) of the picture column, each null where it has none."""
        column = pa.chunked_array([column.combine_chunks()]) if column.num_chunks != 1 else column
        values = column.chunk(0)
        places, contents = pa.nulls(len(values), pa.large_string()), pa.nulls(len(values), pa.large_binary())
        if pa.types.is_struct(values.type):
            names = values.type.names
            contents = pc.struct_field(values, "bytes").cast(pa.large_binary())
            contents = pc.if_else(pc.equal(pc.binary_length(contents), 0), pa.scalar(None, contents.type), contents)
            if "path" in names:
                places = pc.struct_field(values, "path").cast(pa.large_string(), safe=False)
            # The path of bytes is where they came from: often somebody else's disk.
            places = pc.if_else(contents.is_valid(), pa.scalar(None, places.type), places)
        elif _is_text(values.type):
            places = values.cast(pa.large_string(), safe=False)
        elif not pa.types.is_null(values.type):
            contents = values.cast(pa.large_binary())
        # Nulled before anything is made of it: Arrow's string functions stop at invalid bytes.
        places = pc.if_else(pa.array(undecodable(places)), pa.scalar(None, places.type), places)
        return pc.if_else(pc.equal(places, ""), pa.scalar(None, places.type), places), contents

    def _looked_up(self, places: pa.Array, contents: pa.Array) -> tuple[pa.Array, pa.Array]:
        """(status, version) of each picture, as far as they can be told without its bytes where it lies elsewhere."""
        status, versions = [MISSING] * len(places), [""] * len(places)
        sizes = pc.fill_null(pc.binary_length(contents), 0).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(sizes).tolist():
            if sizes[row] > MOST_BYTES:
                status[row] = TOO_LARGE
            else:
                status[row], versions[row] = OK, blake2b(contents[row].as_buffer(), digest_size=16).hexdigest()
        elsewhere = pc.drop_null(pc.unique(places)).to_pylist()
        found = dict(zip(elsewhere, fetching.versions([self._resolved(place) for place in elsewhere]), strict=True))
        if found:
            for row, place in enumerate(places.to_pylist()):
                if place is not None:
                    seen = found[place]
                    if isinstance(seen, Unreadable):
                        status[row] = seen.status
                    else:
                        status[row], versions[row] = OK, f"{place} {seen}"
        return pa.array(status, pa.string()), pa.array([version or None for version in versions], pa.string())

    def _resolved(self, place: str) -> str:
        return fetching.resolved(place, self.base)

    def _had(self, values: pa.Array, make: Any) -> tuple[IntArray, pa.Array, list[Any]]:
        """(which picture is a row's or -1, status, what `make` makes of the bytes of each picture): equal versions are one."""
        versions, status = values.field("version").to_pylist(), values.field("status").to_pylist()
        first = {version: row for row, version in reversed(list(enumerate(versions))) if version is not None}
        rows = sorted(first.values())
        places, contents = values.field("place").to_pylist(), values.field("bytes")
        far = [row for row in rows if not contents[row].is_valid]
        made: dict[int, Any] = dict(
            zip(far, fetching.fetch([self._resolved(places[row]) for row in far], make), strict=True)
        )
        for row in rows:
            if row not in made:
                made[row] = _tried(make, contents[row].as_py())
        good = [row for row in rows if not isinstance(made[row], Unreadable)]
        number = {versions[row]: place for place, row in enumerate(good)}
        why = {versions[row]: made[row].status for row in rows if isinstance(made[row], Unreadable)}
        index = np.array([number.get(version, -1) for version in versions], np.int64)
        status = [why.get(version, old) for version, old in zip(versions, status, strict=True)]
        return index, pa.array(status, pa.string()), [made[row] for row in good]


def _tried(make: Any, data: Any) -> Any:
    try:
        return make(data)
    except Unreadable as problem:
        return problem


def _lost(status: pa.Array) -> pa.Array:
    """What stands for the version of a picture that could not be had: another label is due when it can, or when there is none any more."""
    here = pc.is_in(status, pa.array([OK, MISSING]))
    return pc.if_else(here, pa.scalar(None, pa.string()), pc.binary_join_element_wise("", status, "\0"))


def _nothing(with_text: bool) -> str:
    return f"{NO_TEXT}, and the picture is " if with_text else "the picture is "


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
