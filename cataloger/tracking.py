"""The MLflow run of a job, and the model registry."""

import atexit
import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import ray
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from cataloger import serving
from cataloger.catalog import Catalog
from cataloger.errors import ModelError, TrackingError
from cataloger.lineage import CatalogDataset, code_version
from cataloger.storage import locate, locked

log = logging.getLogger(__name__)
MOST_METRICS = 1_000  # MLflow takes no more in one call


@dataclass(frozen=True)
class ModelSource:
    """A bundle folder on this machine and where it came from; `version` is `NAME/3` for a registered model."""

    folder: Path
    uri: str
    version: str | None


def connect() -> str:
    """Choose the tracking store and make sure it answers; its URI. Raises TrackingError within seconds.

    `MLFLOW_TRACKING_URI` if set, else SQLite in the working folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
    if uri.startswith(("http://", "https://")):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
        except requests.RequestException as error:
            raise TrackingError(
                f"MLflow server {_shown(uri)}: not reachable ({type(error).__name__}); start it, or set MLFLOW_TRACKING_URI"
            ) from error
    _quiet()
    # MLflow's own defaults keep a job waiting for minutes when the server goes away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    mlflow.set_tracking_uri(uri)
    try:
        # The first to come creates the tables; MLflow itself does not expect two to come at once.
        with locked(_beside(uri)) if uri.startswith("sqlite:") else contextlib.nullcontext():
            mlflow.search_experiments(max_results=1)
        _close_abandoned_runs()
    except MlflowException as error:
        raise TrackingError(
            f"MLflow store {_shown(uri)}: cannot be used: {_shown(str(error).splitlines()[0])}; set MLFLOW_TRACKING_URI"
        ) from error
    return uri


def _shown(uri: str) -> str:
    """The URI without the user name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def check_nodes(uri: str) -> None:
    """Refuse a store that lies on one machine when the cluster has several. Needs a running Ray. Raises TrackingError."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and not uri.startswith(("http://", "https://", "databricks")):
        raise TrackingError(
            f"MLflow store {_shown(uri)} lies on one machine but the cluster has {nodes} nodes; set MLFLOW_TRACKING_URI to a server's address"
        )


@contextlib.contextmanager
def run(
    kind: str, name: str, config: Any, catalog: Catalog, tags: Mapping[str, str], again: str | None = None
) -> Iterator[str]:
    """An MLflow run around a job: parameters, catalog and code version in, FINISHED or FAILED out, whatever happens.

    Yields the run id; `again` is an earlier run to go on with.
    """
    experiment = mlflow.get_experiment_by_name(config.experiment)
    if experiment is None and mlflow.get_tracking_uri().startswith("sqlite"):
        # Beside the database and absolute, so that artifacts are found from every working folder.
        beside = _beside(mlflow.get_tracking_uri()) / "mlartifacts"
        with contextlib.suppress(MlflowException):  # another job was first
            mlflow.create_experiment(config.experiment, artifact_location=beside.as_uri())
    mlflow.set_experiment(config.experiment)
    parameters = {key: value for key, value in asdict(config).items() if value is not None}
    active = mlflow.start_run(
        again, run_name=f"{kind} {name} {time.strftime('%Y-%m-%d %H:%M:%S')}" if not again else None
    )
    status = "FAILED"
    try:
        about = {"catalog": str(catalog.location), "catalog_fingerprint": catalog.fingerprint}
        mlflow.set_tags({"job": kind, **_process(), **code_version(), **about, **tags})
        if not again:
            mlflow.log_params(parameters)
            mlflow.log_input(CatalogDataset(catalog), context=kind)
        yield str(active.info.run_id)
        status = "FINISHED"
    finally:
        with _forgiving():
            mlflow.end_run(status)


def status(run_id: str) -> str | None:
    """RUNNING, FINISHED, FAILED, KILLED, or None when this store has no such run."""
    try:
        return str(mlflow.get_run(run_id).info.status)
    except MlflowException:
        return None


def _beside(uri: str) -> Path:
    """The folder of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).resolve().parent


def _process() -> dict[str, str]:
    return {"cataloger.host": socket.gethostname(), "cataloger.pid": str(os.getpid())}


def _close_abandoned_runs() -> None:
    """Close the runs of processes of this machine that were killed: nobody else will."""
    query = f"attributes.status = 'RUNNING' AND tags.`cataloger.host` = '{socket.gethostname()}'"
    for run in mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list"):
        pid = int(run.data.tags["cataloger.pid"])
        if pid != os.getpid() and not Path(f"/proc/{pid}").exists():
            MlflowClient().set_terminated(run.info.run_id, "KILLED")


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    """MLflow going away in mid-run costs metrics, never the work: say so and go on."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        uri, why = _shown(mlflow.get_tracking_uri()), _shown(str(error).splitlines()[0])
        log.warning("MLflow at %s does not take metrics: %s", uri, why)


def log_steps(run_id: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
    """Metrics by step: (name, value, Unix time in milliseconds, step) each."""
    with _forgiving():
        for start in range(0, len(metrics), MOST_METRICS):
            chunk = metrics[start : start + MOST_METRICS]
            MlflowClient().log_batch(run_id, metrics=[Metric(*metric) for metric in chunk])


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Into the driver's open run."""
    with _forgiving():
        mlflow.log_metrics({name: float(value) for name, value in metrics.items()})


def log_text(text: str, name: str) -> None:
    """As an artifact of the driver's open run."""
    with _forgiving():
        mlflow.log_text(text, name)


def log_figure(figure: Figure, name: str) -> None:
    """As an artifact of the driver's open run."""
    with _forgiving():
        mlflow.log_figure(figure, name)


def tag_version(source: ModelSource, tags: Mapping[str, str]) -> None:
    """Note on a registered model version which run used it, and on the open run which version that was."""
    if source.version is None:
        return
    name, version = source.version.rsplit("/", 1)
    with _forgiving():
        mlflow.set_tags({"model_name": name, "model_version": version})
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(name, version, key, value)


def register(folder: Path, name: str, run_id: str) -> str:
    """Log a bundle to the run and register it: alias `challenger`, and `champion` for the first version. The version's URI."""
    with tempfile.TemporaryDirectory() as code:
        # The serving side needs the library, not its caches.
        shutil.copytree(Path(__file__).parent, Path(code) / "cataloger", ignore=shutil.ignore_patterns("__pycache__"))
        info = mlflow.pyfunc.log_model(
            name="model",
            loader_module=serving.__name__,
            data_path=str(folder),
            code_paths=[str(Path(code) / "cataloger")],
            pip_requirements=serving.requirements(),
            signature=serving.signature(folder),
        )
    client = MlflowClient()
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    version = str(client.create_model_version(name, info.model_uri, run_id, model_id=info.model_id).version)
    first = not client.get_registered_model(name).aliases
    for alias in ["challenger"] + (["champion"] if first else []):
        client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"


def fetch_model(uri: str) -> ModelSource:
    """Bring the bundle named by `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/…` or a folder to this machine.

    An alias is resolved once, here: what it points to later changes nothing. Raises ModelError with the remedy.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return ModelSource(_fetch_folder(uri), uri, None)
    version = None
    try:
        if uri.startswith("models:/") and "@" in uri:
            name, alias = uri.removeprefix("models:/").split("@", 1)
            found = MlflowClient().get_model_version_by_alias(name, alias)
            uri = f"models:/{name}/{found.version}"
        if uri.startswith("models:/"):
            version = uri.removeprefix("models:/")
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(_download_folder())))
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"model {uri}: not found in MLflow at {_shown(mlflow.get_tracking_uri())} ({str(error).splitlines()[0]}); {_known_models()}"
        ) from error
    specs = sorted(folder.rglob("cataloger.json"))
    if not specs:
        raise ModelError(f"model {uri}: not a cataloger bundle (no cataloger.json in it); train one with jobs/train.py")
    return ModelSource(specs[0].parent, uri, version)


def _fetch_folder(uri: str) -> Path:
    location = locate(uri)
    if not (location / "cataloger.json").exists():
        raise ModelError(
            f"model {uri}: no such folder, or not a cataloger bundle (no cataloger.json in it); train one with jobs/train.py"
        )
    if location.is_local:
        return Path(location.path)
    folder = _download_folder()
    for info in location.files(recursive=False):
        (folder / info.base_name).write_bytes((location / info.base_name).read())
    return folder


def _download_folder() -> Path:
    """A folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="cataloger-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _known_models() -> str:
    names = [model.name for model in mlflow.search_registered_models(max_results=10)]
    return f"registered are: {', '.join(names)}" if names else "no model is registered there yet: run jobs/train.py"


def _quiet() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
