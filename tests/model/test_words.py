"""The linear model of a bundle: its arithmetic against plain loops, its file, and files that cannot be right."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from scipy import sparse

from cataloger.bundle import WORDS
from cataloger.data import ngrams as hashing
from cataloger.data.ngrams import BUCKETS, ngrams
from cataloger.errors import ModelError
from cataloger.model import words as module
from cataloger.model.words import Vocabulary, WordModel
from linear import LABELS, TEXTS, word_model

OTHERS = pa.array(["blue boots", "nothing that was learnt: zzz", "", "green canvas tea " * 40, "JEANS"])


def scores(model: WordModel, texts: pa.Array = OTHERS) -> np.ndarray:
    return np.concatenate([np.empty((0, len(model.bias)), np.float32), *model.scores(texts)])


@given(arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, 3)), st.integers(1, 3))
def test_ngrams_are_weighed_as_the_formula_says(times: np.ndarray, least: int) -> None:
    counts = np.zeros((len(times), BUCKETS), np.float32)
    buckets = np.arange(times.shape[1]) * 7 + 5
    counts[:, buckets] = times
    vocabulary = Vocabulary.of(sparse.csr_matrix(counts), least)
    having = {bucket: int(column.sum()) for bucket, column in zip(buckets, (times > 0).T, strict=True)}
    assert vocabulary.buckets.tolist() == [bucket for bucket, count in having.items() if count >= least]
    expected = np.zeros((len(times), len(vocabulary.buckets)))
    for row in range(len(times)):
        for place, bucket in enumerate(vocabulary.buckets):
            idf = math.log((1 + len(times)) / (1 + having[bucket])) + 1
            expected[row, place] = (1 + math.log(counts[row, bucket])) * idf if counts[row, bucket] else 0
        expected[row] /= np.linalg.norm(expected[row]) or 1
    np.testing.assert_allclose(vocabulary.weigh(sparse.csr_matrix(counts)).toarray(), expected, rtol=1e-5)


def test_what_was_learnt_is_found_again() -> None:
    model = word_model()
    assert scores(model, pa.array(TEXTS)).argmax(axis=1).tolist() == list(LABELS)
    assert scores(model, pa.array(["Blue RUNNING shoes", "tea"])).argmax(axis=1).tolist() == [0, 2]
    unknown = scores(model, pa.array(["zzz", ""]))
    np.testing.assert_array_equal(unknown, np.stack([model.bias] * 2))


def test_a_saved_model_gives_the_scores_of_the_rounded_one(working_folder: Path) -> None:
    model = word_model()
    model.save(working_folder)
    loaded = WordModel.load(working_folder)
    np.testing.assert_array_equal(scores(loaded), scores(model.rounded()))
    np.testing.assert_allclose(scores(loaded), scores(model), atol=2e-3)
    assert scores(model).dtype == scores(loaded).dtype == np.float32
    again = working_folder / "again"
    again.mkdir()
    loaded.save(again)
    assert (again / WORDS).read_bytes() == (working_folder / WORDS).read_bytes()


def test_a_full_matrix_and_a_sparse_one_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    full, few = word_model(), word_model()
    expected = scores(full)
    monkeypatch.setattr(module, "DENSE_BYTES", 0)
    found = scores(few)
    assert (sparse.issparse(full._matrix), sparse.issparse(few._matrix)) == (False, True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_do_not_depend_on_the_blocks_that_texts_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model = word_model()
    expected, whole = scores(model), model.of_counts(ngrams(OTHERS))
    np.testing.assert_allclose(expected, whole, atol=1e-6)
    for changed, name, value in ((module, "SCORES", 9), (hashing, "BLOCK", 12)):
        with monkeypatch.context() as patch:
            patch.setattr(changed, name, value)
            assert len(list(model.scores(OTHERS))) > 2
            np.testing.assert_allclose(scores(model), expected, atol=1e-6)
    assert scores(model, OTHERS[:0]).shape == (0, 4)


def refused(folder: Path) -> None:
    with pytest.raises(ModelError) as error:
        WordModel.load(folder)
    sentence = str(error.value)
    assert sentence.startswith(f"model {folder}: {WORDS} cannot be read (")
    assert sentence.endswith("; copy the folder again from where the model was trained")
    assert "\n" not in sentence


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(working_folder: Path, share: float) -> None:
    word_model().save(working_folder)
    content = (working_folder / WORDS).read_bytes()
    (working_folder / WORDS).write_bytes(content[: int(share * len(content))])
    refused(working_folder)


def test_so_is_one_that_is_not_there(working_folder: Path) -> None:
    refused(working_folder)


@pytest.mark.parametrize("name", ["buckets", "idf", "starts", "categories", "weights", "bias"])
def test_so_is_one_whose_arrays_are_missing_or_do_not_fit(working_folder: Path, name: str) -> None:
    word_model().save(working_folder)
    found = load_file(working_folder / WORDS)
    save_file({other: array for other, array in found.items() if other != name}, working_folder / WORDS)
    refused(working_folder)
    shorter = np.ascontiguousarray(found[name][: len(found[name]) // 2])
    save_file({**found, name: shorter}, working_folder / WORDS)
    refused(working_folder)


@pytest.mark.parametrize(("name", "value"), [("buckets", BUCKETS), ("buckets", -1), ("categories", 4), ("starts", -1)])
def test_so_are_numbers_that_point_nowhere(working_folder: Path, name: str, value: int) -> None:
    word_model().save(working_folder)
    found = load_file(working_folder / WORDS)
    found[name][len(found[name]) // 2] = value
    save_file(found, working_folder / WORDS)
    refused(working_folder)
