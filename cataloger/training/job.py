"""The driver's side of fine-tuning: ingest with Ray Data, train with Ray Train, register in MLflow."""

import hashlib
import itertools
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from cataloger.bundle import read_spec
from cataloger.config import TrainConfig
from cataloger.curation.moves import read_moves
from cataloger.data.seen import Seen
from cataloger.errors import CheckpointError, ConfigError, TrainingError
from cataloger.infra import places, progress, runtime, tracking, vitals
from cataloger.infra.progress import StepMetric
from cataloger.infra.storage import Location
from cataloger.model import registry
from cataloger.spec import TAGS
from cataloger.training import claims, words
from cataloger.training.answers import check_reached, check_told
from cataloger.training.attributes import AUTO, OFF, with_learnt_attributes
from cataloger.training.census import LEARNT, census, seen_rows
from cataloger.training.checkpoint import RANK
from cataloger.training.claims import Claim
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.training.plan import Plan, plan
from cataloger.training.rows import ingest
from cataloger.training.tokens import smaller_base

log = logging.getLogger(__name__)
# Machines that may be lost; preempted ones, that the cloud announces, don't count.
MAX_FAILURES = 8
# How often a training of MIN:MAX workers looks whether it can have more; it goes on from its last checkpoint then.
LOOK_FOR_WORKERS_SECONDS = 60.0
# Part of a training's name: raised when what an earlier version left unfinished must not be gone on with.
LAYOUT = 4
# A training that was interrupted may go on with other hardware.
NOT_DECISIVE = ("num_workers", "use_gpu", "checkpoint_minutes")


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind."""

    model_uri: str
    run_id: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """A training that has ended: the checkpoint of its best epoch and that one's metrics."""

    run_id: str
    checkpoint: Location
    metrics: dict[str, float]


class Watcher(Protocol):
    """Follows a training and may stop it."""

    def begun(self, stop: Callable[[str], None]) -> None:
        """`stop(reason)` ends the training soon, with a TrainingError that gives the reason."""

    def validated(self, metrics: dict[str, float]) -> None:
        """The metrics of an epoch; those of one that was repeated after a crash come twice."""


def train(config: TrainConfig) -> TrainResult:
    """Fit words, fine-tune a network unless there is to be none, keep the epoch of the highest weighted F1 on validation, register it.

    Raises CatalogerError before any work is lost.
    """
    planned = plan(config)
    with fitted(planned) as found:
        uri = register(found, config.model_name)
    return TrainResult(uri, found.run_id, found.metrics)


@contextmanager
def fitted(
    planned: Plan, tags: Mapping[str, str] = MappingProxyType({}), watcher: Watcher | None = None
) -> Iterator[Fitted]:
    """A training that has just ended, within its MLflow run, which has these tags.

    The same plan and tags after a crash go on where it was: the claim on the training's folder has the MLflow run.
    """
    config, sources = planned.config, planned.sources
    tracking_uri = tracking.connect()
    fingerprints = [source.catalog.fingerprint for source in sources]
    with runtime.session():
        places.check_shared(planned.storage, "--storage")
        tracking.check_nodes(tracking_uri)
        gpu = runtime.wants_gpu(config.use_gpu)
        workers = runtime.training_workers(config.num_workers, gpu)
        own = {"pooling": planned.spec.pooling, "model_name": config.model_name, **tags}
        own |= {"goes_on_from": planned.goes_on_from} if planned.goes_on_from else {}
        told = [repr(planned.spec.others)] if config.category_attributes not in (AUTO, OFF) else []
        told += [sources[0].corrections.digest] if sources[0].corrections else []
        told += [repr(sorted(read_moves(config.tree_map).items()))] if config.tree_map else []
        told += [planned.lessons.path.rpartition("/")[2]] if planned.lessons else []
        while True:
            with _begin_or_resume(planned.storage, config, [*fingerprints, *tags.values(), *told]) as claim:
                begun = claim.note
                again = begun if begun and tracking.status(begun) else None
                try:
                    with (
                        tracking.run("train", config.model_name, config, sources[0].catalog, own, again) as run_id,
                        vitals.watch(run_id),
                    ):
                        claim.renew(note=run_id)
                        best, metrics = _fit(planned, claim, workers, gpu, run_id, watcher)
                        claim.renew()
                        yield Fitted(run_id, Location(best.filesystem, best.path, best.path), metrics)
                        claim.finish()
                        return
                except CheckpointError as problem:
                    if not begun:
                        raise
                    log.warning("%s; beginning anew", problem)
                    claim.finish()


def register(found: Fitted, name: str) -> str:
    """The URI of the new version, which is the challenger; within the training's MLflow run."""
    checkpoint = ray.train.Checkpoint(found.checkpoint.path, found.checkpoint.filesystem)
    with checkpoint.as_directory() as folder:
        uri, first = registry.register(Path(folder) / "bundle", name, found.run_id)
        joined = read_spec(Path(folder) / "bundle").words
    scores = found.metrics
    if "val_network_accuracy" in scores:
        log.info(
            "accuracy on validation: words alone %.3f, network alone %.3f, both %.3f",
            *(scores[f"val_{name}accuracy"] for name in ("words_", "network_", "")),
        )
    if joined and joined.certificate:
        log.info("%s", joined.certificate)
    if "val_coverage_without_tiers" in scores:
        with_tiers, without = scores["val_coverage"], scores["val_coverage_without_tiers"]
        log.info(
            "labels that need no review: %.0f%% with tiers, %.0f%% when labelled with --tiers off",
            100 * with_tiers,
            100 * without,
        )
    log.info(
        "registered %s as %s; accuracy %.4f, weighted F1 %.4f on validation",
        uri,
        "champion, the first of its name" if first else "challenger",
        scores["val_accuracy"],
        scores["val_weighted_f1"],
    )
    return uri


def _begin_or_resume(storage: Location, config: TrainConfig, fingerprints: Sequence[str]) -> Claim:
    """The first folder of this training that is neither done nor at work: the same command after a crash goes on in it."""
    decisive = {"layout": LAYOUT} | {key: value for key, value in asdict(config).items() if key not in NOT_DECISIVE}
    name = hashlib.sha256(json.dumps([decisive, *fingerprints]).encode()).hexdigest()[:16]
    for number in itertools.count(1):
        folder = storage / f"train-{name}-{number}"
        claim = claims.take(folder)
        if claim:
            if claim.note:
                log.info("resuming the training in %s", folder)
            return claim
    raise AssertionError("itertools.count has no end")


def _fit(
    planned: Plan,
    claim: Claim,
    workers: tuple[int, int],
    gpu: bool,
    run_id: str,
    watcher: Watcher | None,
) -> tuple[ray.train.Checkpoint, dict[str, float]]:
    """(the checkpoint of the best epoch, its metrics)"""
    config, spec, sources, folder = planned.config, planned.spec, planned.sources, claim.folder
    if spec.network and spec.text_columns:
        catalogs = [source.catalog for source in sources]
        config = replace(config, base_model=smaller_base(config, catalogs, folder / "base", spec.tags))
    log.info("reading %s rows", f"{sum(source.catalog.rows for source in sources):,}")
    blocks = ingest(sources, config)
    found = census(blocks)
    if found.not_utf8:
        log.warning(
            "%s row(s) left out, whose text is not valid UTF-8; the first is %s",
            f"{found.not_utf8:,}",
            found.first_not_utf8,
        )
    rows, held_out, unlabelled = (found.rows[use] for use in (TRAINING, VALIDATION, UNLABELLED))
    if held_out and not rows and config.eval_catalog:
        raise ConfigError(
            f"--eval-catalog {config.eval_catalog}: has all rows of --catalog with a category that could be learnt; name rows to judge by that "
            "are not there"
        )
    if not held_out or not rows:
        raise ConfigError(
            f"{held_out} of {held_out + rows} usable rows fall on the validation side; both sides need some: change --validation-fraction"
        )
    read = sum(source.catalog.rows for source in sources)
    read += len(sources[0].corrections.rows) if sources[0].corrections else 0
    left_out = read - rows - held_out - unlabelled
    log.info(
        "training on %s rows, validating on %s, %s unlabelled, %s left out (no readable text, no category, or in the test split)",
        *(f"{n:,}" for n in (rows, held_out, unlabelled, left_out)),
    )
    if spec.picture:
        check_reached(found)
        log.info("%s of these rows have a picture that could be read", f"{found.pictured:,}")
    if spec.others:
        check_told(found, config.label_column)
    if found.tags_left_out:
        log.warning(
            "tags left out: %s", ", ".join(f"{count:,} {why}" for why, count in found.tags_left_out.most_common())
        )
        tracking.log_metrics({"tags_left_out": float(found.tags_left_out.total())})
    spec = with_learnt_attributes(spec, blocks, config)
    fitted_words = (
        words.fit(blocks, found, spec, folder / "words", config)
        if spec.text_columns and not (spec.tags or spec.others)
        else None
    )
    # Of rows without a category, those are learnt from that a model or teachers label.
    uses = (*LEARNT, *([UNLABELLED] if config.pseudo_labels or planned.lessons else []))
    saw = seen_rows(blocks, uses, sum(found.rows[use] for use in uses))
    before = planned.seen_before
    # Of samples that earlier versions took, little may be left that both speak of: then this training's own is better.
    if before and (both := Seen.union([saw, before])).tells_enough(saw):
        saw = both
    if not spec.network:
        assert fitted_words
        metrics = words.train_alone(fitted_words, blocks, spec, config, saw)
        tracking.log_metrics(metrics)
        if watcher:
            watcher.validated({**metrics, "epoch": 1.0})
        where = words.alone(fitted_words)
        return ray.train.Checkpoint(where.path, where.filesystem), metrics
    answers = [
        f"{len(one.categories):,} {'names of tags' if one.head == TAGS else 'categories'}" for one in spec.answers
    ]
    log.info(
        "%s, %s pooling, %s worker(s) on %s",
        " and ".join(answers),
        spec.pooling,
        config.num_workers,
        "GPU" if gpu else "CPU",
    )

    def train_loop(setup: dict[str, Any]) -> None:
        # A local function travels by value: neither the driver nor Ray Train's controller imports the heavy loop.
        from cataloger.errors import CatalogerError
        from cataloger.training.loop import Loop

        try:
            Loop(**setup).run()
        except CatalogerError as problem:
            ray.get(setup["board"].give_up.remote(problem))
            raise

    def take(metrics: list[StepMetric]) -> None:
        tracking.log_steps(run_id, metrics)
        validated = {name: value for name, value, *_ in metrics if name == "epoch" or name.startswith("val_")}
        if watcher and validated:
            watcher.validated(validated)

    assert config.epochs is not None, "chosen by the plan"
    taught = unlabelled if planned.lessons else 0
    total = config.epochs * (rows + taught) + config.pretrain_epochs * (rows + unlabelled)
    total += rows + held_out if config.fold_back else 0
    with progress.remote_meter("train", total, take) as board:

        def stop(reason: str) -> None:
            with suppress(ray.exceptions.RayActorError):  # it has just ended
                ray.get(board.give_up.remote(TrainingError(reason)))

        claim.when_lost(stop)
        if watcher:
            watcher.begun(stop)
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={
                "config": config,
                "spec": spec,
                "board": board,
                "blocks": blocks,
                # References alone are the same in another session of Ray.
                "key": secrets.token_hex(8),
                "saw": saw,
                "words": fitted_words,
                "lessons": planned.lessons,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers[0] if workers[0] == workers[1] else workers,  # type: ignore[arg-type]  # (min, max)
                use_gpu=gpu,
                resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
                elastic_resize_monitor_interval_s=LOOK_FOR_WORKERS_SECONDS,  # type: ignore[call-arg]
            ),
            run_config=ray.train.RunConfig(
                name=folder.path.rpartition("/")[2],
                storage_path=folder.parent.path,
                storage_filesystem=folder.filesystem,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=2, checkpoint_score_attribute=RANK, checkpoint_score_order="max"
                ),
            ),
        )
        try:
            result = trainer.fit()
        except ray.exceptions.RayActorError as error:
            if "CheckpointManagerInitializationError" in str(error):
                raise CheckpointError(f"{folder}: its list of checkpoints cannot be read") from error
            raise
        finally:
            if reason := ray.get(board.reason_to_give_up.remote()):
                raise reason
    kept = [checkpoint for checkpoint, _ in result.best_checkpoints or []] + [result.checkpoint]
    _remove_strays(folder, {checkpoint.path.rpartition("/")[2] for checkpoint in kept if checkpoint})
    if config.fold_back:
        log.info("validation rows are learnt from as well now; scores and thresholds are those of the network before")
    best, metrics = max(result.best_checkpoints or [], key=lambda pair: float(pair[1][RANK]))
    return best, {key: float(value) for key, value in metrics.items() if key != RANK}


def _remove_strays(folder: Location, kept: set[str]) -> None:
    """Remove what is left of checkpoints that were being written, or removed, when a process was killed: Ray has forgotten them."""
    paths = [info.path.removeprefix(f"{folder.path}/").split("/") for info in folder.files()]
    for name in {path[0] for path in paths if path[0].startswith("checkpoint_") and len(path) > 1} - kept:
        (folder / name).delete()
