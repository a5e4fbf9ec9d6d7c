"""One Ray, one MLflow store, one tiny model for all tests of a process; every test has a working folder of its own."""

import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

from leftovers import none_left
from servers import free_port, seaweed

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
# Several processes compute at once here. A thread that waits for others of its process would otherwise keep a core busy by waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# How fast a busy machine makes up examples says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: two processes then end at about the same time."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """First to come and last to go."""
    tmp_path_factory.getbasetemp()  # where it always lies
    with none_left():
        yield


@pytest.fixture(scope="session", autouse=True)
def tracking_store(nothing_left: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Creating the SQLite store takes seconds: one for the session, and never the user's own."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("RAY_ADDRESS", raising=False)
        # Ray's workers inherit these, so they are set before it starts; the server itself starts with the first test that needs it.
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-leak",
            "AWS_REGION": "eu-central-1",
            # How often Ray Train looks after its workers: tiny trainings end between two looks.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # No cloud takes this machine away, and every training would start a process that asks.
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            # A server that a test has killed does not come back.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }.items():
            patch.setenv(name, value)
        yield uri


@pytest.fixture(scope="session")
def s3(tracking_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty bucket on an S3 server of this machine: `s3://shop`."""
    from cataloger.infra.s3 import for_writing

    port = int(os.environ["AWS_ENDPOINT_URL"].rsplit(":")[-1])
    key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    with seaweed(tmp_path_factory.mktemp("s3"), port, key, secret):
        for_writing().call_s3("create_bucket", Bucket="shop")
        yield "s3://shop"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def ray_session(tracking_store: str) -> Iterator[None]:
    from cataloger.infra import runtime

    with runtime.session():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two narrow layers with random weights, no dropout, and MiniLM's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel, set_seed

    from cataloger.model.pretrained import base_model_folder

    folder = tmp_path_factory.mktemp("tiny-bert")
    set_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_model_folder("minilm")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow ResNet with random weights that reads 32 pixels."""
    from transformers import ResNetConfig, ResNetModel, set_seed

    folder = tmp_path_factory.mktemp("tiny-resnet")
    set_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    about = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_sight: Path) -> Callable[..., Path]:
    """Makes an untrained bundle that sees, and reads the columns that are named."""
    import torch

    from cataloger.model.network import new_classifier, save_bundle
    from cataloger.model.sight import sight_of
    from cataloger.spec import Spec

    def make(*text_columns: str) -> Path:
        folder = tmp_path_factory.mktemp("seeing")
        sight, base = sight_of(str(tiny_sight)), tiny_model if text_columns else Path()
        spec = Spec(("A", "B > C", "B > D"), text_columns, 12, "mean", "none", picture=sight.picture("image"))
        torch.manual_seed(0)
        save_bundle(folder, new_classifier(base, spec, sight), base, spec)
        return folder

    return make


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled sample catalog of 1,500 rows."""
    from cataloger.config import SampleConfig
    from cataloger.data.sample import generate

    folder = tmp_path_factory.mktemp("catalog") / "labelled"
    generate(SampleConfig(rows=1_500, output=str(folder), labelled=True))
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, labelled: Path) -> Path:
    """An untrained mean-pooled bundle over the sample's categories: enough wherever the labels themselves don't matter."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), tiny_model, labelled, "mean")


def make_bundle(folder: Path, base: Path, catalog: Path, pooling: str) -> Path:
    import torch

    from cataloger.model.network import new_classifier, save_bundle
    from cataloger.spec import Spec
    from cataloger.taxonomy import Taxonomy

    paths = pq.read_table(catalog, columns=["category_path"]).column(0).to_pylist()
    taxonomy = Taxonomy.from_paths(paths)
    torch.manual_seed(1)
    columns, thresholds = ("title", "brand", "description"), (0.8,) * (taxonomy.depth - 1) + (0.5,)
    spec = Spec(taxonomy.categories, columns, 32, pooling, "none", thresholds=thresholds)
    model = new_classifier(base, spec)
    # A wide head: with the usual small one all rows of an untrained model would get the same label.
    torch.nn.init.normal_(model.classifier.weight, std=3.0)
    save_bundle(folder, model, base, spec)
    return folder


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a job as the command line would, in this process: `job("label", "--catalog", …)` → (exit code, out, err)."""

    def run(name: str, *flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *map(str, flags)])
        monkeypatch.syspath_prepend(str(ROOT / "jobs"))
        monkeypatch.setenv("COLUMNS", "160")
        code = 0
        try:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def write(working_folder: Path) -> Callable[..., Path]:
    """`write("name.parquet", title=[…], …)` makes a Parquet file in the working folder."""

    def make(name: str, /, **columns: object) -> Path:
        path = working_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return path

    return make


@pytest.fixture
def iceberg_shop(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Opens the Iceberg catalog `shop`, in SQLite; call it again when the environment has changed, of which pyiceberg keeps what it read."""
    import pyiceberg.catalog as module

    for name, value in {
        "TYPE": "sql",
        "URI": f"sqlite:///{working_folder}/iceberg.db",
        "WAREHOUSE": f"file://{working_folder}/warehouse",
    }.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__SHOP__{name}", value)

    def opened() -> Any:
        monkeypatch.setattr(module, "_ENV_CONFIG", type(module._ENV_CONFIG)())
        return module.load_catalog("shop")

    opened()
    return opened


def shared_data(name: str) -> Path:
    """A real catalog, or a skip that says why."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}, which is not part of the project")
    return path


def refused(outcome: tuple[int, str, str], *sentence: str, code: int = 2) -> None:
    """Exit code, one sentence on stderr that says all of this, and no traceback."""
    exit_code, _out, err = outcome
    assert exit_code == code, err
    problem = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(problem) == 1, err
    assert "Traceback" not in err
    for part in sentence:
        assert part in problem[0]
    assert not Path("labels").exists(), "nothing half-written"
    assert not list(Path().glob("checkpoints/*/*")), "nothing half-written"


def upload(folder: Path, uri: str) -> None:
    from cataloger.infra.storage import locate

    for file in folder.rglob("*"):
        if file.is_file():
            (locate(uri) / str(file.relative_to(folder))).write(file.read_bytes())


def losses(run_id: str, name: str = "train_loss") -> np.ndarray:
    """Of a training, step by step: the last value of each, since a training that goes on may repeat its last few."""
    from mlflow import MlflowClient

    history = MlflowClient().get_metric_history(run_id, name)
    last = {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}
    return np.array([last[step] for step in sorted(last)])


def published(output: str = "labels") -> pa.Table:
    """The labels that `_latest.json` names."""
    pointer = json.loads((Path(output) / "_latest.json").read_text())
    return pq.read_table(Path(output) / pointer["path"])


def on_ray(address: str, **more: str) -> dict[str, str]:
    """An environment for a subprocess that joins a Ray of this process."""
    return free_of_ray(RAY_ADDRESS=address, RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE", "disabled"), **more)


def free_of_ray(**more: str) -> dict[str, str]:
    """An environment for a subprocess that must not find this process's Ray."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_") or key == "RAY_TMPDIR"} | more


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """For modules whose trainings only make a model: see `in_process.py`."""
    from in_process import trained_in_process

    with trained_in_process():
        yield


@pytest.fixture(scope="session")
def trained(
    ray_session: None,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    labelled: Path,
):  # type: ignore[no-untyped-def]
    """A tiny model trained and registered by the real training code, in this process."""
    from cataloger.config import TrainConfig
    from cataloger.training.job import train
    from in_process import trained_in_process

    config = TrainConfig(
        catalog=str(labelled),
        base_model=str(tiny_model),
        pooling="mean",
        epochs=3,
        batch_size=16,
        learning_rate=5e-3,
        max_tokens=32,
        test_fraction=0.2,
        storage=str(tmp_path_factory.mktemp("checkpoints")),
        experiment="tests",
        model_name="tiny-mean",
    )
    with trained_in_process():
        return train(config)
