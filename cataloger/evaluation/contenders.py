"""What a person calls a run or a model on the command line, and what MLflow knows of it."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cataloger.bundle import digest
from cataloger.errors import ConfigError, TrackingError
from cataloger.evaluation.predictions import FILE, Predictions, file_of
from cataloger.infra import tracking
from cataloger.model import registry
from cataloger.model.ensemble import SEVERAL

RECENT = 1_000  # runs among which parts of names and of ids are looked for


@dataclass(frozen=True)
class Contender:
    """A model with the run that trained it and the runs that evaluated it, the newest first; or a run without a model."""

    name: str
    model: str | None
    """models:/NAME/VERSION, or a folder; of several that answered together, all of them."""
    training: Run | None
    evaluations: tuple[Run, ...]
    run: Run | None = None
    """Where a run was named, that one."""

    @property
    def version(self) -> tuple[str, str] | None:
        """(name, version) where the model is registered."""
        if self.model is None or not self.model.startswith("models:/") or SEVERAL in self.model:
            return None
        name, version = self.model.removeprefix("models:/").rsplit("/", 1)
        return name, version


def find(name: str, model_name: str) -> Contender:
    """By model URI, folder, alias of `model_name`, run id, beginning of one, or part of a run's name. Raises TrackingError.

    The last two are looked for among the newest runs.
    """
    if name.startswith("runs:/"):
        name = name.split("/")[1]
    if name.startswith("models:/"):
        return _of_version(name, _version(name))
    if registry.is_trained(name):
        # Another model may lie there by now than the one that was evaluated.
        now = digest(registry.fetch_model(name).folder)
        evaluations = [run for run in _evaluations(name) if run.data.tags.get("model_digest") == now]
        return Contender(name, name, None, tuple(evaluations))
    aliases = _aliases(model_name)
    if name in aliases:
        version = MlflowClient().get_model_version(model_name, aliases[name])
        return _of_version(f"{name} ({model_name} {version.version})", version)
    return _of_run(_run(name, aliases, model_name))


def common_evaluation(contenders: Sequence[Contender]) -> tuple[list[Contender], list[Predictions]]:
    """(each with that evaluation alone, what it said about the same rows) of the newest evaluations that have a catalog in common.

    Raises ConfigError that says who was evaluated on what.
    """
    by_rows = [{_rows(run): run for run in reversed(one.evaluations)} for one in contenders]
    for rows in (_rows(run) for run in contenders[0].evaluations):
        if all(rows in runs for runs in by_rows):
            common = [runs[rows] for runs in by_rows]
            chosen = [replace(one, evaluations=(run,)) for one, run in zip(contenders, common, strict=True)]
            return chosen, [_predictions(run) for run in common]
    told = "; ".join(f"{one.name} on {_told(one)}" for one in contenders)
    raise ConfigError(
        f"evaluated on different rows: {told}; add --evaluate CATALOG to evaluate all of them on the same"
    )


def _told(contender: Contender) -> str:
    shown = [
        f"{run.data.tags['catalog']} ({run.data.tags['split']} rows, {_rows(run)[0]})" for run in contender.evaluations
    ]
    return " and ".join(dict.fromkeys(shown)) or "none"


def _rows(run: Run) -> tuple[str, str, str]:
    """What decides which rows an evaluation scored, and against what."""
    tags = run.data.tags
    # Of several columns the first counts; earlier versions knew just one, and wrote its name as it is.
    columns = run.data.params.get("label_column", "")
    named = re.match(r"\(['\"](.*?)['\"][,)]", columns)
    return tags["catalog_fingerprint"], tags["split"], named.group(1) if named else columns


def _predictions(run: Run) -> Predictions:
    first = _file(run, FILE)
    return replace(first, others={column: _file(run, file_of(column)) for column in first.about.further})


def _file(run: Run, name: str) -> Predictions:
    try:
        file = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"run {run.info.run_name}: its {name} is not in MLflow; evaluate the model again with jobs/evaluate.py"
        ) from error
    return Predictions.from_parquet(Path(file).read_bytes())


def _of_version(name: str, version: ModelVersion) -> Contender:
    model = f"models:/{version.name}/{version.version}"
    training = None
    if version.run_id and tracking.status(version.run_id):
        training = tracking.find_run(version.run_id)
    return Contender(name, model, training, _evaluations(model))


def _of_run(run: Run) -> Contender:
    name, job = str(run.info.run_name), run.data.tags.get("job")
    if job in ("train", "compress"):
        versions = MlflowClient().search_model_versions(f"run_id = '{run.info.run_id}'")
        if not versions:
            return Contender(name, None, run, (), run)
        newest = max(versions, key=lambda version: int(version.version))
        found = _of_version(name, newest)
        return Contender(f"{name} ({newest.name} {newest.version})", found.model, run, found.evaluations, run)
    model = run.data.tags.get("model")
    training = None
    if model and model.startswith("models:/") and SEVERAL not in model:
        training = _of_version(name, _version(model)).training
    evaluations = (run,) if job == "evaluate" else _evaluations(model) if model else ()
    return Contender(name, model, training, evaluations, run)


def _version(uri: str) -> ModelVersion:
    name, at, alias = uri.removeprefix("models:/").partition("@")
    client = MlflowClient()
    try:
        return client.get_model_version_by_alias(name, alias) if at else client.get_model_version(*name.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        known = [f"models:/{name}@{alias}" for alias in _aliases(name)]
        known += [f"models:/{model.name}" for model in mlflow.search_registered_models(max_results=100)]
        raise TrackingError(f"{uri}: no such model version in MLflow; {_nearest(uri, known)}") from error


def _aliases(model_name: str) -> dict[str, str]:
    try:
        return dict(MlflowClient().get_registered_model(model_name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _evaluations(model: str) -> tuple[Run, ...]:
    query = f"tags.job = 'evaluate' AND tags.model = {tracking.quoted(model)} AND attributes.status = 'FINISHED'"
    found: Sequence[Run] = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=query,
        max_results=RECENT,
        output_format="list",
        order_by=["start_time DESC"],
    )
    # What the night would publish: words and network about every row are asked for to see what tiers cost.
    return tuple(run for run in found if run.data.params.get("tiers", "auto") == "auto")


def _run(name: str, aliases: dict[str, str], model_name: str) -> Run:
    if whole := _by_id(name):
        return whole
    recent: Sequence[Run] = mlflow.search_runs(search_all_experiments=True, max_results=RECENT, output_format="list")
    # The names of comparisons are those of what they compared.
    models = [run for run in recent if run.data.tags.get("job") != "compare"]
    found = [run for run in models if name in str(run.info.run_name) or run.info.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in found[:5])
        raise TrackingError(f"{name!r} fits {len(found)} runs; name one of {shown}")
    known = [*aliases, *(str(run.info.run_name) for run in recent), *(run.info.run_id for run in recent)]
    older = (
        f" (parts of names and ids are looked for among the newest {RECENT:,} runs alone)"
        if len(recent) == RECENT
        else ""
    )
    raise TrackingError(
        f"{name!r}: no such run{older}, nor an alias of model {model_name} (--model-name); {_nearest(name, known)}"
    )


def _by_id(name: str) -> Run | None:
    """The run of a whole id, however old it is."""
    if not re.fullmatch("[0-9a-f]{32}", name):
        return None
    try:
        run = tracking.find_run(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _nearest(name: str, known: Sequence[str]) -> str:
    if not known:
        return "MLflow has none yet: run jobs/train.py"
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
    return f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(known[:5])}"
