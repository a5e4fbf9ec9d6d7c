"""A handful of settings, trained through Ray Tune: those that fall behind are stopped early, the best one is registered."""

import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pydantic
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from cataloger.config import TrainConfig
from cataloger.errors import ConfigError, TrainingError
from cataloger.infra import runtime, tracking
from cataloger.infra.storage import Location, locate
from cataloger.training.defaults import MOST_EPOCHS
from cataloger.training.job import Fitted, fitted, register
from cataloger.training.plan import plan

log = logging.getLogger(__name__)
MOST_TRIALS = 100
SCORE = "val_weighted_f1"
# Of the trials that come to epoch 1, 2, 4, ..., the better half goes on.
KEPT = 2
TRIAL = "trial"
STOPPED: Literal["stopped early"] = "stopped early"


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
    # YAML takes `off` for no, where it is the name of a choice.
    settings = {
        name: "off" if value is False and fields[name].type is not bool else value for name, value in settings.items()
    }
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


class _Training(tune.Trainable):
    """One trial, in a process of its own on the driver's node: MLflow may listen there only.

    It trains in a thread. Tune kills what it stops; a training killed like that leaves its workers, and their CPUs and
    GPUs, to a controller that nobody asks any more. So `cleanup`, which Tune waits for, lets the training end by itself.
    """

    def setup(  # type: ignore[override]  # with_parameters adds the others
        self, config: dict[str, int], configs: list[TrainConfig], parent: str, tracking_uri: str, folder: str
    ) -> None:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        self.reports: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self.stop_training: Callable[[str], None] | None = None
        self.epoch = 0
        number = config["number"]
        tags = {"mlflow.parentRunId": parent, TRIAL: str(number)}
        self.thread = threading.Thread(target=self._train, args=(configs[number], tags), daemon=True)
        self.thread.start()

    def step(self) -> dict[str, Any]:
        """The next epoch's result; the last one comes twice, with what the training left."""
        report = self.reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray Train has them."""

    def cleanup(self) -> None:
        """Of a trial that has ended or is to be stopped."""
        if self.stop_training and self.thread.is_alive():
            self.stop_training(STOPPED)
        self.thread.join()

    def begun(self, stop: Callable[[str], None]) -> None:
        self.stop_training = stop

    def validated(self, metrics: dict[str, float]) -> None:
        if metrics["epoch"] > self.epoch:
            self.epoch = int(metrics["epoch"])
            self.reports.put({SCORE: metrics[SCORE], "epoch": self.epoch})

    def _train(self, config: TrainConfig, tags: dict[str, str]) -> None:
        try:
            with fitted(plan(config), tags, watcher=self) as found:
                pass
            left = {"checkpoint": found.checkpoint.path, "run_id": found.run_id, "metrics": found.metrics}
            self.reports.put({SCORE: found.metrics[SCORE], "epoch": self.epoch, "left": left, "done": True})
        except BaseException as error:  # to be raised where Tune sees it
            self.reports.put(error)


def _tune(
    configs: Sequence[TrainConfig], settings: Sequence[dict[str, Any]], parent: str, tracking_uri: str, at_once: int
) -> list[tuple[Trial, Fitted | None]]:
    """Every trial, with what it left unless it was stopped or failed."""
    trainable = tune.with_parameters(
        _Training, configs=list(configs), parent=parent, tracking_uri=tracking_uri, folder=os.getcwd()
    )
    storage = locate(configs[0].storage)
    # None is stopped for having come to its last epoch.
    most = 2 * max(one.epochs or MOST_EPOCHS for one in configs)
    scheduler = ASHAScheduler("epoch", max_t=most, grace_period=1, reduction_factor=KEPT)
    results = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0, f"node:{ray.util.get_node_ip_address()}": 0.001}),
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
        state: Literal["finished", "stopped early", "failed"] = STOPPED
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
