"""Models in MLflow: versions, their aliases, and the bundles behind them."""

import atexit
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cataloger.bundle import SPEC
from cataloger.errors import ModelError, TrackingError
from cataloger.infra import stores
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import locate
from cataloger.infra.tracking import forgiving, shown
from cataloger.model import pyfunc

# Tags of a version: why it was promoted or not, and when it was rolled back; of a model: its champions, the last one last.
PROMOTION, ROLLED_BACK, CHAMPIONS = "promotion", "rolled_back", "champions"


@dataclass(frozen=True)
class ModelSource:
    """A bundle folder on this machine and where it came from; `version` is `NAME/3` for a registered model."""

    folder: Path
    uri: str
    version: str | None


def tag_version(source: ModelSource, tags: Mapping[str, str]) -> None:
    """Note on a registered model version which run used it, and on the open run which version that was."""
    if source.version is None or not mlflow.active_run():
        return
    name, version = source.version.rsplit("/", 1)
    with forgiving():
        mlflow.set_tags({"model_name": name, "model_version": version})
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(name, version, key, value)


def register(folder: Path, name: str, run_id: str) -> tuple[str, bool]:
    """Log a bundle to the run and register it: alias `challenger`, and `champion` for the first version.

    (the version's URI, whether it is the first)
    """
    with tempfile.TemporaryDirectory() as code:
        # The serving side needs the library, not its caches.
        shutil.copytree(
            Path(__file__).parents[1], Path(code) / "cataloger", ignore=shutil.ignore_patterns("__pycache__")
        )
        info = mlflow.pyfunc.log_model(
            name="model",
            loader_module=pyfunc.__name__,
            data_path=str(folder),
            code_paths=[str(Path(code) / "cataloger")],
            pip_requirements=pyfunc.requirements(folder),
            signature=pyfunc.signature(folder),
            input_example=pd.DataFrame(pyfunc.example(folder)),
        )
    client = MlflowClient()
    with contextlib.suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    version = str(client.create_model_version(name, info.model_uri, run_id, model_id=info.model_id).version)
    first = not client.get_registered_model(name).aliases
    if first:
        client.set_model_version_tag(name, version, PROMOTION, "the first version of this name")
    for alias in ["challenger"] + (["champion"] if first else []):
        client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}", first


def champion(name: str) -> str | None:
    """The version that `models:/NAME@champion` is now. Raises ModelError for an unknown name, TrackingError without MLflow."""
    try:
        found = MlflowClient().get_registered_model(name).aliases.get("champion")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            where, why = shown(mlflow.get_tracking_uri()), shown(str(error).splitlines()[0])
            raise TrackingError(f"model {name}: MLflow at {where} does not answer ({why})") from error
        raise ModelError(
            f"model {name}: not registered at {shown(mlflow.get_tracking_uri())}; {_known_models()}"
        ) from error
    return None if found is None else str(found)


def promote(name: str, version: str, reasons: str, instead_of: str | None) -> None:
    """Make a version the champion in place of the one it was compared with; the reasons stay on the version.

    The alias moves in one step. Raises TrackingError when MLflow doesn't take it, or another version became champion meanwhile:
    then the champion is the one it was.
    """
    client, now = MlflowClient(), champion(name)
    if now != instead_of:
        raise TrackingError(f"model {name}: version {now} became champion meanwhile, and stays; compare with it")
    with _all_or_nothing(name):
        earlier = _champions(name)
        if now in earlier:
            # What stands behind the champion never was one: MLflow went away before the alias moved.
            earlier = earlier[: len(earlier) - earlier[::-1].index(now)]
        _remember(name, [*earlier, *([now] if now else []), version])
        client.set_registered_model_alias(name, "champion", version)
    note(name, version, reasons)


def _champions(name: str) -> list[str]:
    """Versions that were champion, the last one last; it may never have come to that if MLflow went away in between."""
    return list(json.loads(MlflowClient().get_registered_model(name).tags.get(CHAMPIONS, "[]")))


def _remember(name: str, versions: list[str]) -> None:
    without_repeats = [one for one, before in zip(versions, [None, *versions], strict=False) if one != before]
    MlflowClient().set_registered_model_tag(name, CHAMPIONS, json.dumps(without_repeats))


def note(name: str, version: str, reasons: str) -> None:
    """Why a version was promoted, or was not."""
    with forgiving():
        MlflowClient().set_model_version_tag(name, version, PROMOTION, reasons)


def rolled_back(name: str, version: str) -> str | None:
    """When a version ceased to be champion by a rollback."""
    return MlflowClient().get_model_version(name, version).tags.get(ROLLED_BACK)


def rollback(name: str) -> tuple[str, str]:
    """Give the alias back to the version that was champion before; (that version, the one that was champion until now).

    Raises ModelError when there is none, TrackingError when MLflow doesn't take it.
    """
    client, now = MlflowClient(), champion(name)
    if now is None:
        raise ModelError(f"model {name}: has no champion; promote a version with jobs/compare.py … --promote")
    with _all_or_nothing(name):
        earlier = _champions(name)
        if now in earlier:
            earlier = earlier[: len(earlier) - 1 - earlier[::-1].index(now)]
        if not earlier:
            raise ModelError(f"model {name}: version {now} is its first champion; there is none to go back to")
        client.get_model_version(name, earlier[-1])
        client.set_registered_model_alias(name, "champion", earlier[-1])
    with forgiving():
        _remember(name, earlier)
        client.set_model_version_tag(name, now, ROLLED_BACK, time.strftime("%Y-%m-%d %H:%M:%S"))
    return earlier[-1], now


@contextlib.contextmanager
def _all_or_nothing(name: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise TrackingError(
            f"model {name}: MLflow at {shown(mlflow.get_tracking_uri())} did not move the champion "
            f"({shown(str(error).splitlines()[0])}); it is the one it was"
        ) from error


def is_alias(uri: str) -> bool:
    """Whether what it names may be another version later."""
    return uri.startswith("models:/") and "@" in uri


def version_of(uri: str) -> str:
    """`NAME/3`, for an alias of a registered model as it is now. Raises MlflowException."""
    name, alias = uri.removeprefix("models:/").split("@", 1)
    return f"{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}"


def fetch_model(uri: str) -> ModelSource:
    """Bring the bundle named by `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/…` or a folder to this machine.

    An alias is resolved once, here: what it points to later changes nothing. Raises ModelError with the remedy.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return ModelSource(_fetch_folder(uri), uri, None)
    version, place = None, None
    try:
        if is_alias(uri):
            uri = f"models:/{version_of(uri)}"
        if uri.startswith("models:/"):
            version = uri.removeprefix("models:/")
        place = _download_folder()
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(place)))
    except (MlflowException, OSError) as error:
        if place:
            shutil.rmtree(place, ignore_errors=True)
        raise ModelError(
            f"model {uri}: not found in MLflow at {shown(mlflow.get_tracking_uri())} ({str(error).splitlines()[0]}); {_known_models()}"
        ) from error
    specs = sorted(folder.rglob("cataloger.json"))
    if not specs:
        shutil.rmtree(place, ignore_errors=True)
        raise ModelError(f"model {uri}: not a cataloger bundle (no cataloger.json in it); train one with jobs/train.py")
    return ModelSource(specs[0].parent, uri, version)


def is_trained(name: str) -> bool:
    """Whether this names a model of ours."""
    if name.startswith(("models:/", "runs:/")):
        return True
    if name.partition("://")[0] in stores.SCHEMES:
        return (locate(name) / SPEC).exists()
    return (Path(name).expanduser() / SPEC).is_file()


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
    folder = working_folder("download")
    atexit.register(folder.__exit__, None, None, None)
    return folder.__enter__()


def _known_models() -> str:
    names = [model.name for model in mlflow.search_registered_models(max_results=10)]
    return f"registered are: {', '.join(names)}" if names else "no model is registered there yet: run jobs/train.py"
