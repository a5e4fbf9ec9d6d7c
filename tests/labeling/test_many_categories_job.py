"""Products of any number of categories, from the labelled catalog to the published labels of the second night."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig
from cataloger.data.text import split_hash, split_position
from cataloger.errors import CatalogError
from cataloger.evaluation.evaluate import evaluate
from cataloger.labeling.job import label
from cataloger.model import registry
from cataloger.spec import FORMAT, MANY_CATEGORIES
from cataloger.training.job import TrainResult, train

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def catalog(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each product in its category, those of every second department in its sale as well; three variants make a group."""
    table = pq.read_table(labelled)
    paths = table.column("category_path").to_pylist()
    tops = sorted({path.split(" > ")[0] for path in paths})[::2]
    sets = [[path] + [f"Sale > {top}" for top in tops if path.startswith(top)] for path in paths]
    groups = [f"group {row // 3}" for row in range(len(table))]
    path = tmp_path_factory.mktemp("multi") / "catalog.parquet"
    table = table.append_column("category_paths", pa.array(sets)).append_column("group", pa.array(groups))
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def model(ray_session: None, catalog: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(
        TrainConfig(
            catalog=str(catalog),
            label_column=("category_paths",),
            group_column="group",
            base_model=str(tiny_model),
            epochs=8,
            patience=8,
            batch_size=16,
            learning_rate=5e-3,
            max_tokens=24,
            test_fraction=0.2,
            storage=str(tmp_path_factory.mktemp("checkpoints")),
            experiment="tests",
            model_name="multi",
        )
    )


def test_a_model_of_many_categories_is_trained_and_scored_on_groups_it_never_saw(
    model: TrainResult, catalog: Path
) -> None:
    spec = read_spec(registry.fetch_model(model.model_uri).folder)
    assert spec.head == MANY_CATEGORIES
    assert len(spec.category_thresholds) == len(spec.categories)
    assert model.metrics["val_micro_f1"] > 0.5, "it learns"
    found = evaluate(
        EvaluateConfig(
            catalog=str(catalog),
            model=(model.model_uri,),
            label_column=("category_paths",),
            split="test",
            predictions="predictions.parquet",
        )
    )
    answers = pq.read_table("predictions.parquet")
    table = pq.read_table(catalog)
    of_group = dict(zip(table.column("id").to_pylist(), table.column("group").to_pylist(), strict=True))
    scored = {of_group[name] for name in answers.column("id").to_pylist()}
    groups = sorted(set(of_group.values()))
    positions = split_position(split_hash(pa.array(groups, pa.large_string()), FORMAT))
    assert scored == {name for name, at in zip(groups, positions, strict=True) if at < 0.2}
    assert found.answer == "categories"
    true, given = (answers.column(name).to_pylist() for name in ("true_categories", "categories"))
    exact = np.mean([set(a) == set(b) for a, b in zip(true, given, strict=True)])
    assert found.overall.accuracy == pytest.approx(exact)
    assert 0.5 < found.overall.micro_f1 < 1
    run = mlflow.MlflowClient().get_run(found.mlflow_run)
    assert run.data.metrics["example_f1"] == pytest.approx(found.overall.example_f1)


def test_labels_have_lists_of_categories_and_are_carried_over(model: TrainResult, catalog: Path) -> None:
    first = label(LabelConfig(catalog=str(catalog), output="labels", model=(model.model_uri,)))
    labels = pd.read_parquet(f"labels/run={first.run}")
    assert first.labelled == len(labels) == 1_500
    spec = read_spec(registry.fetch_model(model.model_uri).folder)
    threshold = dict(zip(spec.categories, spec.category_thresholds, strict=True))
    for categories, confidences in zip(labels["categories"], labels["confidences"], strict=True):
        assert list(confidences) == sorted(confidences, reverse=True)
        assert all(score >= threshold[name] - 1e-6 for name, score in zip(categories, confidences, strict=True))
    assert {1, 2} <= set(labels["categories"].map(len))
    assert (labels["needs_review"] == (labels["confidence"] < np.float32(spec.thresholds[0]))).all()

    more = pq.read_table(catalog)
    pq.write_table(pa.concat_tables([more, more.slice(0, 5)]), "catalog-2.parquet")
    second = label(LabelConfig(catalog="catalog-2.parquet", output="labels", model=(model.model_uri,)))
    assert second.cost.forwarded == 0, "every text was labelled the night before"
    again = pd.read_parquet(f"labels/run={second.run}")
    pd.testing.assert_frame_equal(again.iloc[:1_500], labels, check_like=True)
    assert json.loads(Path("labels/_latest.json").read_text())["run"] == second.run
    page = html.unescape(Path(f"labels/run={second.run}/_report.html").read_text())
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "A product counts once in each of its categories." in text
    every = again["categories"].explode().dropna()
    sales = every.str.startswith("Sale > ").sum()
    assert f"Sale {sales:,} {sales / len(every):.1%}" in text
    doubtful = again[again["needs_review"]].nsmallest(1, "confidence").iloc[0]
    shown = text[text.index("Look at these first") :]
    names = [f"{name} {score:.1%}" for name, score in zip(*doubtful[["categories", "confidences"]], strict=True)]
    assert " ".join([doubtful["id"], *(names or ["no category"])]) in shown


def test_mlflow_answers_as_the_labels(model: TrainResult, catalog: Path) -> None:
    found = label(LabelConfig(catalog=str(catalog), output="labels", model=(model.model_uri,)))
    labels = pd.read_parquet(f"labels/run={found.run}")
    frame = pd.read_parquet(catalog)[["title", "brand", "description"]].iloc[:50]
    frame.loc[len(frame)] = [None, None, None]
    answers = mlflow.pyfunc.load_model(model.model_uri).predict(frame)
    assert answers["categories"].iloc[-1] is None
    same = [
        set(a) == set(b) for a, b in zip(answers["categories"].iloc[:50], labels["categories"].iloc[:50], strict=True)
    ]
    # In bf16, other batches may carry a category over its threshold.
    assert sum(same) >= 48
    kept = np.array(same)
    given, published = (frame["confidence"].iloc[:50].astype(float)[kept] for frame in (answers, labels))
    np.testing.assert_allclose(given, published, atol=0.03)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--long-tail", "sampling"), "--long-tail sampling"),
        (("--level-weights", "1"), "--level-weights"),
        (("--pseudo-labels", "0.9"), "--pseudo-labels"),
        (("--group-column", "nothing"), "'nothing'"),
    ],
)
def test_what_is_for_one_category_is_refused(job: Job, catalog: Path, flags: tuple[str, ...], sentence: str) -> None:
    code, out, err = job("train", "--catalog", catalog, "--label-column", "category_paths", *flags)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_unlabelled_rows_have_a_group_too(job: Job, catalog: Path) -> None:
    """Text of a held-out group would be learnt from otherwise."""
    pq.write_table(pq.read_table(catalog).drop_columns("group"), "more.parquet")
    flags = ("--label-column", "category_paths", "--group-column", "group", "--unlabelled-catalog", "more.parquet")
    code, _, err = job("train", "--catalog", catalog, *flags, "--pretrain-epochs", 1)
    assert code == 2
    assert "more.parquet: no column 'group'" in err


def test_lists_and_single_categories_do_not_mix(model: TrainResult, catalog: Path, bundle: Path, job: Job) -> None:
    code, _, err = job(
        "train", "--catalog", catalog, "--label-column", "category_paths", "--eval-catalog", "other.parquet"
    )
    assert code == 2
    table = pq.read_table(catalog).drop_columns("category_paths")
    pq.write_table(table.append_column("category_paths", table.column("category_path")), "other.parquet")
    code, _, err = job(
        "train", "--catalog", catalog, "--label-column", "category_paths", "--eval-catalog", "other.parquet"
    )
    assert code == 2
    assert "both need" in err
    with pytest.raises(CatalogError, match="lists of paths"):
        evaluate(EvaluateConfig(catalog=str(catalog), model=(str(bundle),), label_column=("category_paths",)))
    with pytest.raises(CatalogError, match="any number"):
        evaluate(EvaluateConfig(catalog=str(catalog), model=(model.model_uri,)))
    code, _, err = job("audit", "--catalog", catalog, "--models", model.model_uri, "--output", "suspects.parquet")
    assert code == 2
    assert "any number of categories" in err
