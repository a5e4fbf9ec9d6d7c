"""Tags of words, from the labelled catalog to the published labels of the second night."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig
from cataloger.errors import CatalogError
from cataloger.evaluation.evaluate import evaluate
from cataloger.heads.tag_columns import PUBLISHED
from cataloger.labeling.job import label
from cataloger.model import registry
from cataloger.spec import TAGS
from cataloger.training.job import TrainResult, train
from conftest import refused
from tagged import STRETCHES, products, table

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tags") / "catalog.parquet"
    pq.write_table(table(600), path)
    return path


def settings(catalog: Path, tiny_model: Path, storage: Path, **others: Any) -> TrainConfig:
    about: dict[str, Any] = {
        "catalog": str(catalog),
        "label_column": ("tags",),
        "text_columns": ("title", "description"),
        "base_model": str(tiny_model),
        "epochs": 6,
        "patience": 6,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "max_tokens": 12,
        "test_fraction": 0.2,
        "adversarial": 0.0,
        "storage": str(storage),
        "experiment": "tests",
        "model_name": "tags",
    }
    return TrainConfig(**{**about, **others})


@pytest.fixture(scope="module")
def model(ray_session: None, catalog: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(settings(catalog, tiny_model, tmp_path_factory.mktemp("checkpoints")))


def test_training_learns_the_tags_of_the_column(model: TrainResult) -> None:
    spec = read_spec(registry.fetch_model(model.model_uri).folder)
    assert (spec.head, spec.label_column, spec.categories) == (TAGS, "tags", ("Brand", "Colour"))
    assert spec.words is None
    assert len(spec.category_thresholds) == 2
    assert model.metrics["val_micro_f1"] > 0.9


def test_values_without_places_teach_the_same(
    catalog: Path, tiny_model: Path, working_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A colour is looked for, and stands just once in the title; no brand is in doubt."""
    caplog.set_level("INFO")
    written = pq.read_table(catalog).to_pylist()
    written[0]["attributes"] += [{"name": "Brand", "value": "Nobody"}, {"name": "Kind", "value": "the"}]
    pq.write_table(pa.Table.from_pylist(written, table(1).schema), "values.parquet")
    found = train(
        settings(
            working_folder / "values.parquet",
            tiny_model,
            working_folder / "checkpoints",
            label_column=("attributes",),
            model_name="values",
        )
    )
    assert found.metrics["val_micro_f1"] > 0.9
    assert "tags left out: 1 not in the text" in caplog.text
    assert "1 of 3 names have a single tag: kept, but hardly learnable" in caplog.text


def test_labels_are_tags_in_the_products_own_characters(model: TrainResult, working_folder: Path) -> None:
    new = table(200, seed=1).drop_columns(["tags", "attributes"])
    pq.write_table(new, "shop.parquet")
    result = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,)))
    part = pq.read_table(f"labels/run={result.run}/part-00000.parquet")
    assert part.column_names == ["id", "tags", "needs_review", "text_hash"]
    assert part.schema.field("tags").type == pa.list_(PUBLISHED)
    labels = pq.read_table(f"labels/run={result.run}", partitioning=None).sort_by("id").to_pylist()
    right = total = 0
    for row, truth in zip(labels, products(200, seed=1)["attributes"], strict=True):
        own = new.slice(row["id"], 1).to_pylist()[0]
        for tag in row["tags"]:
            assert own[tag["field"]][tag["start"] : tag["end"]] == tag["value"]
        right += {(t["name"], t["value"]) for t in row["tags"]} == {(t["name"], t["value"]) for t in truth}
        total += 1
    assert right > 0.85 * total
    page = (Path("labels") / f"run={result.run}" / "_report.html").read_text()
    assert "Attributes by size" in page
    assert "Commonest values" in page
    assert re.search(r"<bdi>Colour</bdi>.*?<bdi>green</bdi>", page, re.DOTALL)
    assert "categor" not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)


def test_the_second_night_answers_what_is_new_and_publishes_the_same(model: TrainResult, working_folder: Path) -> None:
    shop = table(300, seed=2)
    pq.write_table(shop.slice(0, 200), "shop.parquet")
    first = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,)))
    # Another spelling with white space is another product: what it reads is the same, but not where it stands.
    respelt = shop.slice(0, 1).set_column(1, "title", pa.array(["  " + shop.column("title")[0].as_py()]))
    pq.write_table(pa.concat_tables([shop, respelt.set_column(0, "id", pa.array([999]))]), "shop.parquet")
    second = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,)))
    assert first.cost.forwarded == 200
    assert (second.cost.carried, second.cost.forwarded) == (200, 101)
    anew = label(LabelConfig(catalog="shop.parquet", output="anew", model=(model.model_uri,)))

    def read(folder: str, run: str) -> list[Any]:
        rows = pq.read_table(f"{folder}/run={run}", partitioning=None).sort_by("id").to_pylist()
        # A batch of other neighbours rounds in another way.
        return [[{**tag, "confidence": round(tag["confidence"], 3)} for tag in row["tags"]] for row in rows]

    assert read("labels", second.run) == read("anew", anew.run)
    rows = read("labels", second.run)
    assert [tag["start"] - 2 for tag in rows[-1] if tag["field"] == "title"] == [
        tag["start"] for tag in rows[0] if tag["field"] == "title"
    ]
    page = (Path("labels") / f"run={second.run}" / "_report.html").read_text()
    assert "have other tags" in page
    metrics = mlflow.get_run(second.mlflow_run).data.metrics
    assert metrics["changed_fraction"] == 0


def test_evaluation_scores_values_and_places(model: TrainResult, catalog: Path, job: Job) -> None:
    said = "said.parquet"
    result = evaluate(
        EvaluateConfig(
            catalog=str(catalog), model=(model.model_uri,), label_column=("tags",), split="test", predictions=said
        )
    )
    assert 90 < result.rows < 150, "a fifth"
    assert result.answer == "tags"
    assert result.places
    assert result.overall.micro_f1 == pytest.approx(result.places.micro_f1), "here each value stands once"
    assert result.overall.micro_f1 > 0.85
    run = mlflow.get_run(result.mlflow_run)
    assert run.data.metrics["value_f1"] == result.value_f1 > 0.85
    assert {"span_f1", "span_macro_f1", "value_macro_f1"} <= run.data.metrics.keys()
    by_name = pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{result.mlflow_run}/values_by_name.csv"))
    assert sorted(by_name["name"]) == ["Brand", "Colour"]
    assert by_name["true"].sum() == 2 * result.rows
    row = pq.read_table(said).to_pylist()[0]
    assert row["true_tags"][0].startswith("Brand > ")
    assert re.fullmatch(r"Brand > description \d+-\d+", row["true_places"][0])
    outcome = job("evaluate", "--catalog", catalog, "--model", model.model_uri, "--label-column", "tags")
    assert outcome[0] == 0, outcome[2]
    assert "values" in outcome[1]


def test_two_models_of_tags_are_compared_row_by_row(
    model: TrainResult, catalog: Path, tiny_model: Path, working_folder: Path, job: Job
) -> None:
    worse = train(settings(catalog, tiny_model, working_folder / "checkpoints", epochs=1, learning_rate=1e-4))
    flags = ("--evaluate", catalog, "--split", "test", "--label-column", "tags", "--report", "page.html")
    code, out, err = job("compare", worse.model_uri, model.model_uri, *flags)
    assert code == 0, err
    assert re.search(r"span F1 .*better", out)
    assert re.search(r"value F1 .*better", out)
    page = Path("page.html").read_text()
    assert "span F1" in page


def test_the_served_model_gives_the_published_tags(model: TrainResult, catalog: Path) -> None:
    rows = pq.read_table(catalog).slice(0, 20)
    pq.write_table(rows, "shop.parquet")
    result = label(LabelConfig(catalog="shop.parquet", output="labels", model=(model.model_uri,)))
    published = pq.read_table(f"labels/run={result.run}", partitioning=None).sort_by("id").column("tags").to_pylist()
    served = mlflow.pyfunc.load_model(model.model_uri)
    answers = served.predict(rows.select(["title", "description"]).to_pandas())
    assert answers.columns.tolist() == ["tags"]
    for mine, theirs in zip(answers["tags"], published, strict=True):
        assert [{**tag, "confidence": pytest.approx(tag["confidence"], abs=0.02)} for tag in mine] == theirs


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--base-model", "none"), "words alone give no tags"),
        (("--long-tail", "focal"), "is for categories"),
        (("--pretrain-epochs", "1"), "is for categories"),
        (("--label-column", "id"), "expected strings such as 'A > B', lists of them, or tags"),
    ],
)
def test_what_a_training_of_tags_refuses(
    catalog: Path, tiny_model: Path, job: Job, flags: tuple[str, ...], sentence: str
) -> None:
    about = ("--catalog", catalog, "--text-columns", "title", "--base-model", tiny_model, "--label-column", "tags")
    refused(job("train", *about, *flags), sentence)


def test_a_column_without_a_tag_is_refused(write: Callable[..., Path], tiny_model: Path, job: Job) -> None:
    empty = pa.array([None, [], [{"field": "title", "start": 0, "end": 1, "name": " "}]], STRETCHES)
    path = write("empty.parquet", id=[1, 2, 3], title=["a", "b", "c"], tags=empty)
    about = ("--text-columns", "title", "--base-model", tiny_model, "--label-column", "tags")
    refused(job("train", "--catalog", path, *about), "column 'tags' has no tag with a name")


def test_an_evaluation_needs_the_kind_of_label_that_the_model_gives(model: TrainResult, labelled: Path) -> None:
    with pytest.raises(CatalogError, match="one path per row, but model .* gives a product tags"):
        evaluate(EvaluateConfig(catalog=str(labelled), model=(model.model_uri,), label_column=("brand",)))
