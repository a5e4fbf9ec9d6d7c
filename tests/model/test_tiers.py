"""Words first: what they answer alone, what goes on to the network, and a bundle without one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cataloger.bundle import SPEC, WORDS, digest, read_spec, write_spec
from cataloger.errors import ModelError
from cataloger.heads.category_columns import BY_BOTH, BY_WORDS, TIER
from cataloger.model.predictor import Predictor
from cataloger.model.tiers import FirstTier, Tiers
from cataloger.spec import MANY_CATEGORIES, Spec, Words
from linear import CATEGORIES, LABELS, TEXTS, word_model

ALONE = Spec(CATEGORIES, ("title",), 64, "none", "", words=Words(temperature=0.3))
# Of unlike sureness, so that some are answered and some are not.
SAID = pa.array([TEXTS[0], "tea shoes", TEXTS[5], "zzz", "blue boots tea", TEXTS[9], "", "jeans"])


@pytest.fixture
def folder(working_folder: Path) -> Path:
    """A bundle of words alone."""
    folder = working_folder / "bundle"
    folder.mkdir()
    word_model().save(folder)
    write_spec(folder, ALONE)
    return folder


def first_tier(folder: Path, alone_from: float | None) -> FirstTier:
    """With a network that is not asked here."""
    assert ALONE.words
    return FirstTier(folder, replace(ALONE, pooling="mean", words=replace(ALONE.words, alone_from=alone_from)))


@pytest.mark.parametrize("alone_from", [0.0, 0.6, 1.0, None])
def test_every_text_is_answered_or_ranked(folder: Path, alone_from: float | None) -> None:
    whole, said = FirstTier(folder, ALONE).ask(SAID, 2), first_tier(folder, alone_from).ask(SAID, 2)
    confidence = whole.answers.column("confidence").to_numpy()
    expected = confidence >= alone_from if alone_from is not None else np.zeros(len(SAID), bool)
    assert said.alone.tolist() == expected.tolist()
    assert whole.alone.all()
    # As text: NaN, below the depth of a category, is not equal to itself.
    assert str(said.answers.to_pydict()) == str(whole.answers.filter(pa.array(expected)).to_pydict())
    assert said.answers.column(TIER).to_pylist() == [BY_WORDS] * expected.sum()
    ranked = first_tier(folder, alone_from).rank(SAID).take(np.flatnonzero(~expected))
    np.testing.assert_array_equal(said.ranked.labels, ranked.labels)
    np.testing.assert_array_equal(said.ranked.probabilities, ranked.probabilities)
    order = [*np.flatnonzero(expected), *np.flatnonzero(~expected)]
    assert [order[place] for place in said.place] == list(range(len(SAID)))


def test_the_probability_that_words_answer_from_is_enough(folder: Path) -> None:
    confidence = FirstTier(folder, ALONE).ask(SAID, 0).answers.column("confidence").to_numpy()
    assert confidence.min() < 0.6 < confidence.max(), "or the test above shows little"
    assert first_tier(folder, float(confidence.max())).ask(SAID, 0).alone.sum() == 1


def test_with_tiers_off_words_answer_nothing_alone_unless_there_is_nobody_else(folder: Path) -> None:
    assert not first_tier(folder, None).ask(SAID, 0).alone.any()
    assert FirstTier(folder, ALONE.without_tiers()).ask(SAID, 0).alone.all()


def test_no_texts_have_no_answers(folder: Path) -> None:
    nothing, some = (first_tier(folder, 0.6).ask(texts, 2) for texts in (SAID[:0], SAID))
    assert nothing.answers.schema.equals(some.answers.schema)
    assert len(nothing.answers) == len(nothing.alone) == len(nothing.place) == len(nothing.ranked) == 0
    assert nothing.ranked.labels.shape == (0, len(CATEGORIES))


@pytest.mark.parametrize("many", [False, True])
def test_a_bundle_of_words_alone_labels(folder: Path, many: bool) -> None:
    if many:
        write_spec(folder, replace(ALONE, head=MANY_CATEGORIES, category_thresholds=(0.3,) * 4))
    tiers = Tiers(folder)
    titles = [TEXTS[9], None, TEXTS[0], "", TEXTS[5]]
    labels = tiers.label(pa.table({"title": titles}), alternatives=2)
    wanted = [CATEGORIES[3], None, CATEGORIES[0], None, CATEGORIES[2]]
    found = labels.column(tiers.columns.answer).to_pylist()
    assert found == ([[path] if path else None for path in wanted] if many else wanted)
    for name in labels.column_names:
        assert labels.column(name).is_valid().to_pylist() == [True, False, True, False, True] or (
            name == "trusted_category"  # null where no step is trusted
        )
    assert labels.column(TIER).to_pylist() == [BY_WORDS, None, BY_WORDS, None, BY_WORDS]
    unread = tiers.label(pa.table({"title": pa.array([None, ""], pa.string())}))
    assert [column.null_count for column in unread.columns] == [2] * unread.num_columns


def test_rows_of_both_tiers_come_back_in_their_order(working_folder: Path, bundle: Path) -> None:
    folder = Path(shutil.copytree(bundle, working_folder / "both"))
    categories = read_spec(folder).categories
    word_model(categories, range(len(categories))).save(folder)
    texts = pa.array([categories[3], "zzz", categories[0], "", f"{categories[1]} {categories[8]}", categories[5]])
    encoded = Predictor(bundle).input.encode(texts)

    def labels(alone_from: float | None) -> pa.Table:
        words = Words(temperature=0.3, weight=0.0, alone_from=alone_from)
        write_spec(folder, replace(read_spec(folder), words=words))
        return Tiers(folder).answer(texts, 2)

    # Without weight what words know changes nothing of the network's answers.
    network, words = Predictor(bundle).answer(encoded, 2), labels(0.0)
    mixed = labels(float(np.median(words.column("confidence"))))
    assert words.column("label").to_pylist()[::2] != network.column("label").to_pylist()[::2]
    assert set(mixed.column(TIER).to_pylist()) == {BY_WORDS, BY_BOTH}
    for row, tier in enumerate(mixed.column(TIER).to_pylist()):
        (found,), (expected,) = ((t.slice(row, 1).to_pylist()) for t in (mixed, words if tier == BY_WORDS else network))
        assert (found["label"], found["alternatives"]) == (expected["label"], expected["alternatives"])
        assert found["confidence"] == pytest.approx(expected["confidence"], rel=1e-4)


def test_a_digest_follows_the_words(folder: Path) -> None:
    before = digest(folder)
    content = (folder / WORDS).read_bytes()
    word_model(TEXTS[::-1], LABELS).save(folder)
    assert digest(folder) != before
    (folder / WORDS).write_bytes(content)
    assert digest(folder) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("weight", -1), ("temperature", 0), ("shift", 1e4), ("network_temperature", 1e9), ("alone_from", 1.5)),
        *(("agreement", -0.1), ("weight", "much"), ("certificate", None)),
    ],
)
def test_numbers_that_cannot_be_are_named(folder: Path, field: str, value: object) -> None:
    stored = json.loads((folder / SPEC).read_text())
    stored["words"][field] = value
    (folder / SPEC).write_text(json.dumps(stored))
    with pytest.raises(
        ModelError, match=rf"cataloger\.json cannot be right: words\.{field}: .*; copy the folder again"
    ):
        Tiers(folder)


def test_without_network_and_words_nobody_answers(folder: Path) -> None:
    stored = json.loads((folder / SPEC).read_text())
    (folder / SPEC).write_text(json.dumps({**stored, "words": None}))
    with pytest.raises(ModelError, match="words: must be there where pooling is none"):
        Tiers(folder)


def test_words_that_know_other_categories_than_the_bundle_are_named(folder: Path) -> None:
    write_spec(folder, replace(ALONE, categories=CATEGORIES[:-1]))
    with pytest.raises(
        ModelError, match=r"words\.safetensors has 4 categories, cataloger\.json has 3; copy the folder"
    ):
        Tiers(folder)
