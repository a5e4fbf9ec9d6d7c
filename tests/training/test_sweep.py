import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import ray

from cataloger.config import TrainConfig
from cataloger.training import sweep
from cataloger.training.sweep import read_settings
from conftest import refused

Job = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_the_poor_setting_is_stopped_and_the_good_one_registered(
    job: Job, ray_session: None, tiny_model: Path, labelled: Path
) -> None:
    Path("sweep.yaml").write_text("text-columns: [[title], [price]]\nepochs: [4]\n")
    flags = ("--catalog", labelled, "--base-model", tiny_model, "--max-tokens", 32, "--batch-size", 16)
    flags = (*flags, "--learning-rate", 5e-3)
    code, out, err = job(
        "train", *flags, "--sweep", "sweep.yaml", "--experiment", "sweeps", "--model-name", "swept", "--storage", "cp"
    )
    assert code == 0, err
    assert "models:/swept/1" in out
    assert "stopped early" in out
    (parent,) = mlflow.search_runs(
        experiment_names=["sweeps"], filter_string="tags.job = 'sweep'", output_format="list"
    )
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    trials = mlflow.search_runs(experiment_names=["sweeps"], filter_string=query, output_format="list")
    assert {run.data.params["text_columns"]: run.info.status for run in trials} == {
        "('title',)": "FINISHED",
        "('price',)": "KILLED",
    }
    (good,) = [run for run in trials if run.info.status == "FINISHED"]
    version = mlflow.MlflowClient().get_model_version("swept", "1")
    assert version.run_id == good.info.run_id
    assert parent.info.status == "FINISHED"
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "a trial gives its CPUs back"
        time.sleep(0.5)
    assert parent.data.metrics["best_val_weighted_f1"] > 0.2


def test_a_file_of_settings_is_read_as_all_combinations_and_checked(
    working_folder: Path, job: Job, labelled: Path
) -> None:
    Path("s.yaml").write_text("epochs: [1, 2]\nfine-tune: [all, head]\n")
    assert read_settings("s.yaml") == [
        {"epochs": epochs, "fine_tune": part} for epochs in (1, 2) for part in ("all", "head")
    ]
    for text, sentence in {
        "epochs: 3": "a list of values",
        "epocs: [3]": "epocs: no such setting",
        "epochs: [": "cannot be read",
        "epochs: [many]": "epochs: 'many'",
        "epochs: [0]": "--epochs 0",
        "storage: [a, b]": "storage: no such setting",
    }.items():
        Path("s.yaml").write_text(text)
        refused(job("train", "--catalog", labelled, "--sweep", "s.yaml"), sentence)
    refused(job("train", "--catalog", labelled, "--sweep", "none.yaml"), "none.yaml", "cannot be read")
    Path("s.yaml").write_text("tiers: [off]\nuse-gpu: [off]\ncategory-attributes: [off]\n")
    (found,) = (sweep._with(TrainConfig(), settings) for settings in read_settings("s.yaml"))
    assert (found.tiers, found.use_gpu, found.category_attributes) == ("off", False, "off"), "YAML takes off for no"
