"""A row → the text the model reads, its hash, and the side of the split it falls on."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SEPARATOR = " | "
# A token is rarely longer than this; what lies beyond max_tokens times it would be cut by the tokenizer anyway.
CHARACTERS_PER_TOKEN = 32


def compose(table: pa.Table, columns: Sequence[str], max_tokens: int) -> pa.Array:
    """One string per row: the named columns in order, joined by " | ".

    Numbers are written out, white space is collapsed, empty and null fields are left out, and the text is cut to
    32 characters per token. A row with no text at all is null.
    """
    limit = max_tokens * CHARACTERS_PER_TOKEN
    fields = []
    for name in columns:
        field = table.column(name).combine_chunks().cast(pa.large_string())
        field = pc.utf8_slice_codeunits(field, 0, 2 * limit)
        field = pc.utf8_trim_whitespace(pc.replace_substring_regex(field, r"\s+", " "))
        fields.append(pc.if_else(pc.equal(field, ""), pa.scalar(None, pa.large_string()), field))
    separator = pa.scalar(SEPARATOR, pa.large_string())
    # The empty first field keeps rows without any text: with "skip", pyarrow 25 drops a row whose fields are all null.
    always = pa.repeat(pa.scalar("", pa.large_string()), len(table))
    text = pc.binary_join_element_wise(always, *fields, separator, null_handling="skip")
    text = pc.utf8_slice_codeunits(text, len(SEPARATOR), len(SEPARATOR) + limit)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)


def undecodable(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Whether any of the row's string fields is not valid UTF-8: Parquet readers take such bytes as they come."""
    bad = np.zeros(len(table), bool)
    for name in columns:
        field = table.column(name).combine_chunks()
        if pa.types.is_dictionary(field.type):
            field = field.cast(field.type.value_type)
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        raw = field.cast(pa.large_binary())
        try:
            raw.cast(pa.large_string())
        except pa.ArrowInvalid:
            bad |= np.array([not _is_utf8(value) for value in raw.to_pylist()])
    return pa.array(bad)


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def hash_texts(texts: pa.Array) -> pa.Array:
    """128-bit BLAKE2b of each text, as 32 hex digits; null stays null.

    Among 10^9 different texts the chance of any collision is about 10^18 / 2^129, or 1.5e-21.
    """
    digests = [
        None if text is None else blake2b(text.encode(), digest_size=16).hexdigest() for text in texts.to_pylist()
    ]
    return pa.array(digests, pa.string())


def hash_words(hashes: pa.Array) -> npt.NDArray[np.uint64]:
    """Hashes of 32 hex digits, none of them null, as two 64-bit words each: [N, 2]."""
    return np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), dtype="<u8").reshape(-1, 2)


def split_keys(table: pa.Table, texts: pa.Array, group_column: str | None) -> pa.Array:
    """What decides on which side of the split a row falls: its group, or its text where there is none."""
    if group_column is None:
        return texts
    return pc.coalesce(table.column(group_column).combine_chunks().cast(pa.large_string()), texts)


def split_position(texts: pa.Array, start: float = 0.0) -> npt.NDArray[np.float64]:
    """A position in [0, 1) per text that depends on its normalised form only (lower case, white space collapsed).

    Positions are counted from `start`. Rows below a fraction are held out: the same product always falls on the same side.
    """
    hashes = hash_texts(pc.utf8_lower(pc.fill_null(texts, "")))
    return (hash_words(hashes)[:, 0].astype(np.float64) / 2.0**64 - start) % 1.0
