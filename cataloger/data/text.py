"""A row → the text the model reads, its hash, its tokens, and the side of the split it falls on."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from cataloger.errors import ModelError

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
        # Cut before the chunks are joined: long texts of many rows are more than a string array can hold.
        column = without_nan(table.column(name)).cast(pa.large_string())
        field = pc.utf8_slice_codeunits(column, 0, 2 * limit).combine_chunks()
        field = pc.utf8_trim_whitespace(pc.replace_substring_regex(field, r"\s+", " "))
        fields.append(pc.if_else(pc.equal(field, ""), pa.scalar(None, pa.large_string()), field))
    separator = pa.scalar(SEPARATOR, pa.large_string())
    # The empty first field keeps rows without any text: with "skip", pyarrow 25 drops a row whose fields are all null.
    always = pa.repeat(pa.scalar("", pa.large_string()), len(table))
    text = pc.binary_join_element_wise(always, *fields, separator, null_handling="skip")
    text = pc.utf8_slice_codeunits(text, len(SEPARATOR), len(SEPARATOR) + limit)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)


def without_nan(values: Any) -> Any:
    """Null where a number is none: pandas writes null for both."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values.cast(pa.float64())), pa.scalar(None, values.type), values)


def undecodable(values: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether each value is a string that is not valid UTF-8: Parquet readers take such bytes as they come."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (
        pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type)
    ):
        return np.zeros(len(values), bool)
    raw = values.cast(pa.large_string(), safe=False).cast(pa.large_binary())
    try:
        raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        return np.array([not _is_utf8(value) for value in raw.to_pylist()])
    return np.zeros(len(values), bool)


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
    groups = without_nan(table.column(group_column).combine_chunks())
    # What cannot be read is no group: Arrow's string functions stop at invalid bytes.
    groups = pc.if_else(pa.array(undecodable(groups)), pa.scalar(None, groups.type), groups)
    return pc.coalesce(groups.cast(pa.large_string()), texts)


def split_hash(keys: pa.Array, format_version: int) -> npt.NDArray[np.uint64]:
    """[N] one number per split key, that depends on its normalised form only: the same product is always the same number.

    Normalised is: NFKD (UAX #15; Arrow up to 25 gives it for NFKC as well, later ones do not), lower case, no invisible characters (Unicode's category Cf, such as the zero-width space), any
    white space as one space. Models of format 2 were split by lower case alone, and what they have not seen goes by that.
    """
    keys = pc.utf8_lower(pc.fill_null(keys, ""))
    if format_version > 2:
        keys = pc.utf8_lower(pc.utf8_normalize(keys, "NFKD"))
        keys = pc.replace_substring_regex(keys, r"\p{Cf}+", "")
        keys = pc.utf8_trim_whitespace(pc.replace_substring_regex(keys, r"[\s\p{Z}\p{Cc}]+", " "))
    words: npt.NDArray[np.uint64] = hash_words(hash_texts(keys))[:, 0]
    return words


def split_position(hashes: npt.NDArray[np.uint64], start: float = 0.0) -> npt.NDArray[np.float64]:
    """[N] where in [0, 1) each `split_hash` falls, counted from `start`; what is below a fraction is held out."""
    position: npt.NDArray[np.float64] = (hashes.astype(np.float64) / 2.0**64 - start) % 1.0
    return position


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The Rust tokenizer alone, set to cut at `max_tokens` and not to pad."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"model {folder}: has no tokenizer.json; save its fast tokenizer there")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def mask_token(tokenizer: Tokenizer) -> int | None:
    """The token that stands for a word to be guessed, or None in a tokenizer without one."""
    names = [added.content for added in tokenizer.get_added_tokens_decoder().values()]
    name = next((name for name in names if name.strip("[]<>|").lower() == "mask"), None)
    return None if name is None else tokenizer.token_to_id(name)


def tokenize(tokenizer: Tokenizer, texts: pa.Array) -> pa.Array:
    """list<int32> of token ids per text, special tokens included."""
    # One text at a time: lists of all numbers at once would leave the memory of a long-lived task in pieces.
    flat, offsets = array("i"), array("i", [0])
    for encoding in tokenizer.encode_batch_fast(texts.to_pylist()):
        flat.extend(encoding.ids)
        offsets.append(len(flat))
    return pa.ListArray.from_arrays(*(pa.array(np.frombuffer(numbers, np.int32)) for numbers in (offsets, flat)))
