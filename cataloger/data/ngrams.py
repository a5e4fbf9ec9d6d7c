"""Texts → hashed n-grams: runs of one and two words, and of three to five characters within a word.

No loop goes over texts or words. A text's characters are numbers; the hash of every n-gram is the difference of two prefix
sums (Karp and Rabin 1987, with a polynomial modulo 2^64), so that each kind of n-gram is a few operations on whole arrays.
"""

import functools
import unicodedata
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

# Hashed into so many buckets (Weinberger et al. 2009); with four times as many, the same accuracy on instacart's validation rows.
BITS = 20
BUCKETS = 1 << BITS
CHARACTERS, WORDS = (3, 4, 5), (1, 2)
# Texts are hashed in blocks of about so many characters, whose arrays stay in the processor's cache.
BLOCK = 1 << 17
# Scripts that are written without spaces: each character is a word, as for BERT's tokenizer.
WORD_EACH = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
SPACE, WORD, OTHER, UNKNOWN = range(4)

Hashes = npt.NDArray[np.uint64]
_BASE, _MIXER = 0x9E3779B97F4A7C15, np.uint64(0xD6E8FEB86659FD93)


def ngrams(texts: pa.Array) -> sparse.csr_matrix:
    """float32 [N, BUCKETS] how often each bucket occurs in each text, without case and forms (NFKD); a null has none."""
    blocks = [_keys(block, first) for first, block in blocks_of(texts)]
    keys = np.concatenate([np.empty(0, np.uint64), *blocks])
    keys.sort()
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    counts = np.diff(starts, append=len(keys)).astype(np.float32)
    keys = keys[starts]
    rows = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(BITS))
    columns = (keys & np.uint64(BUCKETS - 1)).astype(np.int32)
    return sparse.csr_matrix((counts, columns, rows.astype(np.int64)), shape=(len(texts), BUCKETS))


def blocks_of(texts: pa.Array, rows: int = 1 << 16) -> Iterator[tuple[int, pa.Array]]:
    """(number of the first text, texts), of at most so many rows and about BLOCK characters."""
    ends = np.cumsum(pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK, side="right"))
        stop = min(max(stop, start + 1), start + rows)
        yield start, texts.slice(start, stop - start)
        start = stop


def _keys(texts: pa.Array, first: int) -> Hashes:
    """Number of the text and bucket of every n-gram, as one number each."""
    # Not NFKC: Arrow up to 25 does not compose for it, later ones do, and a model's n-grams must be those it was trained with.
    texts = pc.utf8_lower(pc.utf8_normalize(pc.fill_null(texts, "").cast(pa.large_string()), "NFKD"))
    texts = pc.replace_substring_regex(texts, WORD_EACH, r" \1 ")
    # Every text has a space before it, and the next one's behind it: n-grams do not reach over.
    joined = "".join(f" {text}" for text in texts.to_pylist()) + " "
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    kinds = _kinds(codes)
    codes = np.where(kinds == SPACE, np.uint32(ord(" ")), codes)  # one kind of white space is as good as another
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), pc.utf8_length(texts).to_numpy() + 1) + np.uint64(first)
    row <<= np.uint64(BITS)
    forward, backward = _powers(1 + max(20, len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_mixed(codes + np.uint64(1)) * forward[: len(codes)], out=sums[1:])

    def hashed(starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]) -> Hashes:
        return _mixed((sums[stops] - sums[starts]) * backward[starts])

    def keys(starts: npt.NDArray[np.intp], hashes: Hashes) -> Hashes:
        return row[starts] | (hashes >> np.uint64(64 - BITS))

    spaces = np.concatenate([[0], np.cumsum(kinds == SPACE)])
    found = []
    for length in CHARACTERS:
        # At most its first and its last character are spaces: how a word begins and ends tells something too.
        inner = spaces[length - 1 : len(codes)] - spaces[1 : len(codes) - length + 2]
        starts = np.flatnonzero(inner == 0)
        found.append(keys(starts, hashed(starts, starts + length)))
    edges = np.diff((kinds == WORD).view(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    words = run = hashed(starts, stops) * _MIXER  # not what the same characters are as an n-gram of them
    for length in WORDS:
        whole = len(words) - length + 1
        if length > 1:
            run = _mixed(run[:whole] * np.uint64(_BASE) + words[length - 1 :])
        together = row[starts[: max(whole, 0)]] == row[starts[length - 1 :]]
        found.append(keys(starts[: max(whole, 0)][together], run[: max(whole, 0)][together]))
    return np.concatenate(found)


@functools.lru_cache(maxsize=2)
def _powers(bits: int) -> tuple[Hashes, Hashes]:
    """The first 2^bits powers of the base, and of its inverse, modulo 2^64."""

    def powers(base: int) -> Hashes:
        factors = np.full(1 << bits, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_BASE), powers(pow(_BASE, -1, 1 << 64))


def _mixed(hashes: Hashes) -> Hashes:
    """Every bit of the input changes the upper ones of the output (a multiply-xorshift finaliser)."""
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _MIXER
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _MIXER
    return np.asarray(hashes ^ (hashes >> np.uint64(32)))


_kind_of = np.full(0x110000, UNKNOWN, np.uint8)


def _kinds(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """SPACE, WORD (letters, digits, marks and underscores) or OTHER of each character."""
    kinds = _kind_of[codes]
    if (kinds == UNKNOWN).any():  # few characters occur, and each is looked up once
        for code in np.unique(codes[kinds == UNKNOWN]).tolist():
            character = chr(code)
            word = character == "_" or unicodedata.category(character)[0] in "LNM"
            _kind_of[code] = SPACE if character.isspace() else WORD if word else OTHER
        kinds = _kind_of[codes]
    return kinds
