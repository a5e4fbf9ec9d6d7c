"""Words first, from the training to the second night: what they answer alone, what goes on, and what is said of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec, write_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig
from cataloger.errors import PublishError
from cataloger.evaluation.evaluate import evaluate
from cataloger.explaining.occlusion import Explainer
from cataloger.labeling.job import label
from cataloger.labeling.result import LabelResult
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.training.job import TrainResult, train
from conftest import published, refused

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]
COLUMNS = ("category", "confidence", "alternatives", "trusted_category", "needs_review", "tier")


@pytest.fixture(scope="module")
def model(ray_session: None, labelled: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words and a tiny network, with tiers: so few validation rows certify no more than that they mostly agree."""
    trained = train(
        TrainConfig(
            catalog=str(labelled),
            base_model=str(tiny_model),
            epochs=3,
            batch_size=16,
            learning_rate=5e-3,
            max_tokens=24,
            tier_agreement=0.5,
            storage=str(tmp_path_factory.mktemp("checkpoints")),
            experiment="tests",
            model_name="tiered",
        )
    )
    for name in ("network_accuracy", "words_accuracy", "words_weight", "alone_fraction"):
        assert trained.metrics[f"val_{name}"] > 0
    return fetch_model(trained.model_uri).folder


@pytest.fixture(scope="module")
def words(ray_session: None, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(
        TrainConfig(
            catalog=str(labelled),
            base_model="none",
            test_fraction=0.2,
            storage=str(tmp_path_factory.mktemp("checkpoints")),
            experiment="tests",
            model_name="words",
        )
    )


@pytest.fixture
def catalog(labelled: Path, working_folder: Path) -> pa.Table:
    table = pq.read_table(labelled).drop_columns(["category_path"])
    pq.write_table(table, "c.parquet")
    return table


def night(model: Path, output: str = "labels", **changes: object) -> LabelResult:
    settings = {"catalog": "c.parquet", "output": output, "model": (str(model),), "precision": "fp32"}
    return label(LabelConfig(**{**settings, **changes}))  # type: ignore[arg-type]


def test_some_rows_are_answered_by_words_alone_as_in_one_process(model: Path, catalog: pa.Table) -> None:
    done = night(model)
    assert done.cost.alone > 0
    assert done.cost.forwarded > done.cost.checked
    expected, found = Tiers(model).label(catalog, alternatives=3), published()
    by_words = np.array(found.column("tier").to_pylist()) == "words"
    assert {"words", "both"} == set(found.column("tier").to_pylist())
    assert found.select(COLUMNS).filter(pa.array(by_words)).equals(expected.select(COLUMNS).filter(pa.array(by_words)))
    assert found.column("category").equals(expected.column("category"))
    # Nothing but who is asked: without the network's part, these rows have the same answers.
    alone = replace(read_spec(model), pooling="none")
    shutil.copytree(model, "alone")
    write_spec(Path("alone"), alone)
    rest = Tiers(Path("alone")).label(catalog, alternatives=3)
    assert (
        found.column("category").filter(pa.array(by_words)).equals(rest.column("category").filter(pa.array(by_words)))
    )


def test_with_tiers_off_every_row_is_asked_of_both(model: Path, catalog: pa.Table) -> None:
    done = night(model, tiers="off")
    assert (done.cost.alone, done.cost.checked) == (0, 0)
    assert set(published().column("tier").to_pylist()) == {"both"}
    # What is trusted goes by the thresholds of this way of answering.
    shutil.copytree(model, "off")
    write_spec(Path("off"), read_spec(model).without_tiers())
    expected = Tiers(Path("off")).label(catalog, alternatives=3)
    for name in ("category", "confidence", "trusted_category", "needs_review"):
        assert published().column(name).equals(expected.column(name)), name
    assert night(model).run != done.run


def test_carried_labels_remember_who_gave_them(model: Path, catalog: pa.Table) -> None:
    night(model)
    first = published()
    titles = catalog.column("title").to_pylist()
    changed = catalog.set_column(1, "title", pa.array([f"{titles[0]} new", *titles[1:]]))
    assert changed.column_names == catalog.column_names
    pq.write_table(changed, "c.parquet")
    second = night(model, max_changed_fraction=1.0)
    assert second.cost.asked == 1
    assert second.cost.carried == second.rows - 1
    for name in ("tier", "category", "confidence", "alternatives"):
        assert published().column(name).slice(1).equals(first.column(name).slice(1)), name


def test_a_night_whose_words_and_network_disagree_is_held_back(
    model: Path, catalog: pa.Table, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    """As when the catalog has other products than the model was trained on; here nothing of the words is joined."""
    shutil.copytree(model, "surer")
    spec = read_spec(model)
    assert spec.words
    write_spec(Path("surer"), replace(spec, words=replace(spec.words, weight=0.0, alone_from=0.0, agreement=0.999)))
    monkeypatch.setattr("cataloger.labeling.job.ASKED_AGAIN", 3)  # a thousandth of so few products is one
    with pytest.raises(PublishError, match=r"words answered alone.*train the model again, or label with --tiers off"):
        night(Path("surer"))
    assert not Path("labels/_latest.json").exists()
    night(Path("surer"), publish_anyway=True)
    assert Path("labels/_latest.json").exists()


def test_an_evaluation_scores_what_would_be_published(model: Path, labelled: Path) -> None:
    with_tiers, without = (
        evaluate(EvaluateConfig(catalog=str(labelled), model=(str(model),), tiers=tiers, experiment="tests"))
        for tiers in ("auto", "off")
    )
    assert with_tiers.rows == without.rows
    assert with_tiers.overall.accuracy == pytest.approx(without.overall.accuracy, abs=0.1)
    assert with_tiers.overall.accuracy != without.overall.accuracy


def test_words_alone_make_a_model_that_is_used_like_any_other(
    words: TrainResult, catalog: pa.Table, labelled: Path, job: Job
) -> None:
    assert words.metrics["val_accuracy"] > 0.5
    code, out, err = job("label", "--catalog", "c.parquet", "--output", "labels", "--model", words.model_uri)
    assert code == 0, err
    assert "of these by words alone" in out
    found = published()
    assert len(found) == len(catalog)
    assert set(found.column("tier").to_pylist()) == {"words"}
    folder = fetch_model(words.model_uri).folder
    assert sorted(file.name for file in folder.iterdir()) == ["cataloger.json", "seen.parquet", "words.safetensors"]
    expected = Tiers(folder).label(catalog, alternatives=3)
    for name in COLUMNS:
        assert found.column(name).equals(expected.column(name)), name
    held_out = evaluate(
        EvaluateConfig(catalog=str(labelled), model=(words.model_uri,), split="test", experiment="tests")
    )
    assert 0.5 < held_out.overall.accuracy < 1
    manifest = json.loads(next(Path("labels").glob("run=*/_manifest.json")).read_text())
    assert manifest["labelled"] == len(catalog)


def test_words_refuse_what_is_for_networks(labelled: Path, job: Job) -> None:
    refused(
        job("train", "--catalog", labelled, "--base-model", "none", "--adversarial", "1"),
        "--adversarial: is for a network; leave it out with --base-model none",
    )


def test_labels_that_need_review_say_which_words_they_rest_on(model: Path, labelled: Path, job: Job) -> None:
    table = pq.read_table(labelled, columns=["id", "title", "brand", "description"])
    pq.write_table(table.slice(0, 300), "c.parquet")
    # Words answer half of the rows, and some of both kinds need review.
    folder, spec = shutil.copytree(model, Path("model")), read_spec(model)
    assert spec.words
    middle = float(np.median(Tiers(model).label(table.slice(0, 300)).column("confidence").to_numpy()))
    spec = replace(spec, words=replace(spec.words, alone_from=middle))
    write_spec(folder, spec)
    sure = float(np.quantile(Tiers(folder).label(table.slice(0, 300)).column("confidence").to_numpy(), 0.7))
    write_spec(folder, replace(spec, thresholds=(sure,) * len(spec.thresholds)))
    flags = ("--output", "labels", "--model", "model", "--max-reject-fraction", 1, "--explain", 2)
    code, _, err = job("label", "--catalog", "c.parquet", *flags)
    assert code == 0, err
    labels = published()
    because, review = labels.column("because"), labels.column("needs_review")
    assert 0 < review.to_pylist().count(True) < len(labels)
    assert because.is_valid().to_pylist() == review.to_pylist()
    assert {"words", "both"} == set(labels.filter(review).column("tier").to_pylist())
    tiers = Tiers(folder)
    rows = pa.table({name: table.column(name) for name in ("title", "brand", "description")})
    by_id = {name: row for row, name in enumerate(table.column("id").to_pylist())}
    for one in labels.filter(review).slice(0, 40).to_pylist():
        row = rows.slice(by_id[one["id"]], 1)
        ((found,),) = Explainer.of(tiers).explain(row, tiers.published(row, 1).labels)
        expected = [word.weight for word in found.strongest(2)]
        assert [said["weight"] for said in one["because"]] == pytest.approx(expected, abs=2e-2)
        assert all(said["word"] in " ".join(filter(None, row.to_pylist()[0].values())) for said in one["because"])
    # The second night carries them over, and a night without them asks again.
    pq.write_table(table.slice(0, 320), "c.parquet")
    code, out, err = job("label", "--catalog", "c.parquet", *flags)
    assert code == 0, err
    again = published().slice(0, 0) if len(published()) == len(labels) else published()
    old = {row["id"]: row["because"] for row in labels.to_pylist()}
    assert {row["id"]: row["because"] for row in again.to_pylist() if row["id"] in old} == old
    assert carried(out) >= len(labels) > 0
    code, out, err = job("label", "--catalog", "c.parquet", *flags[:-2])
    assert code == 0, err
    assert "because" not in published().column_names
    assert carried(out) == 0


def carried(out: str) -> int:
    (line,) = [line for line in out.splitlines() if "carried over" in line]
    return int(line.split("│")[2].replace(",", ""))
