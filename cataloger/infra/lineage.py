"""What a run was made from, for MLflow: the catalog as a dataset, and the version of the code."""

import hashlib
import json
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.types import ColSpec, DataType, Schema

from cataloger.infra.storage import Location

PACKAGE = Path(__file__).parents[1]


class Dataset(Protocol):
    """What MLflow is told of a catalog."""

    @property
    def location(self) -> Location: ...
    @property
    def files(self) -> Sequence[object]: ...
    @property
    def schema(self) -> pa.Schema: ...
    @property
    def root(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def rows(self) -> int: ...


class CatalogDataset(MetaDataset):
    """A catalog by its location, fingerprint, columns and number of rows: MLflow has no class for Parquet that nobody loads."""

    def __init__(self, catalog: Dataset) -> None:
        self._profile = {"rows": catalog.rows, "files": len(catalog.files)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two names for one kind of source
            source = _source(catalog.root or str(catalog.location))
        columns = [ColSpec(_type(field.type), field.name) for field in catalog.schema]
        super().__init__(source, Path(catalog.location.path).stem, catalog.fingerprint, Schema(columns))  # type: ignore[arg-type]

    @property
    def profile(self) -> Any:
        return self._profile

    def to_dict(self) -> dict[str, str]:
        return {**super().to_dict(), "profile": json.dumps(self._profile)}


def _source(uri: str) -> Any:
    try:
        return resolve_dataset_source(uri)
    except MlflowException:  # of the clouds it knows two
        return HTTPDatasetSource(uri)


def code_version() -> dict[str, str]:
    """Tags: a digest of the library's files, and the git commit where there is a repository (a submitted job has none)."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    tags = {"code_digest": digest.hexdigest()[:12]}
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return tags
    commit, _, dirty = found.stdout.strip().partition("-")
    if found.returncode == 0 and commit:
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(dirty)).lower()}
    return tags


def _type(kind: pa.DataType) -> DataType:
    if pa.types.is_integer(kind):
        return DataType.long
    if pa.types.is_floating(kind):
        return DataType.double
    return DataType.boolean if pa.types.is_boolean(kind) else DataType.string
