"""One model with three answers: a category, any number of seasons, and tags of words; from the catalog to the second night."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec, write_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig
from cataloger.errors import ConfigError
from cataloger.evaluation import audit
from cataloger.evaluation.evaluate import evaluate
from cataloger.labeling.job import label
from cataloger.model import registry
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Answer, Spec, prefix_of
from cataloger.taxonomy import Taxonomy
from cataloger.training.job import TrainResult, train
from conftest import losses, published, refused, upload
from tagged import shop

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]
COLUMNS = ("category_path", "seasons", "tags")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "catalog.parquet"
    pq.write_table(shop(700), path)
    return path


def settings(catalog: Path, tiny_model: Path, storage: Path, **others: Any) -> TrainConfig:
    about: dict[str, Any] = {
        "catalog": str(catalog),
        "label_column": COLUMNS,
        "text_columns": ("title", "description"),
        "base_model": str(tiny_model),
        "epochs": 8,
        "patience": 8,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "max_tokens": 16,
        "test_fraction": 0.2,
        "adversarial": 0.0,
        "storage": str(storage),
        "experiment": "tests",
        "model_name": "several",
    }
    return TrainConfig(**{**about, **others})


@pytest.fixture(scope="module")
def model(ray_session: None, catalog: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(settings(catalog, tiny_model, tmp_path_factory.mktemp("checkpoints")))


def folder(model: TrainResult) -> Path:
    return registry.fetch_model(model.model_uri).folder


def test_a_model_learns_all_of_them(model: TrainResult) -> None:
    spec = read_spec(folder(model))
    assert [answer.head for answer in spec.answers] == [ONE_CATEGORY, MANY_CATEGORIES, TAGS]
    assert [other.column for other in spec.others] == ["seasons", "tags"]
    assert model.metrics["val_accuracy"] > 0.85
    assert model.metrics["seasons/val_micro_f1"] > 0.85
    assert model.metrics["tags/val_micro_f1"] > 0.85


def test_a_category_has_the_attributes_that_its_products_had(model: TrainResult) -> None:
    spec = read_spec(folder(model))
    allowed = dict(zip(spec.categories, spec.others[1].allowed, strict=True))
    assert [spec.others[1].categories[name] for name in allowed["Home > lamp"] or ()] == ["Brand"]
    assert [spec.others[1].categories[name] for name in allowed["Home > cup"] or ()] == ["Brand", "Colour"]


def test_labels_have_a_column_for_each_answer(model: TrainResult, working_folder: Path) -> None:
    pq.write_table(shop(150, seed=1).select(["id", "title", "description"]), "shop.parquet")
    result = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,), alternatives=1))
    part = pq.read_table(f"labels/run={result.run}/part-00000.parquet")
    assert part.column_names == [
        *("id", "category", "confidence", "level_confidences", "alternatives", "trusted_category", "needs_review"),
        *("seasons", "tags", "text_hash"),
    ]
    assert part.schema.field("seasons").type.names == [
        *("categories", "confidences", "confidence", "alternatives", "needs_review")
    ]
    labels = pq.read_table(f"labels/run={result.run}", partitioning=None).sort_by("id").to_pylist()
    truth = shop(150, seed=1).to_pylist()
    pairs = [(mine, theirs) for mine, theirs in zip(labels, truth, strict=True)]
    right = [mine["category"] == theirs["category_path"] for mine, theirs in pairs if theirs["category_path"]]
    assert np.mean(right) > 0.85
    right = [sorted(mine["seasons"]["categories"]) == theirs["seasons"] for mine, theirs in pairs if theirs["seasons"]]
    assert np.mean(right) > 0.8
    for mine, theirs in pairs:
        assert "lamp" not in mine["category"] or all(tag["name"] != "Colour" for tag in mine["tags"])
        for tag in mine["tags"]:
            assert theirs[tag["field"]][tag["start"] : tag["end"]] == tag["value"]
    page = (Path("labels") / f"run={result.run}" / "_report.html").read_text()
    for heading in ("Categories by size", "The answer seasons", "The answer tags", "Commonest values"):
        assert heading in page


def test_the_second_night_carries_all_answers_over(model: TrainResult, s3: str, working_folder: Path) -> None:
    products = shop(300, seed=2).select(["id", "title", "description"])
    pq.write_table(products.slice(0, 200), "a/shop.parquet") if Path("a").mkdir() is None else None
    upload(Path("a"), f"{s3}/several/catalog")
    about = {"catalog": f"{s3}/several/catalog", "output": f"{s3}/several/labels", "model": (model.model_uri,)}
    assert label(LabelConfig(**about)).cost.forwarded == 200
    pq.write_table(products, "a/shop.parquet")
    upload(Path("a"), f"{s3}/several/catalog")
    second = label(LabelConfig(**about))
    assert (second.cost.carried, second.cost.forwarded) == (200, 100)
    anew = label(LabelConfig(**{**about, "output": "anew"}))
    from cataloger.infra.storage import locate

    there = locate(f"{s3}/several/labels/run={second.run}")
    one = pq.read_table(there.path, filesystem=there.filesystem, partitioning=None).sort_by("id").to_pylist()
    other = pq.read_table(f"anew/run={anew.run}", partitioning=None).sort_by("id").to_pylist()

    def rounded(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: rounded(value) for key, value in found.items()}
        if isinstance(found, list):
            return [rounded(value) for value in found]
        return round(found, 3) if isinstance(found, float) else found

    assert rounded(one) == rounded(other)
    metrics = mlflow.get_run(second.mlflow_run).data.metrics
    assert metrics["seasons/changed_fraction"] == metrics["tags/changed_fraction"] == 0


def test_the_first_of_several_categories_says_what_it_rests_on(
    catalog: Path, tiny_model: Path, working_folder: Path
) -> None:
    two = {"label_column": ("category_path", "seasons"), "model_name": "two", "epochs": 2}
    source = folder(train(settings(catalog, tiny_model, working_folder / "checkpoints", **two)))
    model = shutil.copytree(source, working_folder / "model")
    write_spec(model, replace(read_spec(model), thresholds=(1.01,) * Taxonomy(read_spec(model).categories).depth))
    about = {"catalog": "shop.parquet", "output": "labels", "model": (str(model),), "explain": 2}
    pq.write_table(shop(65, 5).slice(0, 60), "shop.parquet")
    label(LabelConfig(**about))
    before = {row["id"]: row for row in published().to_pylist()}
    assert any(row["because"] for row in before.values())
    assert all(row["needs_review"] for row in before.values())
    pq.write_table(shop(65, 5), "shop.parquet")
    assert label(LabelConfig(**about)).cost.carried == 60
    after = {row["id"]: row for row in published().to_pylist()}
    assert {name: after[name] for name in before} == before


def test_evaluation_scores_each_answer_by_its_own_column(model: TrainResult, catalog: Path, job: Job) -> None:
    result = evaluate(
        EvaluateConfig(catalog=str(catalog), model=(model.model_uri,), label_column=COLUMNS, split="test")
    )
    assert [one.answer for one in (result, *result.others)] == ["category", "seasons", "tags"]
    assert all(one.overall.micro_f1 > 0.75 for one in (result, *result.others))
    metrics = mlflow.get_run(result.mlflow_run).data.metrics
    assert metrics["accuracy"] == result.overall.accuracy
    assert metrics["seasons/micro_f1"] == result.others[0].overall.micro_f1
    assert metrics["tags/value_f1"] == result.others[1].value_f1
    flags = ("--catalog", catalog, "--model", model.model_uri)
    code, out, err = job("evaluate", *flags)
    assert code == 0, err
    assert "seasons of models:/several/" in out, "the columns that answers were learnt from are found by themselves"
    assert "tags of models:/several/" in out
    refused(job("evaluate", *flags, "--label-column", *COLUMNS, "seasons"), "has 4 names, but the model has 3 answers")


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.string())])
def test_an_answer_that_no_row_has_is_left_out(
    model: TrainResult, catalog: Path, working_folder: Path, caplog: pytest.LogCaptureFixture, kind: pa.DataType
) -> None:
    rows = pq.read_table(catalog)
    place = rows.schema.get_field_index("seasons")
    pq.write_table(rows.set_column(place, "seasons", pa.nulls(len(rows), kind)), "untold.parquet")
    found = [evaluate(EvaluateConfig(catalog="untold.parquet", model=(model.model_uri,), split="test"))]
    assert [one.answer for one in (found[0], *found[0].others)] == ["category", "tags"]
    assert "'seasons'" in caplog.text
    assert "that answer is not scored" in caplog.text


def test_each_column_has_metrics_and_predictions_of_its_own() -> None:
    names = [prefix_of(column) for column in ("gender", "brand#1", "brand@1", "品牌", "颜色")]
    assert names[0] == "gender/"
    assert len({*names}) == 5
    assert all(re.fullmatch(r"[\w .-]+/", name, re.ASCII) for name in names)


def test_audit_of_a_further_answer_needs_no_first_one_of_its_kind() -> None:
    """Tags first, a category behind them."""
    others = (Answer("kind", ONE_CATEGORY, ("cup", "lamp")),)
    spec = Spec(("Brand",), ("title",), 16, "mean", "", head=TAGS, label_column="tags", others=others)
    answer = pa.array([{"category": "cup", "confidence": 0.5, "alternatives": []}])
    own = {"id": ["1"], "text": ["a cup"], "true_category": ["cup"], "seen": [False], "tags": [[]], "kind": answer}
    found = audit._answer(pa.table(own), spec, "kind")
    assert found.column("category").to_pylist() == ["cup"]
    assert found.column("confidence").to_pylist() == [0.5]


def test_models_are_compared_answer_by_answer(
    model: TrainResult, catalog: Path, tiny_model: Path, working_folder: Path, job: Job
) -> None:
    worse = train(settings(catalog, tiny_model, working_folder / "checkpoints", epochs=1, answer_weights=(1, 0.5, 2)))
    code, out, err = job(
        "compare", worse.model_uri, model.model_uri, "--evaluate", catalog, "--split", "test", "--report", "page.html"
    )
    assert code == 0, err
    assert "seasons: " in out
    assert "tags: " in out
    assert re.search(r"value F1 .*better", out)
    assert "<h3>seasons</h3>" in Path("page.html").read_text()


def test_the_served_model_gives_the_published_answers(model: TrainResult, catalog: Path) -> None:
    rows = pq.read_table(catalog).slice(0, 20)
    pq.write_table(rows.select(["id", "title", "description"]), "shop.parquet")
    result = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,)))
    labels = pq.read_table(f"labels/run={result.run}", partitioning=None).sort_by("id").to_pylist()
    served = mlflow.pyfunc.load_model(model.model_uri)
    answers = served.predict(rows.select(["title", "description"]).to_pandas())
    assert answers.columns.tolist() == ["category", "confidence", "seasons", "tags"]
    for mine, theirs in zip(answers.to_dict("records"), labels, strict=True):
        assert mine["category"] == theirs["category"]
        assert mine["seasons"]["categories"] == theirs["seasons"]["categories"]
        assert [tag["value"] for tag in mine["tags"]] == [tag["value"] for tag in theirs["tags"]]


@pytest.mark.parametrize(
    "about",
    [{}, {"answer_weights": (1.0, 1.0, 2.0)}, {"label_column": ("tags",)}],
    ids=["learnt", "given", "one answer"],
)
def test_two_workers_learn_what_one_does(
    catalog: Path, tiny_model: Path, working_folder: Path, about: dict[str, Any]
) -> None:
    """With a weight of each answer that is learnt, and without one, which then must not be waited for."""
    found = [
        train(settings(catalog, tiny_model, working_folder / workers, epochs=1, num_workers=workers, **about))
        for workers in ("1", "2")
    ]
    one, two = (losses(each.run_id) for each in found)
    np.testing.assert_allclose(one, two, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--label-column", "tags", "tags"), "--label-column tags: is named twice"),
        (("--label-column", *COLUMNS, "--answer-weights", "1", "2"), "has 2 numbers for 3 label columns"),
        (("--label-column", *COLUMNS, "--answer-weights", "1", "2", "0"), "--answer-weights 0.0: must be above 0"),
        (("--label-column", "category_path", "seasons", "--base-model", "none"), "words alone have one answer"),
        (("--label-column", *COLUMNS, "--category-attributes", "gone.parquet"), "cannot be read as Parquet"),
        (("--label-column", "category_path", "nothing"), "no column 'nothing'"),
    ],
)
def test_what_is_refused(catalog: Path, tiny_model: Path, job: Job, flags: tuple[str, ...], sentence: str) -> None:
    refused(job("train", "--catalog", catalog, "--text-columns", "title", "--base-model", tiny_model, *flags), sentence)


def test_a_further_answer_needs_a_column_name_that_labels_do_not_have(
    catalog: Path, tiny_model: Path, working_folder: Path
) -> None:
    rows = pq.read_table(catalog)
    pq.write_table(rows.append_column("category", rows.column("seasons")), "taken.parquet")
    config = settings(working_folder / "taken.parquet", tiny_model, working_folder / "checkpoints")
    with pytest.raises(ConfigError, match="--label-column category: labels have a column of this name already"):
        train(dataclasses.replace(config, label_column=("category_path", "category")))


def test_a_file_says_what_a_category_may_have(
    catalog: Path, tiny_model: Path, working_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"category_path": ["Home > lamp", "Home > cup", "Home > sofa"], "name": ["Colour", "Brand", "Brand"]}
    pq.write_table(pa.table(told), "told.parquet")
    config = settings(catalog, tiny_model, working_folder / "checkpoints", epochs=1)
    found = train(dataclasses.replace(config, category_attributes="told.parquet"))
    spec = read_spec(folder(found))
    allowed = dict(zip(spec.categories, spec.others[1].allowed, strict=True))
    assert (allowed["Home > lamp"], allowed["Home > cup"], allowed["Wear > shoe"]) == ((1,), (0,), None)
    assert "1 pairs are of a category or name that the training does not know" in caplog.text
    off = train(dataclasses.replace(config, category_attributes="off"))
    assert read_spec(folder(off)).others[1].allowed == ()


def test_audit_looks_at_the_answer_of_its_label_column(
    catalog: Path, tiny_model: Path, tmp_path: Path, working_folder: Path, job: Job
) -> None:
    rows = pq.read_table(catalog)
    kinds = [path.rpartition(" > ")[2] if path else None for path in rows.column("category_path").to_pylist()]
    pq.write_table(rows.append_column("kind", pa.array(kinds)), "kinds.parquet")
    about = {"label_column": ("category_path", "kind"), "model_name": "kinds", "epochs": 5}
    trained = train(settings(working_folder / "kinds.parquet", tiny_model, tmp_path / "storage", **about))
    every = sorted(set(filter(None, kinds)))
    wrong = {row for row in range(0, len(kinds), 10) if kinds[row]}
    spoilt = [every[(every.index(kind) + 1) % len(every)] if row in wrong else kind for row, kind in enumerate(kinds)]
    pq.write_table(rows.append_column("kind", pa.array(spoilt)), "spoilt.parquet")
    flags = ("--models", trained.model_uri, "--output", "found.parquet", "--label-column", "kind")
    code, _, err = job("audit", "--catalog", "spoilt.parquet", *flags)
    assert code == 0, err
    found = pq.read_table("found.parquet").slice(0, 5).to_pylist()
    ids = {rows.column("id")[row].as_py(): kinds[row] for row in wrong}
    assert len(found) == 5
    assert sum(row["id"] in ids and row["suggested_category"] == ids[row["id"]] for row in found) >= 4
    code, _, err = job("audit", "--catalog", "spoilt.parquet", *flags[:-1], "category_path")
    assert code == 0, err


def test_audit_is_for_one_category(model: TrainResult, catalog: Path, job: Job) -> None:
    flags = ("--catalog", catalog, "--models", model.model_uri, "--output", "found.parquet", "--label-column")
    refused(job("audit", *flags, "seasons"), "audit is for one category")
