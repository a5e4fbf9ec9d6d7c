from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from cataloger import tracking
from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.errors import TrainingError
from cataloger.training import train

pytestmark = pytest.mark.usefixtures("ray_session")


def small(tiny_model: Path, labelled: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "catalog": str(labelled),
        "base_model": str(tiny_model),
        "epochs": 1,
        "batch_size": 32,
        "max_tokens": 24,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "experiment": "tests",
        "model_name": "small",
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def losses(run_id: str) -> np.ndarray:
    history = MlflowClient().get_metric_history(run_id, "train_loss")
    return np.array([metric.value for metric in sorted(history, key=lambda metric: metric.step)])


def test_two_workers_have_the_loss_curve_of_one(tiny_model: Path, labelled: Path) -> None:
    one, two = (train(small(tiny_model, labelled, num_workers=n, epochs=2)) for n in (1, 2))
    curve = losses(one.run_id)
    assert len(curve) > 40
    assert curve[-5:].mean() < 0.8 * curve[:5].mean(), "it learns"
    np.testing.assert_allclose(losses(two.run_id), curve, rtol=2e-3)
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, abs=0.02), name


def test_a_trained_model_is_registered_and_described(trained, labelled: Path) -> None:  # type: ignore[no-untyped-def]
    tracking.connect()
    name, version = trained.model_uri.removeprefix("models:/").split("/")
    client = MlflowClient()
    assert {a: str(v) for a, v in client.get_registered_model(name).aliases.items()} == {
        "champion": version,
        "challenger": version,
    }
    run = mlflow.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "3"
    assert {"train_loss", "learning_rate", "val_weighted_f1"} <= set(run.data.metrics)
    spec = read_spec(tracking.fetch_model(f"models:/{name}@champion").folder)
    paths = set(pq.read_table(labelled, columns=["category_path"]).column(0).to_pylist())
    assert set(spec.categories) == paths
    assert spec.test_fraction == 0.2
    assert 0.25 <= spec.temperature <= 4.0


def test_the_logged_model_answers_like_the_bundle(trained, labelled: Path) -> None:  # type: ignore[no-untyped-def]
    tracking.connect()
    frame = pq.read_table(labelled).slice(0, 20).to_pandas()
    frame.loc[3, ["title", "brand", "description"]] = None
    answers = mlflow.pyfunc.load_model(trained.model_uri).predict(frame[["title", "brand", "description"]])
    assert answers.loc[3].isna().all()
    assert answers["category"].notna().sum() == 19


def test_a_second_version_challenges_and_does_not_replace_the_champion(tiny_model: Path, labelled: Path) -> None:
    first = train(small(tiny_model, labelled, model_name="twice"))
    second = train(small(tiny_model, labelled, model_name="twice", seed=1))
    aliases = MlflowClient().get_registered_model("twice").aliases
    assert str(aliases["champion"]) == first.model_uri.rsplit("/")[-1]
    assert str(aliases["challenger"]) == second.model_uri.rsplit("/")[-1]


def test_a_failed_run_is_closed_as_failed(tiny_model: Path, labelled: Path) -> None:
    with pytest.raises(TrainingError, match="loss at step .* --learning-rate"):
        train(small(tiny_model, labelled, learning_rate=1e30, experiment="failing"))
    (run,) = mlflow.search_runs(experiment_names=["failing"], output_format="list")
    assert run.info.status == "FAILED"
