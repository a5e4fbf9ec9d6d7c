import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.errors import ConfigError, ConflictError, TrainingError
from cataloger.infra import progress, tracking
from cataloger.infra.storage import locate
from cataloger.model import registry
from cataloger.model.predictor import Predictor
from cataloger.training import claims
from cataloger.training.job import TrainResult, train
from cataloger.training.loop import Loop
from conftest import losses

pytestmark = pytest.mark.usefixtures("ray_session")


def small(tiny_model: Path, labelled: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "catalog": str(labelled),
        "base_model": str(tiny_model),
        "epochs": 1,
        "batch_size": 32,
        "adversarial": 0.0,
        "level_weights": (),
        "max_tokens": 24,
        "learning_rate": 5e-3,
        "precision": "fp32",
        "experiment": "tests",
        "model_name": "small",
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(
    ray_session: None, tiny_model: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, TrainResult, Path]:
    """A training, what it found, and its folder."""
    config = small(tiny_model, labelled, epochs=2, experiment="finished", model_name="finished", storage="finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        result = train(config)
        (folder,) = Path("finished").resolve().glob("train-*")
    return config, result, folder


def test_the_losses_of_a_training_are_what_they_were(finished: tuple[TrainConfig, TrainResult, Path]) -> None:
    """Golden: a change of these is a change of every model that is trained from now on."""
    curve = losses(finished[1].run_id)
    np.testing.assert_allclose(curve[[0, 10, -1]], [4.72188, 3.46085, 2.56133], rtol=2e-3)


def left_unfinished(folder: Path) -> Path:
    """A copy of the training's folder here, as if its driver had been killed before its last step."""
    copy = shutil.copytree(folder, Path("finished") / folder.name)
    owner = locate(str(copy / claims.OWNER))
    owner.write(replace(claims.read(owner), state="left").as_bytes())
    return copy


def test_two_workers_have_the_loss_curve_of_one(finished: tuple[TrainConfig, TrainResult, Path]) -> None:
    config, one, _ = finished
    two = train(replace(config, num_workers="2", storage="two"))
    curve = losses(one.run_id)
    assert len(curve) > 40
    assert curve[-5:].mean() < 0.8 * curve[:5].mean(), "it learns"
    np.testing.assert_allclose(losses(two.run_id), curve, rtol=2e-3)
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, abs=0.02), name
    aliases = MlflowClient().get_registered_model("finished").aliases
    assert f"models:/finished/{aliases['champion']}" == one.model_uri
    assert f"models:/finished/{aliases['challenger']}" == two.model_uri, "it does not replace the first version"


def test_validation_rows_are_learnt_from_at_the_end(
    finished: tuple[TrainConfig, TrainResult, Path], labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cataloger")
    config, plain, _ = finished
    config = replace(config, fold_back=True, model_name="folded")
    one = train(replace(config, storage="one"))
    assert one.metrics == plain.metrics, "those of the network before"
    assert "validation rows are learnt from as well now" in caplog.text
    curve = losses(one.run_id, "fold_back_loss")
    assert len(curve) == math.ceil(len(pq.read_table(labelled)) / 32)
    assert curve[:20].mean() < losses(plain.run_id)[:20].mean() - 0.3, "it begins with what was learnt before"
    np.testing.assert_allclose(losses(one.run_id), losses(plain.run_id), rtol=1e-5)
    before, after = (registry.fetch_model(result.model_uri).folder for result in (plain, one))
    spec = read_spec(after)
    assert spec.validation_fraction == 0
    assert replace(spec, validation_fraction=0.1) == read_spec(before)
    for name in ("model.safetensors", "words.safetensors"):
        assert (before / name).read_bytes() != (after / name).read_bytes(), name
    assert (before / "seen.parquet").read_bytes() == (after / "seen.parquet").read_bytes()
    two = train(replace(config, num_workers="2", storage="two"))
    np.testing.assert_allclose(losses(two.run_id, "fold_back_loss"), curve, rtol=2e-3)
    refused = {
        "eval_catalog": str(labelled),
        "keep_old": 0.5,
        "group_balance": "brand",
        "label_column": ("category_path", "brand"),
    }
    for name, value in refused.items():
        with pytest.raises(ConfigError, match="--fold-back: .*leave it out"):
            train(replace(config, **{name: value}))  # type: ignore[arg-type]


def test_the_same_seed_and_workers_give_the_same_model(tiny_model: Path, labelled: Path) -> None:
    setup = {"dropout": 0.1, "seed": 7, "num_workers": "2", "adversarial": 0.5}
    same = [train(small(tiny_model, labelled, **setup)) for _ in range(2)]
    assert same[0].run_id != same[1].run_id, "what is done is done anew when asked for again"
    once, again = (load_file(registry.fetch_model(result.model_uri).folder / "model.safetensors") for result in same)
    assert all(torch.equal(weight, again[name]) for name, weight in once.items())
    assert same[0].metrics == same[1].metrics


def test_training_stops_where_validation_no_longer_improves(tiny_model: Path, labelled: Path) -> None:
    result = train(small(tiny_model, labelled, epochs=8, patience=2, learning_rate=1e-12))
    epochs = MlflowClient().get_metric_history(result.run_id, "val_loss")
    assert len(epochs) == 3, "the first, and two that are no better"


def test_every_option_at_once_learns_and_keeps_the_average(
    tiny_model: Path, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pq.read_table(labelled)
    unlabelled = table.drop_columns("category_path").slice(0, 300)
    names = [f"{name} of another kind".encode() for name in unlabelled.column("title").to_pylist()]
    names[7] = b"caf\xe9"
    titles = pa.array(names, pa.binary()).view(pa.string())
    pq.write_table(unlabelled.set_column(unlabelled.schema.get_field_index("title"), "title", titles), "more.parquet")
    options = {
        "unlabelled_catalog": "more.parquet",
        "pretrain_epochs": 1,
        "pseudo_labels": 0.05,
        "dropout": 0.05,
        "long_tail": "augmentation",
        "level_weights": "auto",
        "label_smoothing": 0.05,
        "average_decay": 0.9,
        "fine_tune": "1",
        "layer_decay": 0.9,
    }
    relative = Path(os.path.relpath(tiny_model))
    result = train(small(relative, labelled, num_workers="1:2", epochs=2, model_name="options", **options))
    product, file = unlabelled.column("id")[7], Path("more.parquet").resolve()
    assert f"1 row(s) left out, whose text is not valid UTF-8; the first is product {product} in {file}" in caplog.text
    curve = losses(result.run_id)
    assert curve[-20:].mean() < curve[:20].mean() - 0.1, "it learns"
    values = mlflow.get_run(result.run_id).data.metrics
    assert 0 < values["pseudo_labelled_rows"] <= 300, "the model's own labels join from the second epoch on"
    words = np.array([m.value for m in MlflowClient().get_metric_history(result.run_id, "pretrain_loss")])
    assert len(words) == pytest.approx((0.9 * len(table) + 0.9 * 300) / 32, abs=4), (
        "labelled or not, but not validation"
    )
    assert words[-5:].mean() < words[:5].mean()
    base = load_file(tiny_model / "model.safetensors")
    kept = load_file(registry.fetch_model(result.model_uri).folder / "model.safetensors")
    for file in Path("checkpoints").glob("*/checkpoint_*/state.pt"):
        state = torch.load(file, weights_only=True)
        average = {key.removeprefix("module."): value for key, value in state["average"].items()}
        if all(torch.equal(average[name], weight) for name, weight in kept.items()):
            break
    else:
        pytest.fail("what is registered is no checkpoint's average")
    assert any(not torch.equal(state["model"][name], weight) for name, weight in kept.items())
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(kept[f"bert.{name}"], base[name]), "pretraining is of the whole encoder"


def test_a_model_trained_by_adapters_is_an_ordinary_one(tiny_model: Path, labelled: Path) -> None:
    base, name = load_file(tiny_model / "model.safetensors"), "embeddings.word_embeddings.weight"
    result = train(small(tiny_model, labelled, fine_tune="lora", model_name="lora"))
    folder = registry.fetch_model(result.model_uri).folder
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(kept[f"bert.{name}"], base[name])
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(kept[f"bert.{query}"], base[query])
    assert not [key for key in kept if "lora" in key]
    loaded = Predictor(folder)
    ids = torch.tensor([[101, 2_000, 3_000, 102]]).numpy()
    assert loaded.engine({"input_ids": ids, "attention_mask": np.ones_like(ids, bool)}).shape == (
        1,
        len(loaded.spec.categories),
    )


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
    assert {"train_loss", "learning_rate", "tokens_per_second", "val_weighted_f1"} <= set(run.data.metrics)
    spec = read_spec(registry.fetch_model(f"models:/{name}@champion").folder)
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


def test_a_failed_run_is_closed_as_failed(tiny_model: Path, labelled: Path) -> None:
    with pytest.raises(TrainingError, match="loss at step .* --learning-rate"):
        train(small(tiny_model, labelled, learning_rate=1e30, experiment="failing"))
    (run,) = mlflow.search_runs(experiment_names=["failing"], output_format="list")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(("device", "place"), [("cuda", "GPU"), ("cpu", "machine")])
def test_a_worker_without_memory_stops_training_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, device: str, place: str
) -> None:
    """The worker's answer to PyTorch's error, a real one on a CPU."""

    def run_out(loop: Loop) -> None:
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        torch.empty(1 << 50)

    monkeypatch.setattr(Loop, "_resume", run_out)
    with progress.remote_meter("train", 1, lambda metrics: None) as board:
        loop = Loop.__new__(Loop)
        loop.board, loop.step, loop.device = board, 41, torch.device(device)
        loop.rank, loop.world = 0, 1
        with pytest.raises(RuntimeError, match="memory"):
            loop.run()
        reason = str(ray.get(board.reason_to_give_up.remote()))
    remedy = "lower --batch-size or --max-tokens, or use more workers"
    assert reason == f"the {place} ran out of memory at step 42; {remedy}"


def test_a_driver_killed_after_the_last_epoch_only_registers(finished: tuple[TrainConfig, TrainResult, Path]) -> None:
    config, first, folder = finished
    folder = left_unfinished(folder)
    MlflowClient().set_terminated(first.run_id, "KILLED")
    whole = set(folder.glob("checkpoint_*"))
    half = folder / "checkpoint_half_written"
    half.mkdir()
    (half / "state.pt").write_bytes(b"torn")
    again = train(config)
    assert set(folder.glob("checkpoint_*")) == whole, "what a killed process left half written is gone"
    assert again.run_id == first.run_id
    assert again.metrics == first.metrics
    steps = [metric.step for metric in MlflowClient().get_metric_history(first.run_id, "train_loss")]
    assert len(steps) == len(set(steps)), "no step was done twice"


def test_a_training_begins_anew_where_what_an_earlier_command_left_is_of_no_use(
    finished: tuple[TrainConfig, TrainResult, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """In the first folder a crash cut off Ray's list of checkpoints, in the second they are of another version."""
    config, first, folder = finished
    folder = left_unfinished(folder)
    second = shutil.copytree(folder, folder.with_name(folder.name.removesuffix("-1") + "-2"))
    kept = folder / "checkpoint_manager_snapshot.json"
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    for file in second.glob("checkpoint_*/state.pt"):
        state = torch.load(file, weights_only=True)
        torch.save({"another version": state}, file)
    again = train(config)
    assert f"{folder.name}: its list of checkpoints cannot be read; beginning anew" in caplog.text
    assert caplog.text.count("cannot be restored: KeyError: 'number'; beginning anew") == 1
    assert again.run_id != first.run_id
    assert again.metrics == first.metrics, "the same training, whole"
    states = [claims.read(locate(str(file))).state for file in folder.parent.glob("*/_owner")]
    assert states == ["done"] * 3, "nobody looks at them again"


def test_a_training_whose_folder_another_process_has_taken_stops(
    tiny_model: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.1)

    def take_over() -> None:
        while not (found := list(Path("taken").glob("*/checkpoint_manager_snapshot.json"))):
            time.sleep(0.05)
        owner, taken = locate(str(found[0].with_name(claims.OWNER))), False
        while not taken:
            with suppress(ConflictError):
                version = owner.version()
                owner.replace(replace(claims.read(owner), token="another").as_bytes(), version)
                taken = True

    with ThreadPoolExecutor(1) as pool:
        pool.submit(take_over)
        with pytest.raises(TrainingError, match="another process works here now"):
            train(small(tiny_model, labelled, epochs=1_000, patience=1_000, storage="taken"))
