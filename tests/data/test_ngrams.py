"""Hashed n-grams against plain lists of them, made by loops over characters and words."""

import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cataloger.data import ngrams as module
from cataloger.data.ngrams import BUCKETS, blocks_of, ngrams

# White space of many kinds, marks, scripts without spaces, emoji with their joiners, and what NFKD or lower case change.
SPECIAL = " \t\n\v\x85\u00a0\u2028\u3000_-.|'0٣²½éÉ\u0301\u0327ßẞſΣςİıﬁＡｶﾞ日本語綠ひカーไทยก็ລາວខ្មែរမြန်한글नि😀👍🏽❤\ufe0f\u200d🏴"
CHARACTERS = st.one_of(st.sampled_from("abAB  "), st.sampled_from(SPECIAL), st.characters(max_codepoint=0x52F))
TEXTS = st.text(CHARACTERS, max_size=30)
SPACELESS = ("CJK", "HIRAGANA", "KATAKANA LETTER", "THAI", "LAO", "KHMER", "MYANMAR")


def listed(text: str | None) -> Counter[tuple[str, ...]]:
    """Every n-gram of a text, with its kind before it."""
    normal = [lower for character in unicodedata.normalize("NFKD", text or "") for lower in character.lower()]
    spaced = "".join(f" {c} " if unicodedata.name(c, "").startswith(SPACELESS) else c for c in normal)
    found: list[tuple[str, ...]] = []
    for word in spaced.split():
        padded = f" {word} "
        for length in (3, 4, 5):
            found += [("part", padded[start : start + length]) for start in range(len(padded) - length + 1)]
    words = "".join(c if c == "_" or unicodedata.category(c)[0] in "LMN" else " " for c in spaced).split()
    found += [("word", word) for word in words]
    found += [("pair", *pair) for pair in pairwise(words)]
    return Counter(found)


def rows(texts: list[str | None], kind: pa.DataType | None = None) -> sparse.csr_matrix:
    found = ngrams(pa.array(texts, kind or pa.string()))
    assert (found.shape, found.dtype) == ((len(texts), BUCKETS), np.float32)
    found.check_format(full_check=True)
    return found


def same(left: sparse.csr_matrix, right: sparse.csr_matrix) -> bool:
    return left.shape == right.shape and (left != right).nnz == 0


@given(st.lists(st.none() | TEXTS, min_size=2, max_size=4))
@settings(max_examples=300)
def test_two_ngrams_have_the_same_bucket_just_if_they_are_the_same(texts: list[str | None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # So many buckets that none is shared by chance.
        patch.setattr(module, "BITS", 30)
        patch.setattr(module, "BUCKETS", 1 << 30)
        found = ngrams(pa.array(texts, pa.string()))
    expected = [listed(text) for text in texts]
    for row, counts in zip(found, expected, strict=True):
        assert sorted(row.data) == sorted(counts.values())
    for row, counts in zip(found[1:], expected[1:], strict=True):
        assert row.minimum(found[0]).sum() == (counts & expected[0]).total()


@given(st.lists(st.none() | TEXTS, max_size=6), st.integers(1, 40))
@settings(max_examples=200)
def test_a_row_is_that_of_its_text_alone_however_texts_are_cut_into_blocks(texts: list[str | None], block: int) -> None:
    whole = rows(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert same(rows(texts), whole)
    for row, text in zip(whole, texts, strict=True):
        assert same(row, rows([text]))
        assert row.sum() == listed(text).total()


@given(st.lists(st.none() | TEXTS, max_size=20), st.integers(1, 40), st.integers(1, 5))
def test_blocks_are_all_texts_in_their_order(texts: list[str | None], block: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        blocks = [(first, part.to_pylist()) for first, part in blocks_of(pa.array(texts, pa.string()), most)]
    start = 0
    for first, part in blocks:
        assert first == start
        assert 1 <= len(part) <= most
        assert len(part) == 1 or sum(len(text or "") for text in part) <= block
        start += len(part)
    assert [text for _, part in blocks for text in part] == texts


def test_case_forms_and_kinds_of_white_space_make_no_difference() -> None:
    plain = rows(["red shoes café"])
    for text in (
        "Red SHOES Cafe\u0301",
        "ｒｅｄ\u3000shoes\u00a0 café ",
        "red\tshoes\v\ncafé",
        "\u2028red\x85shoes café",
    ):
        assert same(rows([text]), plain), repr(text)
    for text in ("redshoes café", "shoes red café", "red shoes cafe", "red-shoes café"):
        assert not same(rows([text]), plain), repr(text)


def test_scripts_without_spaces_have_a_word_per_character() -> None:
    for text, count in {"绿茶": 2, "ไทย": 3, "ひカ": 2, "tea绿茶": 3}.items():
        assert same(rows([text]), rows([" ".join(text.replace("tea", "T")).replace("T", "tea")])), text
        words = [gram for gram in listed(text).elements() if gram[0] != "part"]
        assert len(words) == 2 * count - 1


def test_emoji_are_no_words_and_hold_none_together() -> None:
    assert rows(["😀"]).sum() == 1, "as one character between two spaces"
    assert rows(["😀👍🏽"]).sum() == sum(5 - length + 1 for length in (3, 4, 5))
    shared = rows(["tea😀cup"]).minimum(rows(["tea-cup"]))
    assert shared.sum() == len([" te", " tea", "tea", "cup", "up ", "cup ", "tea", "cup", "tea cup"])


def test_texts_without_anything_to_read_have_empty_rows() -> None:
    assert rows([]).nnz == 0
    for texts in ([None], [""], [" \u3000\n"], [None, "", None]):
        assert rows(texts).nnz == 0
    assert np.diff(rows([None, "tea", "", "tea", None]).indptr).tolist() == [0, 7, 0, 7, 0]


def test_the_kind_of_string_and_the_part_of_an_array_make_no_difference() -> None:
    texts = ["before", "绿茶 tea", None, "", "Ünï 😀", "behind"]
    expected = rows(texts)
    assert same(rows(texts, pa.large_string()), expected)
    for kind in (pa.string(), pa.large_string()):
        assert same(ngrams(pa.array(texts, kind).slice(1, 4)), expected[1:5])


def test_a_text_longer_than_a_block_is_counted_whole() -> None:
    times = module.BLOCK
    found = rows(["before", "ab " * times, "behind"])
    assert sorted(found[1].data) == [times - 1, *[times] * 4], "a pair, a word, and what begins it, ends it, is it"
    assert same(found[[0, 2]], rows(["before", "behind"]))
