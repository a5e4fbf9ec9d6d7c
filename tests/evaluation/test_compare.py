"""`jobs/compare.py` from the evaluation to the alias."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from cataloger.bundle import read_spec
from cataloger.config import EvaluateConfig, SampleConfig
from cataloger.data.sample import generate
from cataloger.evaluation.predictions import Predictions
from cataloger.infra import tracking
from cataloger.model import registry
from conftest import refused

Job = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def rivals(ray_session: None, bundle: Path, trained, tmp_path_factory: pytest.TempPathFactory) -> str:  # type: ignore[no-untyped-def]
    """Version 1, the champion, is untrained; version 2 is trained on the same categories. The name of the model."""
    tracking.connect()
    name = f"rivals-{trained.model_uri.split('/')[1]}"
    for folder in (bundle, registry.fetch_model(trained.model_uri).folder):
        config = EvaluateConfig(catalog="none", experiment="rivals")
        with tracking.run("train", "by hand", config, None, {}) as run_id:
            registry.register(folder, name, run_id)
    return name


@pytest.fixture
def champion(rivals: str):  # type: ignore[no-untyped-def]
    """Reads the alias; version 1 has it when a test begins."""
    client = MlflowClient()
    client.set_registered_model_alias(rivals, "champion", "1")
    client.set_registered_model_alias(rivals, "challenger", "2")
    return lambda: str(client.get_model_version_by_alias(rivals, "champion").version)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """400 labelled rows of another seed."""
    folder = tmp_path_factory.mktemp("unseen") / "labelled"
    generate(SampleConfig(rows=400, output=str(folder), labelled=True, seed=1))
    found = pq.read_table(folder)
    return found.append_column("lang", pa.array(["de" if row % 3 else "en" for row in range(len(found))]))


def newest_comparison() -> mlflow.entities.Run:
    query = "tags.job = 'compare'"
    return mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list", max_results=1)[0]


def test_the_better_model_is_promoted_and_rolled_back(
    job: Job, rivals: str, unseen: pa.Table, champion, bundle: Path
) -> None:  # type: ignore[no-untyped-def]
    pq.write_table(unseen, "shop.parquet")
    flags = ("--model-name", rivals, "--split", "all", "--slice-columns", "brand")
    night = ("label", "--catalog", "shop.parquet", "--output", "nights", "--model", f"models:/{rivals}@champion")
    assert job(*night)[0] == 0
    (published,) = Path("nights").glob("run=*")
    yesterday = {file: file.read_bytes() for file in published.rglob("*") if file.is_file()}
    code, out, err = job(
        "compare",
        "champion",
        "challenger",
        *flags,
        "--evaluate",
        "shop.parquet",
        "--catalog",
        "shop.parquet",
        "--promote",
        "--protect",
        "lang",
        "--max-slowdown",  # how busy the machine is says nothing of the models
        1_000,
    )
    assert code == 0, out + err
    assert champion() == "2"
    assert job(*night)[0] == 0
    latest = json.loads(Path("nights/_latest.json").read_text())
    manifest = json.loads(Path("nights", latest["manifest"]).read_text())
    assert manifest["model"] == f"models:/{rivals}/2", "the next night uses the new champion"
    assert yesterday == {file: file.read_bytes() for file in yesterday}, "the last one is as it was"
    # By hand, from the predictions that evaluation writes.
    first, second = (predictions(job, f"models:/{rivals}/{version}") for version in (1, 2))
    true = np.array(first["true_category"])
    before, after = (np.array(one["category"]) == true for one in (first, second))
    run, page = newest_comparison(), Path("comparison.html").read_text()
    assert run.data.metrics["accuracy_difference"] == pytest.approx(after.mean() - before.mean())
    low, high = run.data.metrics["accuracy_low"], run.data.metrics["accuracy_high"]
    by_formula = 1.96 * np.std(after.astype(float) - before) / np.sqrt(len(true))
    assert (high - low) / 2 == pytest.approx(by_formula, rel=0.15)
    changed = np.mean(np.array(first["category"]) != np.array(second["category"]))
    assert run.data.metrics["catalog_changed"] == pytest.approx(changed)
    for shown in (
        f"right on {after.mean():.1%} of {len(true)} products",
        f"{changed:.1%} of {len(true)} sampled products would change category",
        f"{int((after & ~before).sum())} products only challenger",
        "promoted: challenger",
        "Latin",
        "brand",
    ):
        assert shown in page
    assert f"{after.mean():.4f}" in out
    assert "guard calibration error" in out
    assert "guard lang: none of" in out
    version = MlflowClient().get_model_version(rivals, "2")
    assert json.loads(MlflowClient().get_registered_model(rivals).tags["champions"]) == ["1", "2"]
    assert version.tags["promotion"].startswith("promoted: challenger")
    artifacts = {item.path for item in MlflowClient().list_artifacts(run.info.run_id)}
    assert {"comparison.html", "decision.txt"} <= artifacts
    code, out, _ = job("compare", "--rollback", "--model-name", rivals)
    assert (code, champion()) == (0, "1")
    assert "version 1 again, no longer 2" in out
    refused(job("compare", "champion", "challenger", "--model-name", rivals, "--promote"), "was rolled back on")
    code, out, _ = job("compare", "champion", f"models:/{rivals}/1", "--model-name", rivals, "--promote")
    assert (code, champion()) == (1, "1")
    assert "is the champion already" in out
    refused(job("compare", "--rollback", "--model-name", rivals), "first champion")


def test_who_saw_the_rows_is_not_promoted_by_them_however_they_were_copied(
    job: Job, rivals: str, labelled: Path, champion, trained, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    table = pq.read_table(labelled)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(pa.array(order)).slice(0, 1_000), "exported-again.parquet")
    MlflowClient().set_registered_model_alias(rivals, "champion", "2")
    names = (f"models:/{rivals}@champion", f"models:/{rivals}/1")
    for catalog in (labelled, Path("exported-again.parquet")):
        said = job("compare", *names, "--evaluate", catalog, "--promote")
        refused(said, "was trained on ", f"% of the rows of {catalog}", "--split test")
        assert champion() == "2"
    # All but the fifth that --test-fraction kept from training; none of that.
    code, out, err = job("compare", *names)
    assert code == 0, err
    assert "was trained on " in out
    caplog.clear()
    assert job("evaluate", "--catalog", labelled, "--model", trained.model_uri)[0] == 0
    assert "% of these rows: its scores are too good" in caplog.text
    flags = ("--model", trained.model_uri, "--predictions", "p.parquet", "--split", "test")
    assert job("evaluate", "--catalog", "exported-again.parquet", *flags)[0] == 0
    assert Predictions.from_parquet(Path("p.parquet").read_bytes()).about.seen == 0.0


def predictions(job: Job, model: str) -> dict[str, list[object]]:
    code, _, err = job("evaluate", "--catalog", "shop.parquet", "--model", model, "--predictions", "p.parquet")
    assert code == 0, err
    return pq.read_table("p.parquet").to_pydict()


def test_the_worse_model_is_not(job: Job, rivals: str, unseen: pa.Table, champion) -> None:  # type: ignore[no-untyped-def]
    MlflowClient().set_registered_model_alias(rivals, "champion", "2")
    # What the models call title has another name here: all that reads the catalog has to follow the flag.
    pq.write_table(unseen.slice(0, 300).rename_columns({"title": "name"}), "shop.parquet")
    columns = ("--text-columns", "name", "brand", "description")
    names = (f"models:/{rivals}@champion", f"models:/{rivals}/1")
    code, out, err = job("compare", *names, "--evaluate", "shop.parquet", *columns, "--promote")
    assert code == 1, err
    assert champion() == "2"
    assert "not promoted" in out
    assert "failed guard accuracy" in MlflowClient().get_model_version(rivals, "1").tags["promotion"]
    # The same evaluations serve a second comparison; a third catalog would be other rows.
    code, out, _ = job("compare", *names)
    assert code == 0
    assert "against" in out
    pq.write_table(unseen.slice(0, 200), "other.parquet")
    job("evaluate", "--catalog", "other.parquet", "--model", names[1])
    evaluation = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.job = 'evaluate'", output_format="list", max_results=1
    )[0]
    refused(
        job("compare", names[0], evaluation.info.run_id), "evaluated on different rows", "other.parquet", "--evaluate"
    )
    code, out, _ = job("compare", names[1], names[1], "--promote")
    assert code == 2, "the champion comes first"


def test_groups_of_products_that_get_worse_answers(job: Job, rivals: str, unseen: pa.Table) -> None:
    pq.write_table(unseen, "shop.parquet")
    flags = ("--catalog", "shop.parquet", "--model", f"models:/{rivals}/1", "--group-columns", "lang", "brand")
    code, out, err = job("evaluate", *flags)
    assert code == 0, err
    assert "products by lang, the worst first" in out
    page = Path("groups.html").read_text()
    langs = {name: unseen.column("lang").to_pylist().count(name) for name in set(unseen.column("lang").to_pylist())}
    for name, rows in langs.items():
        assert (f"<bdi>{name}</bdi></td>" in page) == (rows >= 50), (name, rows)
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.job = 'evaluate'", output_format="list", max_results=1
    )
    assert {"groups.html", "groups.csv"} <= {one.path for one in MlflowClient().list_artifacts(run.info.run_id)}
    assert run.data.metrics["groups/lang/clearly_worse"] >= 0
    refused(job("evaluate", *flags[:-1], "seller"), "no column 'seller'", "name the right one with --group-columns")
    refused(
        job("compare", f"models:/{rivals}/1", f"models:/{rivals}/2", "--model-name", rivals, "--protect", "seller"),
        "--protect seller: the models were evaluated without it",
    )


def test_models_with_other_categories_are_compared_on_the_common_ones(
    job: Job, rivals: str, labelled: Path, tiny_model: Path, ray_session: None
) -> None:
    from conftest import make_bundle

    table = pq.read_table(labelled).slice(0, 300)
    pq.write_table(table, "shop.parquet")
    paths = sorted(set(filter(None, table.column("category_path").to_pylist())))
    missing = paths[0]
    kept = table.filter(pa.compute.not_equal(table.column("category_path"), missing))
    pq.write_table(kept, "kept.parquet")
    folder = Path("other")
    folder.mkdir()
    make_bundle(folder, tiny_model, Path("kept.parquet"), "mean")
    assert missing not in read_spec(folder).categories
    columns = ["name" if column == "title" else column for column in table.column_names]
    pq.write_table(table.rename_columns(columns), "shop.parquet")
    rival = (f"models:/{rivals}/2", "other", "--evaluate", "shop.parquet", "--catalog", "shop.parquet")
    refused(job("compare", *rival), "no column 'title'", "--text-columns")
    code, out, err = job("compare", *rival, "--text-columns", "name", "brand", "description")
    assert code == 0, err
    assert "are known to" in " ".join(out.split())
    assert "rows of these are left out" in " ".join(out.split())


def test_names_that_nothing_has(job: Job, rivals: str) -> None:
    refused(job("compare", "chalenger", "champion", "--model-name", rivals), "'chalenger'", "challenger")
    refused(job("compare", f"models:/{rivals}@chmpion", "x"), "no such model version", f"models:/{rivals}@champion")
    refused(job("compare", "champion", "--model-name", rivals), "at least two")
    refused(job("compare", "--rollback", "--model-name", "nobody"), "nobody", "not registered")
