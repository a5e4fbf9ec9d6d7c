import hashlib

import numpy as np
import pyarrow as pa
import pytest

from cataloger.data.text import CHARACTERS_PER_TOKEN, compose, hash_texts, split_hash, split_keys, split_position
from cataloger.spec import FORMAT


def test_fields_are_joined_without_gaps() -> None:
    table = pa.table(
        {
            "title": ["  red \n shoe ", None, "", "x"],
            "size": [42, 7, None, None],
            "brand": pa.array(["Acme", None, None, "  "]).dictionary_encode(),
        }
    )
    assert compose(table, ["title", "size", "brand"], 64).to_pylist() == ["red shoe | 42 | Acme", "7", None, "x"]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_what_is_not_a_number_is_no_text_and_no_group(kind: pa.DataType) -> None:
    sizes = pa.array([1.5, float("nan"), None], pa.float64()).cast(kind)
    table = pa.table({"title": ["shoe", None, None], "size": sizes})
    assert compose(table, ["title", "size"], 64).to_pylist() == ["shoe | 1.5", None, None]
    assert split_keys(table, pa.array(["a", "b", "c"], pa.large_string()), "size").to_pylist() == ["1.5", "b", "c"]


def test_a_group_that_is_not_utf8_is_none() -> None:
    groups = pa.array([b"one", b"\xff", None], pa.binary()).view(pa.string())
    keys = split_keys(pa.table({"group": groups}), pa.array(["a", "b", "c"], pa.large_string()), "group")
    assert keys.to_pylist() == ["one", "b", "c"]
    assert len(split_hash(keys, FORMAT)) == 3


def test_very_long_text_is_cut() -> None:
    table = pa.table({"title": ["汉" * 10_000_000]})
    (text,) = compose(table, ["title"], 10).to_pylist()
    assert text == "汉" * 10 * CHARACTERS_PER_TOKEN


def test_hash_is_stable_and_null_for_null() -> None:
    first, second, none = hash_texts(pa.array(["a", "a", None])).to_pylist()
    # blake2b-128 of b"a"; changing it would relabel every catalog.
    assert first == second == "27c35e6e9373877f29e562464e46497e"
    assert none is None


def test_models_of_format_2_keep_the_rows_that_they_have_not_seen() -> None:
    expected = [hashlib.blake2b(text.encode(), digest_size=16).digest()[:8] for text in ("red  shoe", "ｒed")]
    assert split_hash(pa.array(["Red  Shoe", "Ｒed"]), 2).tobytes() == b"".join(expected)


def test_the_same_product_falls_on_the_same_side() -> None:
    written = [
        "Red Shoe",
        "red shoe",
        " red\u00a0\u2003shoe\n",
        "ｒｅｄ sh\u200boe\ufeff",
        "RED\tSHOE",
        "red sho\u00ade",
    ]
    hashes = split_hash(pa.array([*written, "blue shoe", "red  show", None, ""]), FORMAT)
    assert len(set(hashes[: len(written)].tolist())) == 1
    assert len(set(hashes.tolist())) == 4, "no text is the empty one"
    hashes = split_hash(pa.array([f"product {i}" for i in range(4_000)]), FORMAT)
    positions = split_position(hashes)
    assert 0 <= positions.min() <= positions.max() < 1
    assert abs((positions < 0.2).mean() - 0.2) < 0.03
    parts = [split_position(hashes, start) < 0.2 for start in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert (np.sum(parts, axis=0) == 1).all(), "five starts give five disjoint fifths"
