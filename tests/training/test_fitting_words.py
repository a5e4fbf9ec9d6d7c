"""Fitting the linear model of words: the same whatever the number of tasks, not twice, judged by rows it has not seen."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from sklearn.svm import LinearSVC

from cataloger.bundle import MANY_CATEGORIES, NO_NETWORK, WORDS, Words
from cataloger.config import LabelConfig, TrainConfig
from cataloger.data.batching import Ragged
from cataloger.data.ngrams import ngrams
from cataloger.heads.arrays import reader_of
from cataloger.infra.storage import locate
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.model.words import WordModel
from cataloger.training import hearing, linear, words
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
    learnt = words._learn(blocks, 5, 1.0, of_all=True)
    rows = np.flatnonzero(learnt.fold != 3)
    whole, bias = linear.fit_categories(learnt.matrix, learnt.sets, rows, categories, 20)
    for part in (categories[::2], categories[1::3]):
        weights, own = linear.fit_categories(learnt.matrix, learnt.sets, rows, part, 20)
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
    matrix = matrix.tocsr()
    monkeypatch.setattr(linear, "FIRST_ROWS", 500)
    sets = Ragged(labels.astype(np.int32), np.arange(4_001))
    weights, bias = linear.fit_categories(matrix, sets, np.arange(4_000), np.arange(8), 8)
    whole = [LinearSVC(tol=0.1, random_state=0).fit(matrix, labels == category) for category in range(8)]
    expected = np.stack([one.decision_function(matrix) for one in whole], axis=1)
    found = matrix @ weights.toarray() + bias
    right, right_of_all = ((scores.argmax(axis=1) == labels).mean() for scores in (found, expected))
    assert right > right_of_all - 0.005 > 0.8
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    monkeypatch.setattr(linear, "MOST_WEIGHTS", 8 * 20)
    few, _ = linear.fit_categories(matrix, sets, np.arange(4_000), np.arange(8), 8)
    assert np.diff(few.indptr).tolist() == [20] * 8
    assert ((matrix @ few.toarray() + bias).argmax(axis=1) == labels).mean() > 0.8


def test_what_is_said_of_a_row_comes_from_a_model_that_has_not_learnt_from_it(planned: Plan) -> None:
    """One text of nonsense with a category of its own: the published model knows it by heart, the one that judges it does not."""
    blocks, config = ingest(planned.sources, planned.config), planned.config
    fitted = words.fit(blocks, planned.spec, locate("fitted"), config)
    assert (fitted.folds, fitted.of_all) == (words.FOLDS, True)
    rows = Texts.of(blocks, (TRAINING, VALIDATION))
    of_all = fitted.hear_more(blocks, planned.spec, len(rows)).judged
    assert len(of_all["given"]) == len(rows)
    model, names = WordModel.load(Path("fitted")), rows.sets.first()
    by_heart = (model.of_counts(ngrams(rows.texts)).argmax(axis=1) == names).mean()
    judged = (of_all["given"] == names).mean()
    assert 0.6 < judged < by_heart
    heard = fitted.hear(blocks, planned.spec)
    mine = rows.uses == VALIDATION
    assert np.array_equal(heard.judged["given"], of_all["given"][mine])
    assert np.array_equal(heard.judged["certainty"], of_all["certainty"][mine], equal_nan=True)
    # Rows of one key are left out together, and each row by one fit.
    fold = rows.fold(words.FOLDS)
    assert set(fold.tolist()) == set(range(words.FOLDS))
    assert all(len(set(fold[rows.keys == key].tolist())) == 1 for key in rows.keys[:50])


def test_an_eval_catalog_is_cut_in_folds_by_itself(labelled: Path, working_folder: Path) -> None:
    table = pq.read_table(labelled)
    pq.write_table(table.slice(0, len(table) // 4), "eval.parquet")
    pq.write_table(table.slice(len(table) // 4), "train.parquet")
    settings = TrainConfig(catalog="train.parquet", eval_catalog="eval.parquet", base_model=NO_NETWORK)
    planned = plan(settings)
    blocks = ingest(planned.sources, settings)
    fitted = words.fit(blocks, planned.spec, locate("fitted"), settings)
    assert (fitted.folds, fitted.of_all) == (words.FOLDS_OF_VALIDATION, False)
    learnt = words._learn(blocks, fitted.folds, 1.0, of_all=False)
    rows = Texts.of(blocks, (TRAINING, VALIDATION))
    assert (learnt.fold[rows.uses == TRAINING] == words.IN_EACH).all()
    assert (learnt.fold[rows.uses == VALIDATION] != words.IN_EACH).all()
    more = fitted.hear_more(blocks, planned.spec, len(rows))
    assert len(more.ranked) == (rows.uses == VALIDATION).sum()


def test_a_fit_that_is_there_is_not_made_again(planned: Plan) -> None:
    blocks, folder, config = ingest(planned.sources, planned.config), locate("fitted"), planned.config
    first = words.fit(blocks, planned.spec, folder, config)
    written = Path("fitted", WORDS).stat().st_mtime_ns
    assert words.fit(blocks, planned.spec, folder, config) == first
    assert Path("fitted", WORDS).stat().st_mtime_ns == written
    assert not Path("fitted/parts").exists()
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
        words.fit(blocks, planned.spec, folder, config)
    parts = {path: path.stat().st_mtime_ns for path in Path("fitted/parts").iterdir()}
    assert parts
    assert not Path("fitted", words.DONE).exists()
    monkeypatch.setattr(words, "_join", join)
    removed = Path.unlink
    monkeypatch.setattr(words.Location, "delete", lambda place: None)
    words.fit(blocks, planned.spec, folder, config)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts, "these were not fitted again"
    assert removed is Path.unlink
    assert WordModel.load(Path("fitted")).bias.shape == (len(planned.spec.categories),)


def test_of_many_texts_a_part_is_learnt_from_and_validation_rows_are_not(
    planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = ingest(planned.sources, planned.config)
    rows = Texts.of(blocks, (TRAINING,))
    both = Texts.of(blocks, (TRAINING, VALIDATION))
    monkeypatch.setattr(words, "MOST_CHARACTERS", sum(map(len, both.texts.to_pylist())) // 4)
    fitted = words.fit(blocks, planned.spec, locate("fitted"), planned.config)
    assert fitted.folds == 0
    learnt = words._learn(blocks, 0, 0.25, of_all=True)
    assert learnt.matrix.shape[0] == len(learnt.sets) == pytest.approx(len(rows) / 4, abs=1)
    assert len(fitted.hear_more(blocks, planned.spec, len(both)).ranked) == len(both) - len(rows)


def test_many_categories_are_fitted_once(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_FOLDED", 1)
    blocks = ingest(planned.sources, planned.config)
    assert words.fit(blocks, planned.spec, locate("fitted"), planned.config).folds == 0
    assert not list(Path("fitted").glob("fold-*"))


def test_words_alone_answer_with_any_number_of_categories(labelled: Path, working_folder: Path) -> None:
    table = pq.read_table(labelled)
    paths = [[path, path.split(" > ")[0]] for path in table.column("category_path").to_pylist()]
    pq.write_table(table.append_column("category_paths", pa.array(paths)), "sets.parquet")
    trained = train(
        TrainConfig(catalog="sets.parquet", label_column="category_paths", base_model=NO_NETWORK, model_name="sets")
    )
    assert trained.metrics["val_micro_f1"] > 0.7
    label(LabelConfig(catalog="sets.parquet", output="labels", model=trained.model_uri))
    model = Tiers(fetch_model(trained.model_uri).folder)
    assert model.spec.head == MANY_CATEGORIES
    expected = model.label(table, alternatives=3)
    for name in ("categories", "confidence", "confidences", "tier"):
        assert published().column(name).equals(expected.column(name)), name
