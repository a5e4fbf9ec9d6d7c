"""The command line as a user meets it: flags, tables, and one clear sentence for every bad input."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from conftest import ROOT, refused

Job = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]
JOBS = [
    "train",
    "label",
    "evaluate",
    "audit",
    "compare",
    "sample",
    "publish",
    "verify",
    "compress",
    "serve",
    "explain",
    "extend",
    "migrate",
]


@pytest.fixture
def catalog(write: Write) -> Path:
    return write(
        "c.parquet",
        id=[1, 2, 3],
        title=["red shoe", "green tea", "blue shoe"],
        category_path=["A > x", "B > y", "A > x"],
    )


@pytest.mark.parametrize("name", JOBS)
def test_help_explains_every_flag_by_intent_and_imports_nothing_heavy(name: str) -> None:
    program = (
        "import runpy, sys, atexit\n"
        f"sys.argv = ['{name}.py', '--help']; sys.path.insert(0, '{ROOT / 'jobs'}')\n"
        "heavy = ('torch', 'ray', 'mlflow', 'transformers', 'pyarrow')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules]))\n"
        f"runpy.run_path('{ROOT / 'jobs' / name}.py', run_name='__main__')\n"
    )
    command, environment = [sys.executable, "-c", program], {**os.environ, "COLUMNS": "1000", "PYTHONUTF8": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout
    assert "HEAVY []" in shown
    from cataloger import config

    fields = getattr(config, f"{name.title()}Config").__dataclass_fields__
    boxes = re.findall(r"╭─ (.+?) ─*╮\n(.*?)╰", shown, re.DOTALL)
    if "runs" in fields:
        assert boxes.pop(0)[0] == "positional arguments"
    assert [title for title, _ in boxes[:2]] == ["options", "common options"]
    assert "--help" in boxes.pop(0)[1]
    flags = [flag for _, box in boxes for flag in re.findall(r"^│ --(\S+)", box, re.MULTILINE)]
    assert sorted(flags) == sorted(field.replace("_", "-") for field in fields if field != "runs")


def test_the_demo_does_not_start_when_asked_for_help(job: Job) -> None:
    code, out, _ = job("demo", "--help")
    assert code == 0
    assert "a generated catalog" in out


def test_grouped_flags_make_a_flat_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from cataloger.config import CompareConfig, TrainConfig

    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    from _entry import parse

    def given(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["job", *flags])

    given()
    assert parse(TrainConfig) == TrainConfig()
    given(
        "--catalog", "c", "--level-weights", "1", "0.5", "--learning-rate", "1e-4", "--long-tail", "focal", "--use-gpu"
    )
    assert parse(TrainConfig) == TrainConfig(
        catalog="c", level_weights=(1.0, 0.5), learning_rate=1e-4, long_tail="focal", use_gpu=True
    )
    given("--level-weights", "auto", "--dropout", "None")
    assert parse(TrainConfig) == TrainConfig(level_weights="auto")
    given("champion", "challenger", "--text-columns", "title", "brand", "--promote")
    compared = CompareConfig(("champion", "challenger"), text_columns=("title", "brand"), promote=True)
    assert parse(CompareConfig, tyro.conf.PositionalRequiredArgs) == compared


def test_a_wrong_flag_is_refused(job: Job) -> None:
    code, _, err = job("train", "--epocs", 3)
    assert code == 2
    assert "--epochs" in err, "the nearest flag is suggested"


@pytest.mark.parametrize("name", ["train", "label", "evaluate"])
def test_bad_catalogs(job: Job, write: Write, name: str, bundle: Path, catalog: Path) -> None:
    model = () if name == "train" else ("--model", bundle, "--text-columns", "title")
    rest = {"train": ("--text-columns", "title"), "label": (*model, "--output", "labels"), "evaluate": model}[name]

    def run(path: object, *flags: object) -> tuple[int, str, str]:
        return job(name, "--catalog", path, *rest, *flags)

    refused(run("missing.parquet"), "catalog missing.parquet: not found", "--catalog")
    refused(run("missing/part-*.parquet"), "not found")
    Path("empty").mkdir()
    refused(run("empty"), "catalog", "is empty")
    Path("notes").mkdir()
    Path("notes/readme.txt").write_text("hello")
    refused(run("notes"), "none ends in .parquet")
    refused(run("notes/readme.txt"), "readme.txt", "not readable as Parquet")
    Path("cut").mkdir()
    Path("cut/part.parquet").write_bytes(catalog.read_bytes()[:-10])
    refused(run("cut"), "cut/part.parquet", "not readable as Parquet")
    write(
        "norows.parquet",
        id=pa.array([], pa.int64()),
        title=pa.array([], pa.string()),
        category_path=pa.array([], pa.string()),
    )
    refused(run("norows.parquet"), "has no rows")
    refused(run(catalog, "--id-column", "sku"), "no column 'sku'", "id, title, category_path", "--id-column")
    write("typed.parquet", id=[1.5], title=[["a"]], category_path=["A"])
    refused(run("typed.parquet"), "'title' is list", "--text-columns")
    write("ids.parquet", id=[1.5], title=["a"], category_path=["A"])
    refused(run("ids.parquet"), "'id' is double", "--id-column")
    write("two/a.parquet", id=[1], title=["a"], category_path=["A"])
    write("two/b.parquet", id=["x"], title=["a"], category_path=["A"])
    refused(run("two"), "two/b.parquet", "'id' is string", "int64")
    write("three/a.parquet", id=[1], title=["a"], category_path=["A"])
    write("three/b.parquet", id=[2], name=["a"], category_path=["A"])
    refused(run("three"), "three/b.parquet", "no column 'title'")
    if name != "label":
        refused(run(catalog, "--label-column", "category"), "no column 'category'", "--label-column")
        write("numbers.parquet", id=[1], title=["a"], category_path=[7])
        refused(run("numbers.parquet"), "'category_path' is int64", "--label-column")
        for path, what in {"A >  > B": "empty level", " > A": "separator", "A >": "separator"}.items():
            write("paths.parquet", id=[1, 2, 3], title=["a", "b", "c"], category_path=["A > x", path, "B"])
            refused(run("paths.parquet"), "malformed category paths in 1 rows", repr(path), what)


@pytest.mark.parametrize("labels", [["A > x"] * 3, [None] * 3, [""] * 3])
def test_training_needs_two_categories(job: Job, write: Write, labels: list[str | None]) -> None:
    write("one.parquet", id=[1, 2, 3], title=["a", "b", "c"], category_path=pa.array(labels, pa.string()))
    outcome = job("train", "--catalog", "one.parquet", "--text-columns", "title")
    refused(outcome, "only one category, 'A > x'" if labels[0] else "no category", "at least two")


def test_bad_settings_for_training(job: Job, catalog: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    base = ("train", "--catalog", catalog, "--text-columns", "title")
    refused(job(*base, "--epochs", 0), "--epochs 0", "at least 1")
    refused(job(*base, "--validation-fraction", 1.5), "--validation-fraction 1.5")
    refused(job(*base, "--base-model", "./nowhere"), "base model ./nowhere: no such folder")
    Path("hollow").mkdir()
    refused(job(*base, "--base-model", "hollow"), "no config.json")
    refused(job(*base, "--num-workers", 400), "--num-workers 400", "the cluster can hold")
    refused(job(*base, "--num-workers", "2:x"), "--num-workers 2:x", "1:4")
    refused(job(*base, "--fine-tune", "7"), "--fine-tune 7", "from 1 to 6")
    refused(job(*base, "--average-decay", 1.5), "--average-decay 1.5")
    refused(job(*base, "--target-precision", 95), "--target-precision 95.0", "from 0 to 1")
    refused(job(*base, "--adversarial", 1, "--fine-tune", 2), "--adversarial", "--fine-tune 2")
    refused(job(*base, "--level-weights", -1), "--level-weights -1.0")
    refused(job(*base, "--level-weights", 1, 2, 3), "has 3 numbers")
    if not os.path.exists("/dev/nvidia0"):
        refused(job(*base, "--use-gpu"), "--use-gpu: the cluster has no GPU")
    Path("file").write_text("in the way")
    refused(job(*base, "--storage", "file/checkpoints"), "file/checkpoints", "cannot be written")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(job(*base, "--base-model", "nobody/no-such-model"), "nobody/no-such-model", "--base-model DIR")


def test_bad_models(job: Job, catalog: Path) -> None:
    def run(model: object) -> tuple[int, str, str]:
        return job("label", "--catalog", catalog, "--output", "labels", "--text-columns", "title", "--model", model)

    refused(run("nowhere"), "model nowhere: no such folder")
    Path("hollow").mkdir()
    refused(run("hollow"), "not a cataloger bundle", "jobs/train.py")
    refused(run("models:/no-such-model@champion"), "models:/no-such-model@champion", "not found in MLflow")
    refused(run("models:/no-such-model/3"), "models:/no-such-model/3", "not found in MLflow")
    refused(run("runs:/0123/model"), "runs:/0123/model", "not found in MLflow")
    Path("hollow/cataloger.json").write_text(json.dumps({"categories": ["A"]}))
    refused(run("hollow"), "hollow", "cataloger.json")


@pytest.mark.parametrize("name", ["train", "label", "evaluate", "compare"])
def test_an_mlflow_server_that_is_not_there(
    job: Job, catalog: Path, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hush@127.0.0.1:9")
    flags = {
        "train": ("--catalog", catalog, "--text-columns", "title"),
        "label": ("--catalog", catalog, "--output", "labels", "--model", "models:/shop@champion"),
        "evaluate": ("--catalog", catalog, "--model", bundle),
        "compare": ("a", "b"),
    }[name]
    refused(job(name, *flags), "MLflow server http://…@127.0.0.1:9: not reachable", "MLFLOW_TRACKING_URI")


def test_an_output_that_cannot_be_written(job: Job, catalog: Path, bundle: Path) -> None:
    Path("file").write_text("in the way")
    flags = ("--catalog", catalog, "--model", bundle, "--text-columns", "title")
    refused(job("label", *flags, "--output", "file/labels"), "file/labels", "cannot be written")
    refused(job("evaluate", *flags, "--predictions", "file/p.parquet"), "file", "cannot be written")
    refused(job("sample", "--rows", 10, "--output", "file/x"), "file/x", "cannot be written")
    refused(job("sample", "--rows", 0), "--rows 0")


def test_evaluate_writes_scores_and_predictions(job: Job, trained, labelled: Path) -> None:  # type: ignore[no-untyped-def]
    import mlflow

    flags = ("--catalog", labelled, "--model", trained.model_uri, "--split", "test", "--predictions", "p.parquet")
    code, out, err = job("evaluate", *flags, "--experiment", "evaluations", "--precision", "fp32")
    assert code == 0, err
    predictions = pq.read_table("p.parquet")
    assert predictions.column_names == ["row", "id", "text", "true_category", "category", "confidence", "needs_review"]
    assert 200 < len(predictions) < 400, "a fifth of 1,500 rows is the test split"
    accuracy = sum(row["true_category"] == row["category"] for row in predictions.to_pylist()) / len(predictions)
    assert f"{accuracy:.4f}" in out
    assert f"{len(predictions)} products" in out
    run = mlflow.search_runs(experiment_names=["evaluations"], output_format="list", order_by=["start_time DESC"])[0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == pytest.approx(accuracy)
    artifacts = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"classification_report.csv", "confused_pairs.png"} <= artifacts
    code, out, _ = job("compare", trained.run_id, run.info.run_id)
    assert code == 0
    assert "against" in out
    assert out.count(f"{accuracy:.4f}") >= 2, "two names of one model"
    assert "no clear difference" in out


def test_a_test_split_needs_a_model_that_left_one_out_and_its_texts(
    job: Job, bundle: Path, labelled: Path, trained
) -> None:  # type: ignore[no-untyped-def]
    refused(job("evaluate", "--catalog", labelled, "--model", bundle, "--split", "test"), "--test-fraction")
    narrow = ("--catalog", labelled, "--text-columns", "title")
    refused(job("evaluate", *narrow, "--model", trained.model_uri, "--split", "test"), "--text-columns title", "brand")
    refused(job("audit", *narrow, "--models", trained.model_uri), "--text-columns title", "brand")


def test_unknown_runs_are_refused_with_those_there_are(job: Job, trained) -> None:  # type: ignore[no-untyped-def]
    refused(job("compare", trained.run_id, "nonsense"), "'nonsense': no such run", "--model-name")
    refused(job("compare", trained.run_id), "at least two runs")
