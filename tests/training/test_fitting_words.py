"""Fitting the linear model of words: the same whatever the number of tasks, not twice, and for sets of categories as well."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import MANY_CATEGORIES, NO_NETWORK, WORDS, Words
from cataloger.config import LabelConfig, TrainConfig
from cataloger.data.ngrams import ngrams
from cataloger.infra.storage import locate
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.model.words import WordModel
from cataloger.training import words
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.job import train
from cataloger.training.plan import Plan, plan
from cataloger.training.rows import ingest
from conftest import published

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def planned(labelled: Path, working_folder: Path) -> Plan:
    return plan(TrainConfig(catalog=str(labelled), base_model=NO_NETWORK, storage="checkpoints"))


def test_every_category_is_fitted_once_and_the_same_by_any_number_of_tasks(planned: Plan) -> None:
    blocks, categories = ingest(planned.sources, planned.config), np.arange(20)
    learnt = words._learn(blocks)
    _, whole, bias = words._fit_categories(learnt, categories)
    for part in (categories[::2], categories[1::3]):
        found, weights, own = words._fit_categories(learnt, part)
        assert found.tolist() == part.tolist()
        assert (abs(weights - whole[:, part]) > 0).nnz == 0
        assert own.tolist() == bias[part].tolist()
    assert 0 < whole.nnz < 0.5 * np.prod(whole.shape), "most weights are cut"


def test_a_fit_that_is_there_is_not_made_again(planned: Plan) -> None:
    blocks, folder = ingest(planned.sources, planned.config), locate("fitted")
    first = words.fit(blocks, planned.spec, folder)
    written = Path("fitted", WORDS).stat().st_mtime_ns
    again = words.fit(blocks, planned.spec, folder)
    assert Path("fitted", WORDS).stat().st_mtime_ns == written
    assert again.words == first.words
    heard = first.hear(blocks, planned.spec)
    texts, sets = words.texts_of(blocks, VALIDATION)
    assert len(heard.ranked) == len(texts) == len(heard.judged["given"])
    right = heard.judged["given"] == sets.first()
    assert 0.6 < right.mean() < 1
    # What was fitted has less loss than where the search began.
    model = WordModel.load(Path("fitted"))
    targets = np.eye(len(planned.spec.categories), dtype=bool)[sets.first()]
    scores = model.of_counts(ngrams(texts))
    reader = words.reader_of(planned.spec)
    fitted, guessed = (
        reader.loss(reader.logits(scores, one), targets) for one in (first.words, Words(temperature=words.FIRST_GUESS))
    )
    assert fitted < guessed


def test_of_many_texts_a_part_is_learnt_from(planned: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = ingest(planned.sources, planned.config)
    texts, _ = words.texts_of(blocks, TRAINING)
    monkeypatch.setattr(words, "MOST_CHARACTERS", sum(map(len, texts.to_pylist())) // 4)
    _, matrix, sets = words._learn(blocks)
    assert matrix.shape[0] == len(sets) == pytest.approx(len(texts) / 4, abs=2)


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
