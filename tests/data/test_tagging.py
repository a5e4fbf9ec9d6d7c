"""What a model reads as words, and where they stand in the row's own texts: exact, whatever the texts are made of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cataloger.data.fields import NOWHERE, TRIMMED, composed
from cataloger.data.spans import HIDDEN, Span, names_in, taught
from cataloger.data.tagging import TagInput
from cataloger.data.text import compose
from cataloger.data.windows import MOST_WINDOWS, Windows
from cataloger.model.pretrained import base_model_folder

# White space of all kinds, marks that combine, wide and narrow scripts, an emoji of several characters, a ligature.
TEXT = st.text(" \t\n\r\f\v\u00a0\u3000|aBé\u0301ß中日한ไ1-.,ﬁ½👨\u200d👩", max_size=30)
ROW = st.tuples(TEXT, TEXT)


def large(values: list[str]) -> pa.Array:
    return pa.array(values, pa.large_string())


@pytest.fixture(scope="module")
def reader() -> TagInput:
    return TagInput(base_model_folder("minilm"), ("title", "description"), 8)


def read(reader: TagInput, rows: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], Windows]:
    """The rows that have any text, as words."""
    titles, descriptions = zip(*rows, strict=True)
    values = reader.read(pa.table({"title": large(list(titles)), "description": large(list(descriptions))})).values
    known = values.is_valid().to_pylist()
    return [row for row, one in zip(rows, known, strict=True) if one], reader.encode(values.drop_null())


@given(st.lists(ROW, min_size=1, max_size=5), st.integers(1, 3))
@settings(max_examples=300)
def test_every_character_of_the_composed_text_is_found_again(rows: list[tuple[str, str]], max_tokens: int) -> None:
    columns = [large(list(column)) for column in zip(*rows, strict=True)]
    found = composed(columns, max_tokens)
    assert found.texts.equals(compose(pa.table(columns, ["a", "b"]), ["a", "b"], max_tokens))
    for row, text in enumerate(found.texts.to_pylist()):
        here = slice(found.offsets[row], found.offsets[row + 1])
        assert len(text or "") == here.stop - here.start
        for character, field, place in zip(text or "", found.field[here], found.place[here], strict=True):
            if field != NOWHERE:
                own = rows[row][field][place]
                assert own == character or (character == " " and own in "\t\n\r\f ")


def test_arrow_trims_what_we_take_for_white_space() -> None:
    every = pa.array([chr(code) for code in range(0x11_0000) if not 0xD800 <= code < 0xE000])
    trimmed = pc.equal(pc.utf8_trim_whitespace(every), "")
    assert [ord(one) for one in every.filter(trimmed).to_pylist()] == TRIMMED.tolist()


@given(st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=300)
def test_words_are_stretches_of_the_own_texts_in_their_order(reader: TagInput, rows: list[tuple[str, str]]) -> None:
    rows, encoded = read(reader, rows)
    for row, texts in enumerate(rows):
        words = encoded.origins[encoded.words.offsets[row] : encoded.words.offsets[row + 1]]
        last = {}
        for field, start, end in words[words[:, 0] >= 0].tolist():
            assert 0 <= start < end <= len(texts[field])
            assert texts[field][start:end].strip() == texts[field][start:end], "no white space around a word"
            assert start >= last.get(field, 0)
            last[field] = end


@given(st.lists(ROW, min_size=1, max_size=4), st.integers(0, 1 << 30))
@settings(max_examples=200)
def test_tags_are_read_back_from_what_is_taught(reader: TagInput, rows: list[tuple[str, str]], seed: int) -> None:
    """Stretches that begin and end with words come back character by character."""
    rng, (rows, encoded) = np.random.default_rng(seed), read(reader, rows)
    true: list[list[Span]] = []
    for row in range(len(rows)):
        words = encoded.origins[encoded.words.offsets[row] : encoded.words.offsets[row + 1]]
        spans, first = [], 0
        while first < len(words):
            last = min(first + int(rng.integers(3)), len(words) - 1)
            if (words[first : last + 1, 0] == words[first, 0]).all() and words[first, 0] >= 0 and rng.random() < 0.6:
                spans.append(
                    Span(int(words[first, 0]), int(words[first, 1]), int(words[last, 2]), rng.choice(["a", "b"]))
                )
            first = last + 1
        true.append(spans)
    labels, beyond = taught(true, encoded, {"a": 0, "b": 1})
    assert not beyond
    for row, spans in enumerate(true):
        words = encoded.origins[encoded.words.offsets[row] : encoded.words.offsets[row + 1]]
        first, last, name = names_in(labels.flat[labels.offsets[row] : labels.offsets[row + 1]])
        pairs = zip(first, last, name, strict=True)
        found = [Span(words[a, 0], words[a, 1], words[b, 2], "ab"[n]) for a, b, n in pairs]
        assert found == spans


def test_a_hidden_stretch_and_one_of_an_unknown_name_are_not_taught(reader: TagInput) -> None:
    _, encoded = read(reader, [("red shoe red", "")])
    spans = [Span(0, 0, 3, "Colour", hidden=True), Span(0, 4, 8, "Kind"), Span(0, 9, 12, "new")]
    assert taught([spans], encoded, {"Colour": 0, "Kind": 1, "new": -1})[0].flat.tolist() == [HIDDEN, 3, HIDDEN]
    assert taught([[Span(0, 100, 101, "Kind")]], encoded, {"Kind": 1})[1] == 1, "no word is there"


@given(st.integers(0, 60))
def test_every_word_has_a_window_that_has_text_around_it(reader: TagInput, length: int) -> None:
    text = " ".join(["one"] * length)
    rows, encoded = read(reader, [("two", ""), (text or "x", "y z")])
    batch = encoded.batch(np.array([1, 0]))
    ids, index = batch["input_ids"], batch["word_index"]
    frame, tokens = encoded.frame, encoded.tokens
    assert ids.shape[0] == encoded.counts.sum()
    assert (encoded.costs >= encoded.counts).all()
    assert np.array_equal(encoded.costs_of(np.arange(len(encoded))[::-1]), encoded.costs[::-1])
    for row, own in enumerate([1, 0]):
        first = encoded.words.flat[encoded.words.offsets[own] : encoded.words.offsets[own + 1]]
        for number, token in enumerate(first):
            at = index[row, 1 + number]
            field = encoded.origins[encoded.words.offsets[own] + number, 0]
            assert (at < 0) == (field < 0)
            if at >= 0:
                assert ids.flat[at] == tokens.flat[tokens.offsets[own] + token]
                place = at % ids.shape[1] - len(frame.before)
                window_full = encoded.counts[own] > 1
                edge = min(place, frame.content - 1 - place)
                inner = 0 < token < tokens.lengths[own] - frame.content
                assert not (window_full and inner) or edge >= frame.overlap // 2 - 1
        assert index[row, 0] % ids.shape[1] == 0
        assert ids.flat[index[row, 0]] == frame.before[0]
    assert (index[1, 2:] == -1).all(), "rows with fewer words are filled up"
    del rows


def test_rows_survive_the_way_to_another_process(reader: TagInput) -> None:
    rows = [("Red  shoe", "of\tleather"), ("", "中文 👨\u200d👩 x"), ("a", "b c d e f g h i j k l m")]
    _, encoded = read(reader, rows)
    again = reader.from_arrow(encoded.slice(1, 3).to_arrow())
    for rows_of in (np.array([0]), np.array([1, 0])):
        for name, array in encoded.batch(rows_of + 1).items():
            assert (
                array.tolist()
                == again.batch(rows_of)[name].tolist()
                == encoded.take(rows_of + 1).batch(np.arange(len(rows_of)))[name].tolist()
            )
    assert again.fields is not None
    assert again.fields.column(1).to_pylist() == [
        "中文 👨\u200d👩 x",
        "b c d e f g h i j k l m",
    ]


def test_equal_rows_have_equal_texts_in_all_columns(reader: TagInput) -> None:
    rows = [("a b", "c"), ("a  b", "c"), ("a b", "c"), ("a", "b c"), ("a b | c", ""), ("", "")]
    titles, descriptions = zip(*rows, strict=True)
    values = reader.read(pa.table({"title": large(list(titles)), "description": large(list(descriptions))})).values
    found = reader.distinct(values)
    assert found.place.to_pylist() == [0, 1, 0, 2, 3, None], "what is read is alike, but where it stands is not"
    assert reader.identity(values).to_pylist()[:2] == ["a b | c", "a b | c"], "all the same for the split"


def test_a_text_without_end_is_read_as_far_as_its_windows_go(reader: TagInput) -> None:
    _, encoded = read(reader, [("word " * 100_000, "")])
    assert encoded.counts.tolist() == [MOST_WINDOWS]


def test_texts_that_cannot_be_read(reader: TagInput, tmp_path: Path) -> None:
    bad = pa.array([b"\xff", b"ok", None], pa.binary()).cast(pa.string(), safe=False)
    found = reader.read(pa.table({"title": bad, "description": pa.array(["fine", None, " "])}))
    assert found.reasons.to_pylist() == [
        "a text column is not valid UTF-8",
        None,
        "no text in any of the text columns",
    ]


def test_words_are_whole_whatever_a_tokenizer_leaves_out(reader: TagInput) -> None:
    """Soft hyphens, marks that combine, white space that does not break."""
    texts = ["Wasch\u00admaschine", "cafe\u0301 noir", "नमस्ते दुनिया", "500\u00a0GB", "漂亮红色", "100% cotton"]
    _, encoded = read(reader, [(text, "") for text in texts])
    found = []
    for row, text in enumerate(texts):
        words = encoded.origins[encoded.words.offsets[row] : encoded.words.offsets[row + 1]]
        found.append([text[start:end] for _, start, end in words.tolist()])
    assert found == [
        ["Wasch\u00admaschine"],
        ["cafe\u0301", "noir"],
        ["नमस्ते", "दुनिया"],
        ["500", "GB"],
        ["漂", "亮", "红", "色"],
        ["100", "%", "cotton"],
    ]


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
def test_a_token_of_white_space_alone_is_of_no_word(tmp_path: Path, kind: str) -> None:
    """Tokenizers such as RoBERTa's and DeBERTa's have one."""
    folder = tmp_path
    (folder / "config.json").write_text('{"vocab_size": 400, "pad_token_id": 0}')
    tokenizer = Tokenizer(models.BPE(unk_token="?")) if kind == "byte-level" else Tokenizer(models.Unigram())
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["?"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["?"], unk_token="?")
    tokenizer.train_from_iterator(["Sony phone red", "a cup of tea"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    given = TagInput(folder, ("title", "description"), 64)
    rows = [("Sony 你好", "tea | cup"), ("red", "Sony")]
    titles, descriptions = zip(*rows, strict=True)
    encoded = given.encode(
        given.read(pa.table({"title": large(list(titles)), "description": large(list(descriptions))})).values
    )
    for row, texts in enumerate(rows):
        words = encoded.origins[encoded.words.offsets[row] : encoded.words.offsets[row + 1]]
        found = [texts[field][start:end] for field, start, end in words.tolist() if field >= 0]
        assert all(word == word.strip() for word in found), found
        assert {"Sony"} <= set(found), "the last word of a field is one as well"
