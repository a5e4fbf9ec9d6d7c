"""Fitting the linear model of words: the same whatever the number of tasks, not twice, judged by rows it has not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from sklearn.svm import LinearSVC

from cataloger.bundle import WORDS
from cataloger.config import LabelConfig, TrainConfig
from cataloger.data.batching import Ragged
from cataloger.data.ngrams import ngrams
from cataloger.heads.arrays import reader_of
from cataloger.infra.storage import locate
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.model.words import WordModel
from cataloger.spec import MANY_CATEGORIES, NO_NETWORK, Words
from cataloger.training import hearing, linear, words
from cataloger.training.census import census
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.job import train
from cataloger.training.plan import Plan, plan
from cataloger.training.rows import ingest
from cataloger.training.texts import Texts
from conftest import published

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def planned(labelled: Path, working_folder: Path) -> Plan:
    return plan(TrainConfig(catalog=str(labelled), base_model=NO_NETWORK, storage="checkpoints"))


def test_every_category_is_fitted_once_and_the_same_by_any_number_of_tasks(planned: Plan) -> None:
    blocks, categories = ingest(planned.sources, planned.config), np.arange(20)
    learnt = words._learn(words._count(blocks, 5, 1.0, validated=False), 3)
    whole, bias = linear.fit_categories(learnt.matrix, learnt.sets, categories, 20)
    for part in (categories[::2], categories[1::3]):
        weights, own = linear.fit_categories(learnt.matrix, learnt.sets, part, 20)
        assert (abs(weights - whole[:, part]) > 0).nnz == 0
        assert own.tolist() == bias[part].tolist()
    assert 0 < whole.nnz < 0.5 * np.prod(whole.shape), "most weights are cut"


def test_rows_far_from_a_category_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fitted on a part of the rows; the answers are those of a fit on all."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 8, 4_000)
    matrix = sparse.random_array((4_000, 300), density=0.05, rng=draw, dtype=np.float32).tolil()
    matrix[np.arange(4_000), labels] = 0.5
    matrix[np.arange(0, 4_000, 7), (labels[::7] + 1) % 8] = 0.5  # some are like two categories
    matrix = sparse.csr_matrix(matrix)
    monkeypatch.setattr(linear, "FIRST_ROWS", 500)
    sets = Ragged(labels.astype(np.int32), np.arange(4_001))
    weights, bias = linear.fit_categories(matrix, sets, np.arange(8), 8)
    whole = [LinearSVC(tol=0.1, random_state=0).fit(matrix, labels == category) for category in range(8)]
    expected = np.stack([one.decision_function(matrix) for one in whole], axis=1)
    found = matrix @ weights.toarray() + bias
    right, right_of_all = ((scores.argmax(axis=1) == labels).mean() for scores in (found, expected))
    assert right > right_of_all - 0.005 > 0.8
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    monkeypatch.setattr(linear, "MOST_WEIGHTS", 8 * 20)
    few, _ = linear.fit_categories(matrix, sets, np.arange(8), 8)
    assert np.diff(few.indptr).tolist() == [20] * 8
    assert ((matrix @ few.toarray() + bias).argmax(axis=1) == labels).mean() > 0.8


def test_a_row_is_judged_by_a_fit_that_has_not_learnt_from_it(planned: Plan) -> None:
    blocks, config = ingest(planned.sources, planned.config), planned.config
    fitted = words.fit(blocks, census(blocks), planned.spec, locate("fitted"), config)
    assert (fitted.folds, fitted.uses) == (words.FOLDS, (TRAINING, VALIDATION))
    rows = Texts.of(blocks, fitted.uses)
    judged = fitted.hear(blocks, planned.spec).judged
    assert len(judged["given"]) == len(rows)
    by_heart = WordModel.load(Path("fitted")).of_counts(ngrams(rows.texts)).argmax(axis=1) == rows.sets.first()
    assert 0.6 < (judged["given"] == judged["true"]).mean() < by_heart.mean()
    # Rows of one key are left out together, each by one fit, whose vocabulary is of the other rows too.
    counted = words._count(blocks, words.FOLDS, 1.0, validated=False)
    for number in range(words.FOLDS):
        learnt = words._learn(counted, number)
        assert len(learnt.sets) == (counted.fold != number).sum()
        judge = hearing._load(hearing.fold_of(fitted.folder, number))
        assert np.array_equal(judge.vocabulary.buckets, learnt.vocabulary.buckets)
        assert not set(rows.keys[counted.fold == number]) & set(rows.keys[counted.fold != number])


def test_an_eval_catalog_is_cut_in_folds_by_itself(labelled: Path, working_folder: Path) -> None:
    table = pq.read_table(labelled)
    quarter = len(table) // 4
    pq.write_table(table.slice(0, quarter), "eval.parquet")
    pq.write_table(table.slice(quarter - 100), "train.parquet")  # a hundred are in both
    settings = TrainConfig(catalog="train.parquet", eval_catalog="eval.parquet", base_model=NO_NETWORK)
    planned = plan(settings)
    blocks = ingest(planned.sources, settings)
    fitted = words.fit(blocks, census(blocks), planned.spec, locate("fitted"), settings)
    assert (fitted.folds, fitted.uses) == (words.FOLDS_OF_VALIDATION, (VALIDATION,))
    rows = Texts.of(blocks, (TRAINING, VALIDATION))
    assert len(fitted.hear(blocks, planned.spec).ranked) == (rows.uses == VALIDATION).sum()
    fold = words._count(blocks, fitted.folds, 1.0, validated=True).fold
    assert (fold[rows.uses == VALIDATION] != words.IN_EACH).all()
    also = np.isin(rows.keys, rows.keys[rows.uses == VALIDATION])
    assert not (also & (rows.uses == TRAINING)).any(), "what judges is learnt from there alone"
    assert np.array_equal(fold == words.IN_EACH, ~also), "no text is judged by a fit that knows it"


def test_beside_a_network_they_learn_from_what_it_learns_from(planned: Plan, tiny_model: Path) -> None:
    config = replace(planned.config, base_model=str(tiny_model))
    blocks = ingest(planned.sources, config)
    fitted = words.fit(blocks, census(blocks), planned.spec, locate("fitted"), config)
    assert (fitted.folds, fitted.uses) == (0, (VALIDATION,))
    rows = Texts.of(blocks, (VALIDATION,))
    judged = fitted.hear(blocks, planned.spec).judged
    given = WordModel.load(Path("fitted")).of_counts(ngrams(rows.texts)).argmax(axis=1)
    assert np.array_equal(judged["given"], given)
    assert np.array_equal(judged["true"], rows.sets.first()), "row by row, as the network is asked about them"
    assert not list(Path("fitted/apart").glob("fold-*"))


def test_a_fit_that_is_there_is_not_made_again(planned: Plan) -> None:
    blocks, folder, config = ingest(planned.sources, planned.config), locate("fitted"), planned.config
    first = words.fit(blocks, census(blocks), planned.spec, folder, config)
    written = Path("fitted", WORDS).stat().st_mtime_ns
    assert words.fit(blocks, census(blocks), planned.spec, folder, config) == first
    assert Path("fitted", WORDS).stat().st_mtime_ns == written
    assert not Path("fitted/apart/parts").exists()
    # What was fitted has less loss than where the search began.
    rows = Texts.of(blocks, (VALIDATION,))
    model = WordModel.load(Path("fitted"))
    targets = np.eye(len(planned.spec.categories), dtype=bool)[rows.sets.first()]
    scores = model.of_counts(ngrams(rows.texts))
    reader = reader_of(planned.spec)
    fitted, guessed = (
        reader.loss(reader.logits(scores, one), targets)
        for one in (first.words, Words(temperature=hearing.FIRST_GUESS))
    )
    assert fitted < guessed


def test_a_killed_fit_goes_on_behind_its_parts(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CATEGORIES", 5)
    blocks, folder, config = ingest(planned.sources, planned.config), locate("fitted"), planned.config
    join = words._join

    def killed(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(words, "_join", killed)
    with pytest.raises(OSError, match="killed"):
        words.fit(blocks, census(blocks), planned.spec, folder, config)
    parts = {path: path.stat().st_mtime_ns for path in Path("fitted/apart/parts").iterdir()}
    assert parts
    assert not Path("fitted", words.DONE).exists()
    monkeypatch.setattr(words, "_join", join)
    deleted = words.Location.delete
    with monkeypatch.context() as kept:
        kept.setattr(words.Location, "delete", lambda place: None)
        words.fit(blocks, census(blocks), planned.spec, folder, config)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts, "these were not fitted again"
    assert words.Location.delete is deleted
    words.fit(blocks, census(blocks), planned.spec, folder, config)
    assert not Path("fitted/apart/parts").exists()
    assert WordModel.load(Path("fitted")).bias.shape == (len(planned.spec.categories),)


@pytest.mark.parametrize("limit", ["MOST_CHARACTERS", "MOST_FOLDED"])
def test_large_catalogs_are_judged_by_their_validation_rows(
    planned: Plan, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    blocks = ingest(planned.sources, planned.config)
    rows = Texts.of(blocks, (TRAINING,))
    size = sum(map(len, rows.texts.to_pylist()))
    monkeypatch.setattr(words, limit, size // 4 if limit == "MOST_CHARACTERS" else 1)
    fitted = words.fit(blocks, census(blocks), planned.spec, locate("fitted"), planned.config)
    assert (fitted.folds, fitted.uses) == (0, (VALIDATION,))
    assert len(fitted.hear(blocks, planned.spec).ranked) == len(Texts.of(blocks, (VALIDATION,)))
    if limit == "MOST_CHARACTERS":
        learnt = words._learn(words._count(blocks, 0, 0.25, validated=False), words.IN_EACH)
        assert learnt.matrix.shape[0] == len(learnt.sets) == pytest.approx(len(rows) / 4, abs=1)


def test_words_alone_answer_with_any_number_of_categories(labelled: Path, working_folder: Path) -> None:
    table = pq.read_table(labelled)
    paths = [[path, path.split(" > ")[0]] for path in table.column("category_path").to_pylist()]
    pq.write_table(table.append_column("category_paths", pa.array(paths)), "sets.parquet")
    trained = train(
        TrainConfig(catalog="sets.parquet", label_column=("category_paths",), base_model=NO_NETWORK, model_name="sets")
    )
    assert trained.metrics["val_micro_f1"] > 0.7
    label(LabelConfig(catalog="sets.parquet", output="labels", model=(trained.model_uri,)))
    model = Tiers(fetch_model(trained.model_uri).folder)
    assert model.spec.head == MANY_CATEGORIES
    expected = model.label(table, alternatives=3)
    for name in ("categories", "confidence", "confidences", "tier"):
        assert published().column(name).equals(expected.column(name)), name
