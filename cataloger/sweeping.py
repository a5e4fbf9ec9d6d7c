"""A handful of settings, trained through Ray Tune: those that fall behind are stopped early, the best one is registered."""

import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pydantic
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from cataloger import runtime, tracking
from cataloger.config import TrainConfig
from cataloger.errors import ConfigError, TrainingError
from cataloger.plans import plan
from cataloger.storage import Location, locate
from cataloger.training import Fitted, fitted, register

log = logging.getLogger(__name__)
MOST_TRIALS = 100
SCORE = "val_weighted_f1"
# Of the trials that come to an epoch, the better half goes on.
KEPT = 2
TRIAL = "trial"


@dataclass(frozen=True)
class Trial:
    """One combination of settings: the epochs it was trained and its weighted F1 on validation, the best if it finished."""

    settings: dict[str, Any]
    epochs: int
    score: float
    run_id: str | None
    state: Literal["finished", "stopped early", "failed"]


@dataclass(frozen=True)
class SweepResult:
    """All trials, the best first; that one was registered as `model_uri`."""

    model_uri: str
    run_id: str
    trials: tuple[Trial, ...]


def sweep(config: TrainConfig) -> SweepResult:
    """Train every combination of the settings in the file `config.sweep`. Raises CatalogerError before any work."""
    settings = read_settings(str(config.sweep))
    configs = [_with(config, one) for one in settings]
    plans = [plan(one) for one in configs]
    tracking_uri = tracking.connect()
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        gpu = runtime.wants_gpu(config.use_gpu)
        most = max(runtime.training_workers(one.num_workers, gpu)[1] for one in configs)
        # Trainings that share the cores of a machine wait for each other's threads: there one comes after the other.
        at_once = max(1, int(runtime.capacity("GPU")) // most) if gpu else 1
        with tracking.run(
            "sweep", config.model_name, config, plans[0].sources[0].catalog, {"model_name": config.model_name}
        ) as parent:
            trials = _tune(configs, settings, parent, tracking_uri, at_once)
            finished = [left for _, left in trials if left]
            if not finished:
                raise TrainingError(f"--sweep {config.sweep}: no trial came to its end; see the nested runs in MLflow")
            best = max(finished, key=lambda left: left.metrics[SCORE])
            with tracking.nested(best.run_id):
                uri = register(best, config.model_name)
            tracking.log_metrics({f"best_{SCORE}": best.metrics[SCORE], "trials": len(trials)})
    ordered = sorted((trial for trial, _ in trials), key=lambda trial: -trial.score)
    return SweepResult(uri, parent, tuple(ordered))


def read_settings(file: str) -> list[dict[str, Any]]:
    """Every combination of the values in a YAML file. Raises ConfigError."""
    try:
        read = yaml.safe_load(locate(file).read())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--sweep {file}: cannot be read: {str(error).splitlines()[0]}") from error
    if (
        not isinstance(read, dict)
        or not read
        or not all(isinstance(values, list) and values for values in read.values())
    ):
        raise ConfigError(f"--sweep {file}: give each setting a list of values, such as learning_rate: [1e-4, 3e-4]")
    names = {str(name).replace("-", "_"): values for name, values in read.items()}
    if unknown := names.keys() - (
        TrainConfig.__dataclass_fields__.keys() - {"sweep", "model_name", "experiment", "storage"}
    ):
        raise ConfigError(
            f"--sweep {file}: {', '.join(sorted(unknown))}: no such setting of train.py, or none to try values of"
        )
    found = [dict(zip(names, values, strict=True)) for values in itertools.product(*names.values())]
    if len(found) > MOST_TRIALS:
        raise ConfigError(
            f"--sweep {file}: {len(found)} combinations; name fewer values, at most {MOST_TRIALS} are tried"
        )
    return found


def _with(config: TrainConfig, settings: dict[str, Any]) -> TrainConfig:
    """Raises ConfigError for a value of the wrong type."""
    fields = TrainConfig.__dataclass_fields__
    given = {name: str(value) if fields[name].type is str else value for name, value in settings.items()}
    try:
        return pydantic.TypeAdapter(TrainConfig).validate_python({**asdict(config), **given, "sweep": None})
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise ConfigError(f"--sweep {config.sweep}: {name}: {problem['input']!r}: {problem['msg']}") from error


class _Log(tune.Callback):
    """Says how every trial gets on."""

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self.settings = settings

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        about = ", ".join(f"{name} {value}" for name, value in self.settings[number].items())
        log.info(
            "trial %s of %s (%s): epoch %s, validation F1 %.3f",
            number + 1,
            len(self.settings),
            about,
            result["epoch"],
            result[SCORE],
        )


def _tune(
    configs: Sequence[TrainConfig], settings: Sequence[dict[str, Any]], parent: str, tracking_uri: str, at_once: int
) -> list[tuple[Trial, Fitted | None]]:
    """Every trial, with what it left unless it was stopped or failed."""
    folder = os.getcwd()

    def run(chosen: dict[str, int]) -> None:
        """In a process of its own, on the driver's node: MLflow may listen there only."""
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        reported = 0

        def report(metrics: dict[str, float]) -> None:
            nonlocal reported
            if metrics["epoch"] > reported:
                reported = int(metrics["epoch"])
                tune.report({SCORE: metrics[SCORE], "epoch": reported})

        tags = {"mlflow.parentRunId": parent, TRIAL: str(chosen["number"])}
        with fitted(plan(configs[chosen["number"]]), tags, report) as found:
            pass
        left = {"checkpoint": found.checkpoint.path, "run_id": found.run_id, "metrics": found.metrics}
        tune.report({SCORE: found.metrics[SCORE], "epoch": reported, "left": left})

    storage = locate(configs[0].storage)
    # Trainings of settings that fall behind end at epochs 1, 2, 4, ...; none is stopped for having come to its end.
    scheduler = ASHAScheduler(
        "epoch", max_t=2 * max(one.epochs for one in configs), grace_period=1, reduction_factor=KEPT
    )
    results = tune.Tuner(
        tune.with_resources(run, {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}),
        param_space={"number": tune.grid_search(list(range(len(configs))))},
        tune_config=tune.TuneConfig(metric=SCORE, mode="max", scheduler=scheduler, max_concurrent_trials=at_once),
        run_config=tune.RunConfig(
            name=f"sweep-{parent}",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            callbacks=[_Log(settings)],
            verbose=0,
        ),
    ).fit()
    runs = {int(child.data.tags[TRIAL]): child for child in tracking.children(parent)}
    trials: list[tuple[Trial, Fitted | None]] = []
    for result in (results[place] for place in range(len(results))):
        number, metrics, left = (result.config or {})["number"], result.metrics or {}, None
        state: Literal["finished", "stopped early", "failed"] = "stopped early"
        if result.error:
            state = "failed"
            log.warning("trial %s failed: %s", number + 1, str(result.error).strip().splitlines()[-1])
        elif "left" in metrics:
            found = metrics["left"]
            checkpoint = Location(storage.filesystem, found["checkpoint"], found["checkpoint"])
            left, state = Fitted(found["run_id"], checkpoint, found["metrics"]), "finished"
        elif number in runs:
            tracking.close_stopped(runs[number].info.run_id)
        run_id = runs[number].info.run_id if number in runs else None
        trial = Trial(settings[number], metrics.get("epoch", 0), metrics.get(SCORE, 0.0), run_id, state)
        trials.append((trial, left))
    return trials
