"""The words that may be left out of a text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cataloger.explaining.words import MOST_UNITS, Words, stretches


def shown(text: str) -> list[str]:
    return [text[one.first : one.last] for one in stretches(text)]


def test_words_go_with_their_punctuation_and_are_shown_without_it() -> None:
    text = '"Kid\'s" T-shirt, 3.5 oz. (blue & red) | 100%'
    assert shown(text) == ["Kid's", "T-shirt", "3.5", "oz", "blue", "red", "100"]
    assert Words(text).without(4) == '"Kid\'s" T-shirt, 3.5 oz. & red) | 100%'
    assert Words(text).only(1) == "T-shirt, & |"


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    assert shown("有机 gluten无free กุ้ง") == ["有", "机", "gluten", "无", "free", "กุ้", "ง"]


def test_a_word_is_left_out_wherever_it_stands() -> None:
    words = Words("Red shoes | RED, for kids")
    assert len(words.units) == 4
    assert words.without(0) == "shoes | for kids"
    assert words.only(0) == "Red | RED,"
    assert [words.shown(unit) for unit in range(4)] == ["Red", "shoes", "for", "kids"]


def test_long_texts_are_left_out_a_few_words_at_a_time() -> None:
    words = Words(" ".join(f"word{number}" for number in range(5 * MOST_UNITS - 3)))
    assert len(words.units) <= MOST_UNITS
    assert words.without(0) == " ".join(f"word{number}" for number in range(5, 5 * MOST_UNITS - 3))
    assert words.shown(0) == "word0 word1 word2 word3 word4"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_every_letter_and_digit_is_of_one_word(text: str) -> None:
    found = stretches(text)
    assert all(one.start <= one.first < one.last <= one.end for one in found)
    assert all(before.end <= after.start for before, after in pairwise(found))
    inside = {place for one in found for place in range(one.first, one.last)}
    assert {place for place, character in enumerate(text) if character.isalnum()} <= inside


def test_without_everything_nothing_is_left() -> None:
    words = Words("green tea, 250g")
    assert words.without(*range(len(words.units))) == ""
    assert Words("").units == ()
    assert Words("| -").units == ()
