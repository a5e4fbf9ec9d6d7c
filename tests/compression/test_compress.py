"""The compression job from the command line."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from cataloger.bundle import INT8, network_shape, read_spec, write_spec
from cataloger.compression import job as compression
from cataloger.compression import precision, teachers
from cataloger.config import CompressConfig
from cataloger.infra.storage import locate
from cataloger.model.network import load_network
from cataloger.model.registry import fetch_model
from cataloger.training.lessons import Lessons

pytestmark = pytest.mark.usefixtures("ray_session", "in_process")
Job = Callable[..., tuple[int, str, str]]
# Rows of a catalog that judges.
JUDGING, UNKNOWN = 200, 50


@pytest.fixture(scope="module")
def teacher(ray_session: None, tiny_model: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registered model of words and a tiny network, the champion of its name."""
    from cataloger.config import TrainConfig
    from cataloger.training.job import train

    return train(
        TrainConfig(
            catalog=str(labelled),
            base_model=str(tiny_model),
            epochs=2,
            adversarial=0.0,
            max_tokens=16,
            test_fraction=0.2,
            storage=str(tmp_path_factory.mktemp("teacher")),
            model_name="teacher",
        )
    ).model_uri


@pytest.fixture
def judging(labelled: Path, tmp_path: Path) -> Path:
    """Rows of the catalog, the last ones of a category that no model knows."""
    rows = pq.read_table(labelled)
    rows = rows.slice(len(rows) - JUDGING)
    place = rows.column_names.index("category_path")
    paths = [*rows.column("category_path").to_pylist()[:-UNKNOWN], *["Toys > Unheard Of"] * UNKNOWN]
    pq.write_table(rows.set_column(place, "category_path", [paths]), tmp_path / "judging.parquet")
    return tmp_path / "judging.parquet"


def metrics_of(name: str) -> dict[str, float]:
    newest = max(mlflow.MlflowClient().search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
    return dict(mlflow.get_run(str(newest.run_id)).data.metrics)


def layers_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


def test_a_student_answers_nearly_as_its_teacher(job: Job, teacher: str, labelled: Path, s3: str) -> None:
    catalog, storage = locate(f"{s3}/students/catalog.parquet"), f"{s3}/students/storage"
    catalog.write(next(labelled.glob("*.parquet")).read_bytes())
    flags = ("--catalog", catalog, "--model", teacher, "--layers", 1, "--epochs", 2, "--storage", storage)
    flags += ("--tier-risk", 0.05)
    code, out, err = job("compress", *flags, "--model-name", "small")
    assert code == 0, err
    assert "models:/small/1: 1 layers; the same answer to" in out
    folder, found = fetch_model("models:/small/1").folder, metrics_of("small")
    assert layers_of(folder) == 1
    assert read_spec(folder).categories == read_spec(fetch_model(teacher).folder).categories
    words = read_spec(folder).words
    assert words
    assert "5.00% of accuracy" in words.certificate
    assert found["agreement"] > 0.8
    assert found["after_megabytes"] < found["before_megabytes"]
    assert found["compressed_rows"] == pytest.approx(300, abs=60)  # those that neither has seen


def test_without_flags_it_does_what_pays(job: Job, teacher: str, labelled: Path) -> None:
    code, _, err = job("compress", "--catalog", labelled, "--model", teacher, "--model-name", "cut")
    assert code == 0, err
    before, after = fetch_model(teacher).folder, fetch_model("models:/cut/1").folder
    assert network_shape(after)[1] < network_shape(before)[1] / 2
    assert metrics_of("cut")["agreement"] >= (0.99 if (after / INT8).exists() else 1.0)
    assert {file.name for file in before.iterdir()} <= {file.name for file in after.iterdir()}


def test_eight_bits(job: Job, teacher: str, labelled: Path, tmp_path: Path) -> None:
    """Labelled by, carried over, served, compared, and promoted by speed or not."""
    flags = ("--catalog", labelled, "--model", teacher, "--precision", "int8", "--model-name", "teacher")
    code, out, err = job("compress", *flags)
    assert code == 0, err
    assert ": int8" in out
    labels = {}
    for way in ("auto", "int8", "fp32", "auto"):
        said = (
            "--model",
            "models:/teacher@challenger",
            "--output",
            tmp_path / way,
            "--precision",
            way,
            "--tiers",
            "off",
        )
        code, _, err = job("label", "--catalog", labelled, *said)
        assert code == 0, err
        run = json.loads((tmp_path / way / "_latest.json").read_text())["run"]
        labels[way] = pq.read_table(tmp_path / way / f"run={run}")
    confidence = {way: table.column("confidence").to_numpy() for way, table in labels.items()}
    np.testing.assert_array_equal(confidence["auto"], confidence["int8"])
    assert (confidence["int8"] != confidence["fp32"]).any()
    same = pc.equal(labels["int8"].column("category"), labels["fp32"].column("category"))
    assert pc.mean(same).as_py() > 0.98
    served = mlflow.pyfunc.load_model("models:/teacher@challenger").predict(pq.read_table(labelled).to_pandas())
    code, _, err = job(
        "label", "--catalog", labelled, "--model", "models:/teacher@challenger", "--output", tmp_path / "n"
    )
    assert code == 0, err
    night = pq.read_table(tmp_path / "n" / json.loads((tmp_path / "n" / "_latest.json").read_text())["path"])
    assert served["category"].tolist() == night.column("category").to_pylist()
    compared = ("compare", "champion", "challenger", "--model-name", "teacher", "--promote", "--metric", "speed")
    code, out, err = job(*compared, "--evaluate", labelled, "--split", "test")
    assert code in (0, 1), err
    assert "times the time per text" in out


def test_a_killed_job_does_not_ask_its_teacher_again(
    teacher: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CompressConfig(str(labelled), (teacher,), layers=1, epochs=1, storage=str(tmp_path), model_name="killed")
    with monkeypatch.context() as patch:
        patch.setattr(compression, "fitted", killed)
        with pytest.raises(KeyboardInterrupt):
            compression.compress(config)
    (lessons,) = tmp_path.glob("lessons-*.parquet")
    rows = Lessons.read(locate(str(lessons)))
    assert len(rows.keys) > 1_000
    np.testing.assert_array_less(rows.probabilities.sum(axis=1), 1.001)
    monkeypatch.setattr(teachers, "ask", killed)
    assert compression.compress(config).agreement > 0.5


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_several_teachers_become_one_model_of_the_same_size(
    job: Job, teacher: str, labelled: Path, judging: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Judged by the rows of a catalog of its own."""
    flags = ("--catalog", labelled, "--model", teacher, "models:/teacher/1", "--epochs", 1, "--model-name", "together")
    code, out, err = job("compress", *flags, "--eval-catalog", judging)
    assert code == 0, err
    assert "a student of all" in out
    found = metrics_of("together")
    assert found["compressed_rows"] == JUDGING
    assert found["after_accuracy"] <= 1 - UNKNOWN / JUDGING, "what no model knows is an error"
    assert found["val_accuracy"] == pytest.approx(found["after_accuracy"], abs=0.02), "also where thresholds are fitted"
    assert "rows of --catalog are in --eval-catalog too" in caplog.text
    assert read_spec(fetch_model("models:/together/1").folder).validation_fraction == 0
    assert layers_of(fetch_model("models:/together/1").folder) == layers_of(fetch_model(teacher).folder)


def test_a_mean_of_models_is_judged_and_not_trained(job: Job, teacher: str, labelled: Path) -> None:
    flags = ("--catalog", labelled, "--average-models", teacher, teacher, "--model-name", "mean")
    code, out, err = job("compress", *flags)
    assert code == 0, err
    assert "the mean of 2 models" in out
    before, after = (load_network(fetch_model(uri).folder, torch.float32) for uri in (teacher, "models:/mean/1"))
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(tensor, before.state_dict()[name])
    assert read_spec(fetch_model("models:/mean/1").folder).words is not None


def test_a_mean_of_models_that_were_validated_elsewhere_is_judged_there(
    job: Job, teacher: str, labelled: Path, judging: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = shutil.copytree(fetch_model(teacher).folder, tmp_path / "elsewhere")
    write_spec(elsewhere, replace(read_spec(elsewhere), validation_fraction=0.0))
    flags = ("--catalog", labelled, "--average-models", elsewhere, elsewhere, "--model-name", "elsewhere")
    code, _, err = job("compress", *flags)
    assert (code, "name that catalog with --eval-catalog" in err) == (2, True)
    code, _, err = job("compress", *flags, "--eval-catalog", judging, "--precision", "int8")
    assert code == 0, err
    assert metrics_of("elsewhere")["compressed_rows"] == JUDGING
    (said,) = re.findall(r"the same answer to [\d.]+% of (\d+) rows", caplog.text)
    assert int(said) <= JUDGING, "the judge's rows alone, each text once"


def test_eight_bits_that_change_too_much_are_refused(
    job: Job, teacher: str, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "AGREEMENT", 1.01)
    code, _, err = job("compress", "--catalog", labelled, "--model", teacher, "--precision", "int8")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --precision int8: eight bits change")
    assert line.endswith("leave the flag out")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--layers", 0), "--layers 0: must be at least 1"),
        (("--layers", 2), "--layers 2: the model has 2; name fewer"),
        (
            ("--layers", 1, "--label-column", "kind"),
            "has no column 'kind' in all of its files; a new model is judged by rows whose category is known",
        ),
        (("--text-columns", "heading"), "'heading'"),
        (("--epochs", 3), "--epochs: nothing is trained; add --layers"),
        (("--layers", 1, "--epochs", 0), "--epochs 0: must be at least 1"),
        (("--tier-risk", 0.01), "--tier-risk: nothing is trained; add --layers"),
        (("--layers", 1, "--tier-risk", 2), "--tier-risk 2.0: must be above 0 and below 1"),
        (
            ("--average-models", "models:/teacher/1"),
            "--average-models models:/teacher/1: is of several models; name more",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    job: Job, teacher: str, labelled: Path, tmp_path: Path, flags: tuple[object, ...], sentence: str
) -> None:
    code, _, err = job("compress", "--catalog", labelled, "--model", teacher, "--storage", tmp_path / "none", *flags)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line), line
    assert not list(tmp_path.glob("none/*")), "before any work"


def test_models_that_cannot_be_made_cheaper_so_are_refused(
    job: Job, teacher: str, labelled: Path, tmp_path: Path, seeing: Callable[..., Path]
) -> None:
    folder = fetch_model(teacher).folder
    words = shutil.copytree(folder, tmp_path / "words")
    write_spec(words, replace(read_spec(words), pooling="none", thresholds=()))
    code, _, err = job("compress", "--catalog", labelled, "--model", words)
    assert (code, "words alone have no network to make cheaper" in err) == (2, True)
    other = shutil.copytree(folder, tmp_path / "other")
    spec = read_spec(other)
    write_spec(other, replace(spec, categories=("Z", *spec.categories[1:])))
    code, _, err = job("compress", "--catalog", labelled, "--model", teacher, other)
    assert (code, "answers with other categories than" in err) == (2, True)
    code, _, err = job("compress", "--catalog", labelled, "--model", seeing("title"), "--layers", 1)
    assert (code, "--layers: is for networks that read texts alone" in err) == (2, True)
    code, _, err = job("compress", "--catalog", labelled, "--model", seeing(), "--prune-vocabulary")
    assert (code, "--prune-vocabulary: the model reads no text" in err) == (2, True)
