from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cataloger.data.augmentation import Augmenter
from cataloger.data.text import load_tokenizer
from cataloger.model.pretrained import base_model_folder

TEXT = "red running shoes for women | Acme unbelievable | light and breathable"


@pytest.fixture(scope="module")
def folder() -> Path:
    return base_model_folder("minilm")


def altered(folder: Path, text: str, times: int) -> list[str]:
    tokenizer, alter, rng = load_tokenizer(folder, 64), Augmenter(folder), np.random.default_rng(0)
    tokens = np.array(tokenizer.encode(text).ids, np.int32)
    found = []
    for _ in range(times):
        ids = alter(tokens, rng)
        assert (ids[0], ids[-1]) == (tokens[0], tokens[-1]), "special tokens stay"
        found.append(tokenizer.decode(ids.tolist()))
    return found


def test_words_and_fields_go_and_move_and_no_word_is_broken_or_made_up(folder: Path) -> None:
    results, words = altered(folder, TEXT, 400), set(TEXT.lower().split())
    assert all(set(result.split()) <= words and result for result in results)
    counts = [Counter(result.split()) for result in results]
    without_brand = sum(not ({"acme", "unbelievable"} & set(count)) for count in counts)
    assert 40 < without_brand < 110, "one field of three goes, every other time"
    kept = sum(count["red"] for count in counts)
    assert 400 * 0.65 < kept < 400 * 0.85, "5 in 6 by field, 9 in 10 by word"
    assert any(result.startswith("running red shoes") for result in results)
    assert len(set(results)) > 200


def test_a_single_word_stays(folder: Path) -> None:
    assert set(altered(folder, "unbelievable", 50)) == {"unbelievable"}
    # A bar at the end, as where a text was cut off: no field goes that is the last one.
    assert set(altered(folder, "unbelievable |", 50)) <= {"unbelievable |", "unbelievable", "| unbelievable", "|"}
    assert set(altered(folder, "|", 50)) == {"|"}
    empty = np.array(load_tokenizer(folder, 8).encode("").ids, np.int32)
    np.testing.assert_array_equal(Augmenter(folder)(empty, np.random.default_rng(0)), empty)
