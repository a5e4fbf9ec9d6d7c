"""The MLflow run of a job."""

import contextlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import ray
import requests
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from cataloger.errors import TrackingError
from cataloger.infra import alive, places
from cataloger.infra.lineage import CatalogDataset, Dataset, code_version
from cataloger.infra.storage import explain, locked

log = logging.getLogger(__name__)
ARTIFACT_CLIENTS = ("azure", "boto3", "botocore", "google")
MOST_METRICS = 1_000  # MLflow takes no more in one call
# Tags of a run that is open: whose it is, and when that process was last known to live, in Unix seconds.
PROCESS, BEAT = "cataloger.process", "cataloger.alive_at"
BEAT_SECONDS = 60.0
# Who has not been heard of for so long is taken for dead where nobody can look: far more than clocks differ.
LEASE_SECONDS = 15 * 60.0


def connect() -> str:
    """Choose the tracking store and make sure it answers; its URI. Raises TrackingError within seconds.

    `MLFLOW_TRACKING_URI` if set, else SQLite in the working folder.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and places.is_submitted():
        raise TrackingError(
            "MLFLOW_TRACKING_URI is not set, and what is written to the working folder of a submitted job is gone with it; set it "
            "where the cluster is started: to a server's address, on one machine to sqlite:////ABSOLUTE/PATH/mlflow.db"
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
    if uri.startswith(("http://", "https://")):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
        except requests.RequestException as error:
            raise TrackingError(
                f"MLflow server {shown(uri)}: not reachable ({type(error).__name__}); start it, or set MLFLOW_TRACKING_URI"
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
            f"MLflow store {shown(uri)}: cannot be used: {shown(explain(error))}; set MLFLOW_TRACKING_URI"
        ) from error
    return uri


def shown(uri: str) -> str:
    """The URI without the user name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//…@", uri)


def check_nodes(uri: str) -> None:
    """Refuse a store that lies on one machine when the cluster has several. Needs a running Ray. Raises TrackingError."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and not uri.startswith(("http://", "https://", "databricks")):
        raise TrackingError(
            f"MLflow store {shown(uri)} lies on one machine but the cluster has {nodes} nodes; set MLFLOW_TRACKING_URI to a server's address"
        )


@contextlib.contextmanager
def run(
    kind: str, name: str, config: Any, catalog: Dataset | None, tags: Mapping[str, str], again: str | None = None
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
    mlflow.set_experiment_tag(
        "mlflow.experimentKind", "custom_model_development"
    )  # or the page asks for prompts and traces
    parameters = {key: value for key, value in asdict(config).items() if value is not None}
    if again:
        # First: a run that is open and that of a dead process is closed by whoever sees it.
        for key, value in _process().items():
            MlflowClient().set_tag(again, key, value)
    run_name = None if again else f"{kind} {name} {time.strftime('%m-%d %H:%M:%S')}"
    active = mlflow.start_run(again, run_name=run_name, tags=_process())
    status = "FAILED"
    try:
        about = {"job": kind, **code_version(), **tags}
        if catalog:
            about |= {"catalog": str(catalog.location), "catalog_fingerprint": catalog.fingerprint}
        mlflow.set_tags(about)
        if not again:
            mlflow.log_params(parameters)
            if catalog:
                mlflow.log_input(CatalogDataset(catalog), context=kind)
        with _beating(active.info.run_id):
            yield str(active.info.run_id)
        status = "FINISHED"
    finally:
        with forgiving():
            mlflow.end_run("RUNNING" if status == "FAILED" and _taken_over(active.info.run_id) else status)


def find_run(run_id: str) -> Run:
    """Raises MlflowException."""
    return mlflow.get_run(run_id)


def children(run_id: str) -> list[Run]:
    """The nested runs of a run."""
    query = f"tags.`mlflow.parentRunId` = {quoted(run_id)}"
    return list(mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list"))


def quoted(value: str) -> str:
    """For a filter of MLflow, which knows both quotes and no way to escape one. Raises TrackingError where neither will do."""
    quote = '"' if "'" in value or value.endswith("\\") else "'"
    if quote in value:
        raise TrackingError(f"{value}: MLflow cannot look for a name with both kinds of quotes in it; rename it")
    return f"{quote}{value}{quote}"


@contextlib.contextmanager
def nested(run_id: str) -> Iterator[None]:
    """Within a run that has ended, inside the open one."""
    with mlflow.start_run(run_id, nested=True, tags=_process()):
        yield


def close_stopped(run_id: str) -> None:
    """Of a training that was stopped on purpose."""
    with forgiving():
        MlflowClient().set_tag(run_id, "stopped_early", "true")
        MlflowClient().set_terminated(run_id, "KILLED")


def status(run_id: str) -> str | None:
    """RUNNING, FINISHED, FAILED, KILLED, or None when this store has no such run."""
    try:
        info = mlflow.get_run(run_id).info
    except MlflowException:
        return None
    return str(info.status) if info.lifecycle_stage == "active" else None


def _beside(uri: str) -> Path:
    """The folder of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).resolve().parent


def _process() -> dict[str, str]:
    return {PROCESS: alive.identity(), BEAT: str(time.time())}


@contextlib.contextmanager
def _beating(run_id: str) -> Iterator[None]:
    """Say now and then that this process lives, for as long as the block runs. MLflow being away costs nothing."""
    stop, client = threading.Event(), MlflowClient()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(MlflowException, requests.RequestException):
                client.set_tag(run_id, BEAT, str(time.time()))

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _taken_over(run_id: str) -> bool:
    """Whether another process goes on with the run."""
    try:
        return bool(mlflow.get_run(run_id).data.tags[PROCESS] != alive.identity())
    except (MlflowException, requests.RequestException):
        return False


def _close_abandoned_runs() -> None:
    """Close the runs of processes that were killed: nobody else will."""
    query = f"attributes.status = 'RUNNING' AND tags.`{PROCESS}` LIKE '%'"
    for run in mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list"):
        dead = alive.is_dead(run.data.tags[PROCESS])
        if dead is None:
            dead = time.time() - float(run.data.tags[BEAT]) > LEASE_SECONDS
        if dead:
            MlflowClient().set_terminated(run.info.run_id, "KILLED")


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """For jobs that are nothing without MLflow: a server that goes away is a TrackingError."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        where, why = shown(mlflow.get_tracking_uri()), shown(explain(error))
        raise TrackingError(f"MLflow at {where} does not answer as it should: {why}") from error


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """MLflow going away in mid-run costs metrics, never the work: say so and go on."""
    try:
        yield
    except Exception as error:
        # Artifacts may lie on a disk, or in a store, whose clients raise errors of their own.
        ours = isinstance(error, MlflowException | requests.RequestException | OSError)
        if not ours and type(error).__module__.partition(".")[0] not in ARTIFACT_CLIENTS:
            raise
        uri, why = shown(mlflow.get_tracking_uri()), shown(explain(error))
        log.warning("MLflow at %s does not take metrics: %s", uri, why)


def log_steps(run_id: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
    """Metrics by step: (name, value, Unix time in milliseconds, step) each."""
    with forgiving():
        for start in range(0, len(metrics), MOST_METRICS):
            chunk = metrics[start : start + MOST_METRICS]
            MlflowClient().log_batch(run_id, metrics=[Metric(*metric) for metric in chunk])


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Into the driver's open run."""
    with forgiving():
        if mlflow.active_run():  # it would begin one of its own
            mlflow.log_metrics({name: float(value) for name, value in metrics.items()})


def log_text(text: str, name: str) -> None:
    """As an artifact of the driver's open run."""
    with forgiving():
        if mlflow.active_run():
            mlflow.log_text(text, name)


def log_file(data: bytes, name: str) -> None:
    """As an artifact of the driver's open run."""
    with forgiving(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        mlflow.log_artifacts(folder)


def log_figure(figure: Figure, name: str) -> None:
    """As an artifact of the driver's open run."""
    with forgiving():
        mlflow.log_figure(figure, name)


def _quiet() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
