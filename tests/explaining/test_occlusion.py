"""What a category rests on, by the model itself."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cataloger.bundle import read_spec, write_spec
from cataloger.errors import ConfigError
from cataloger.explaining.occlusion import GRID, Explainer
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES, TAGS, Spec, Words
from drawn import BLUE, RED, jpeg
from linear import CATEGORIES, word_model

ALONE = Spec(CATEGORIES, ("title", "brand"), 64, "none", "", words=Words(temperature=0.3))
ROWS = pa.table(
    {
        "title": ["  Blue   running\tshoes, running", "green tea 250g", None, "shoes"],
        "brand": ["Tea & Co", None, " ", None],
    }
)


@pytest.fixture
def words(working_folder: Path) -> Tiers:
    """A model of words alone."""
    folder = working_folder / "bundle"
    folder.mkdir()
    word_model().save(folder)
    write_spec(folder, ALONE)
    return Tiers(folder)


def sure(tiers: Tiers, text: str, category: str) -> float:
    found = Explainer.of(tiers).probabilities(pa.array([text], pa.large_string()))[0]
    return float(found[tiers.spec.categories.index(category)])


def test_words_stand_in_the_rows_own_texts_and_count_as_the_model_says(words: Tiers) -> None:
    labels = words.published(ROWS, 1).labels
    (found,), tea, nothing, single = Explainer.of(words).explain(ROWS, labels)
    assert nothing == []
    assert found.category == labels.column("category")[0].as_py() == "Shoes"
    assert found.confidence == labels.column("confidence")[0].as_py()
    assert found.runner_up == labels.column("alternatives")[0].as_py()[0]["category"]
    title, brand = ROWS.column("title")[0].as_py(), ROWS.column("brand")[0].as_py()
    texts = {"title": title, "brand": brand}
    assert [(one.field, texts[one.field][one.start : one.end]) for one in found.words] == [
        *(("title", word) for word in ("Blue", "running", "shoes", "running")),
        *(("brand", word) for word in ("Tea", "Co")),
    ]
    assert [one.text for one in found.words] == ["Blue", "running", "shoes", "running", "Tea", "Co"]
    # A word that is there twice is left out twice, and has one weight.
    assert found.words[1].weight == found.words[3].weight
    without = sure(words, "Blue shoes, | Tea & Co", "Shoes")
    assert found.words[1].confidence_without == pytest.approx(without, abs=1e-6)

    def odds(text: str) -> float:
        own = sure(words, text, "Shoes")
        return float(np.log(own / (1 - own)))

    whole, rest, alone, nothing_at_all = (
        odds(text) for text in ("Blue running shoes, running | Tea & Co", "Blue shoes, | Tea & Co", "running", "")
    )
    # "only" keeps both places, and the separator that is no word.
    alone = odds("running running | &")
    expected = (whole - rest + alone - nothing_at_all) / 2
    assert found.words[1].weight == pytest.approx(expected, abs=1e-4)
    assert found.words[4].weight < 0 < found.words[2].weight, "tea speaks against shoes"
    assert [one.text for one in found.strongest(2)] == ["running", "shoes"]
    assert tea[0].category == "Tea"
    assert single[0].words[0].confidence_without == pytest.approx(sure(words, "", "Shoes"), abs=1e-6)


def test_of_any_number_of_categories_each_is_explained(working_folder: Path) -> None:
    folder = working_folder / "bundle"
    folder.mkdir()
    word_model().save(folder)
    write_spec(folder, replace(ALONE, head=MANY_CATEGORIES, category_thresholds=(0.36, 0.9, 0.36, 0.9)))
    tiers = Tiers(folder)
    table = pa.table({"title": ["running shoes green tea", "zzz"], "brand": pa.nulls(2, pa.string())})
    labels = tiers.published(table, 1).labels
    both, none = Explainer.of(tiers).explain(table, labels)
    assert [one.category for one in both] == labels.column("categories")[0].as_py() != []
    assert {one.runner_up for one in both} == {None}
    strongest = {one.category: one.strongest(1)[0].text for one in both}
    assert strongest["Shoes"] in ("running", "shoes")
    assert strongest["Tea"] in ("green", "tea")
    assert labels.column("categories")[1].as_py() == []
    assert len(none) == 1, "of a row without any, the most probable one"


def test_network_and_words_are_asked_as_they_answer(bundle: Path, working_folder: Path) -> None:
    tiers = Tiers(bundle)
    table = pa.table({"title": ["red shoes of leather"], "brand": ["Acme"], "description": [None]})
    labels = tiers.published(table, 1).labels
    ((found,),) = Explainer.of(tiers).explain(table, labels)
    assert found.category == labels.column("category")[0].as_py()
    assert found.confidence == pytest.approx(labels.column("confidence")[0].as_py(), abs=1e-6)
    assert [one.text for one in found.words] == ["red", "shoes", "of", "leather", "Acme"]
    expected = sure(tiers, "red of leather | Acme", found.category)
    assert found.words[1].confidence_without == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("columns", [("title",), ()])
def test_parts_of_a_picture_count_too(seeing: Callable[..., Path], columns: tuple[str, ...]) -> None:
    tiers = Tiers(seeing(*columns))
    plain, corner = jpeg(RED, RED), jpeg(RED, BLUE)
    table = pa.table({**dict.fromkeys(columns, ["red shirt"] * 3), "image": pa.array([plain, corner, None])})
    labels = tiers.published(table, 1).labels
    found = Explainer.of(tiers).explain(table, labels)
    for row, explanations in enumerate(found):
        if not columns and row == 2:
            assert explanations == []
            continue
        (one,) = explanations
        assert one.category == labels.column("category")[row].as_py()
        assert len(one.regions) == (0 if row == 2 else GRID**2)
        assert [word.text for word in one.words] == (["red", "shirt"] if columns else [])
    assert max(abs(region.weight) for region in found[0][0].regions) < 1e-3, "all parts of one colour are alike"
    weights = [abs(region.weight) for region in found[1][0].regions]
    assert max(weights) > 1e-3
    first = found[1][0].regions[0]
    assert (first.left, first.top, first.right, first.bottom) == (0.0, 0.0, pytest.approx(0.2, abs=0.02), first.right)


def test_tags_are_not_explained(bundle: Path) -> None:
    tiers = Tiers(bundle)
    tiers.spec = dataclasses.replace(read_spec(bundle), head=TAGS, label_column="tags", thresholds=())
    with pytest.raises(ConfigError, match="this model finds tags"):
        Explainer.of(tiers)
