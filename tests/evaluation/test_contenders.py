"""What a person calls a run or a model, found in MLflow."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from cataloger.bundle import digest
from cataloger.config import EvaluateConfig
from cataloger.errors import TrackingError
from cataloger.evaluation import contenders
from cataloger.infra import tracking


@pytest.fixture(autouse=True)
def store(tracking_store: str) -> None:
    tracking.connect()


def run(kind: str, **tags: str) -> str:
    with tracking.run(kind, "by hand", EvaluateConfig(catalog="none", experiment="contenders"), None, tags) as run_id:
        pass
    return run_id


def test_a_whole_run_id_finds_an_old_run_and_the_rest_is_said_to_be_looked_for_among_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contenders, "RECENT", 1)
    old, new = run("train"), run("train")
    for asked in (old, f"runs:/{old}/model", new, new[:12]):
        found = contenders.find(asked, "nobody").run
        assert found
        assert found.info.run_id.startswith(asked.removeprefix("runs:/").removesuffix("/model"))
    for unknown in (old[:12], "0" * 32):
        with pytest.raises(TrackingError, match=f"'{unknown}': no such run.* among the newest 1 runs alone"):
            contenders.find(unknown, "nobody")
    MlflowClient().delete_run(old)
    with pytest.raises(TrackingError, match="no such run"):
        contenders.find(old, "nobody")


@pytest.mark.parametrize("name", ["it's here", 'so "called"', "a -- b", "back\\slash\\"])
def test_evaluations_of_a_model_in_a_folder_of_any_name_are_found(working_folder: Path, name: str) -> None:
    folder = working_folder / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "cataloger.json"):
        (folder / file).write_text(name)
    evaluation = run("evaluate", model=str(folder), model_digest=digest(folder))
    found = contenders.find(str(folder), "nobody").evaluations
    assert [one.info.run_id for one in found] == [evaluation]


def test_what_mlflow_cannot_be_asked_for_is_a_sentence() -> None:
    with pytest.raises(TrackingError, match="both kinds of quotes"):
        tracking.quoted("""it's "here\"""")
