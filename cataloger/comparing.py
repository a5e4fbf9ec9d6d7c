"""MLflow runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cataloger import tracking
from cataloger.config import CompareConfig
from cataloger.errors import ConfigError, TrackingError


@dataclass(frozen=True)
class Row:
    """One parameter or metric of every run; a run that lacks it has an empty string."""

    kind: str
    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Comparison:
    """`names` are the runs' names; rows hold parameters first, then metrics."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    rows: tuple[Row, ...]


def compare(config: CompareConfig) -> Comparison:
    """Raises ConfigError for fewer than two runs, TrackingError for an unknown one."""
    if len(config.runs) < 2:
        raise ConfigError("name at least two runs to compare")
    tracking.connect()
    runs = [_find(name) for name in config.runs]
    rows = [
        Row(kind, name, tuple(_text(values.get(name)) for values in all_values))
        for kind, all_values in (
            ("tag", [{key: run.data.tags.get(key) for key in ("job", "catalog", "model")} for run in runs]),
            ("parameter", [run.data.params for run in runs]),
            ("metric", [run.data.metrics for run in runs]),
        )
        for name in sorted({name for values in all_values for name in values})
    ]
    return Comparison(
        ids=tuple(run.info.run_id for run in runs),
        names=tuple(str(run.info.run_name) for run in runs),
        rows=tuple(row for row in rows if any(row.values)),
    )


def _find(name: str) -> Run:
    try:
        return mlflow.get_run(name)
    except MlflowException:
        pass
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    recent: Sequence[Run] = mlflow.search_runs(experiments, max_results=1000, output_format="list")
    found = [run for run in recent if name in str(run.info.run_name) or run.info.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in (found or recent)[:5]) or "none yet"
    problem = f"fits {len(found)} runs" if found else "no such run"
    raise TrackingError(f"run {name!r}: {problem} at {mlflow.get_tracking_uri()}; runs are: {shown}")


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
