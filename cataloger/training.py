"""The driver's side of fine-tuning: check, ingest with Ray Data, train with Ray Train, register in MLflow."""

import functools
import hashlib
import importlib.util
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer

from cataloger import progress, registry, runtime, sample, tracking, vitals
from cataloger.bundle import Spec, base_model_folder, encoder_layers, load_tokenizer, mask_token, resolve_pooling
from cataloger.catalog import Catalog, grouped, is_list, open_catalog
from cataloger.config import SampleConfig, TrainConfig
from cataloger.errors import CatalogError, ConfigError, TrainingError
from cataloger.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.ingest import Source, ingest, wants_unlabelled
from cataloger.labels import count_labels, normalise_labels
from cataloger.storage import Location, check_writable, locate
from cataloger.taxonomy import Taxonomy

log = logging.getLogger(__name__)
# Machines that may be lost; preempted ones, that the cloud announces, don't count.
MAX_FAILURES = 8
# How often a training of MIN:MAX workers looks whether it can have more; it goes on from its last checkpoint then.
LOOK_FOR_WORKERS_SECONDS = 60.0
# In a training's folder, beside Ray's checkpoints.
BEGUN, DONE = "_begun", "_done"
# A training that was interrupted may go on with other hardware.
NOT_DECISIVE = ("num_workers", "use_gpu", "checkpoint_minutes")


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind."""

    model_uri: str
    run_id: str
    metrics: dict[str, float]


def train(config: TrainConfig) -> TrainResult:
    """Fine-tune, keep the best epoch by validation weighted F1, register it. Raises CatalogerError before any work is lost."""
    _check(config)
    taxonomy, sources = _open(config)
    folder = base_model_folder(config.base_model)
    _check_base(config, folder)
    multi_label = is_list(sources[0].catalog.schema.field(config.label_column).type)
    if multi_label:
        _check_multi_label(config)
    spec = Spec(
        categories=taxonomy.categories,
        text_columns=config.text_columns,
        max_tokens=config.max_tokens,
        pooling=resolve_pooling(folder, config.pooling),
        catalog_fingerprint=sources[0].catalog.fingerprint,
        test_fraction=config.test_fraction,
        test_start=config.test_start,
        multi_label=multi_label,
        group_column=config.group_column,
    )
    storage = locate(config.storage)
    check_writable(storage)
    tracking_uri = tracking.connect()
    attempt = _begin_or_resume(storage, config, [source.catalog.fingerprint for source in sources])
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        gpu = runtime.wants_gpu(config.use_gpu)
        workers = runtime.training_workers(config.num_workers, gpu)
        name, tags = Path(config.base_model).name, {"pooling": spec.pooling}
        with (
            tracking.run("train", name, config, sources[0].catalog, tags, attempt.mlflow_run) as run_id,
            vitals.watch(run_id),
        ):
            (attempt.folder / BEGUN).write(run_id.encode())
            result = _run(config, spec, sources, attempt.folder, workers, gpu, run_id)
            (attempt.folder / DONE).write(b"")
            return result


@dataclass(frozen=True)
class _Attempt:
    """Where a training run keeps its checkpoints, and the MLflow run that it goes on with after a crash."""

    folder: Location
    mlflow_run: str | None = None


def _begin_or_resume(storage: Location, config: TrainConfig, fingerprints: Sequence[str]) -> _Attempt:
    """The first attempt at this training that is neither done nor at work: the same command after a crash goes on with it."""
    decisive = {key: value for key, value in asdict(config).items() if key not in NOT_DECISIVE}
    name = hashlib.sha256(json.dumps([decisive, *fingerprints]).encode()).hexdigest()[:16]
    for number in itertools.count(1):
        folder = storage / f"{name}-{number}"
        if not (folder / BEGUN).exists():
            return _Attempt(folder)
        mlflow_run = (folder / BEGUN).read().decode()
        # MLflow knows who is at work: `tracking.connect` has closed the runs of this machine's dead processes.
        if not (folder / DONE).exists() and tracking.status(mlflow_run) in ("KILLED", "FAILED"):
            log.info("resuming the training in %s", folder)
            return _Attempt(folder, mlflow_run)
    raise AssertionError("itertools.count has no end")


def _run(
    config: TrainConfig,
    spec: Spec,
    sources: Sequence[Source],
    folder: Location,
    workers: tuple[int, int],
    gpu: bool,
    run_id: str,
) -> TrainResult:
    blocks = ingest(sources, config)
    uses = np.concatenate([ray.get(block).column("use").to_numpy() for block in blocks])
    rows, held_out, unlabelled = (int((uses == use).sum()) for use in (TRAINING, VALIDATION, UNLABELLED))
    if not held_out or not rows:
        raise ConfigError(
            f"{held_out} of {held_out + rows} usable rows fall on the validation side; both sides need some: change --validation-fraction"
        )
    left_out = sum(source.catalog.rows for source in sources) - len(uses)
    log.info(
        "training on %s rows, validating on %s, %s unlabelled, %s left out (no text, no category, or in the test split)",
        *(f"{n:,}" for n in (rows, held_out, unlabelled, left_out)),
    )
    log.info(
        "%s categories, %s pooling, %s worker(s) on %s",
        len(spec.categories),
        spec.pooling,
        config.num_workers,
        "GPU" if gpu else "CPU",
    )

    def train_loop(setup: dict[str, Any]) -> None:
        # A local function travels by value: neither the driver nor Ray Train's controller imports the heavy loop.
        from cataloger.errors import CatalogerError
        from cataloger.loop import Loop

        try:
            Loop(**setup).run()
        except CatalogerError as problem:
            ray.get(setup["board"].give_up.remote(str(problem)))
            raise

    report = functools.partial(tracking.log_steps, run_id)
    total = config.epochs * rows + config.pretrain_epochs * (rows + unlabelled)
    with progress.remote_meter("train", total, report) as board:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"config": config, "spec": spec, "board": board, "blocks": blocks},
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
                    num_to_keep=2, checkpoint_score_attribute="val_weighted_f1", checkpoint_score_order="max"
                ),
            ),
        )
        try:
            result = trainer.fit()
        finally:
            if reason := ray.get(board.reason_to_give_up.remote()):
                raise TrainingError(reason)
    best, metrics = max(result.best_checkpoints or [], key=lambda pair: float(pair[1]["val_weighted_f1"]))
    with best.as_directory() as checkpoint:
        uri = registry.register(Path(checkpoint) / "bundle", config.model_name, run_id)
    log.info(
        "registered %s as challenger; best epoch: accuracy %.4f, weighted F1 %.4f on validation",
        uri,
        metrics["val_accuracy"],
        metrics["val_weighted_f1"],
    )
    return TrainResult(uri, run_id, {key: float(value) for key, value in metrics.items()})


def _check(config: TrainConfig) -> None:
    for name in ("epochs", "patience", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    for name in ("validation_fraction", "test_fraction", "test_start", "warmup_fraction", "label_smoothing", "dropout"):
        if not 0 <= (getattr(config, name) or 0) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 0 and below 1")
    for name in ("average_decay", "layer_decay", "pseudo_labels"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be from 0 to 1")
    for name in ("checkpoint_minutes", "adversarial", "pretrain_epochs"):
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 0")
    if config.level_weights != "auto" and min(config.level_weights, default=0) < 0:
        raise ConfigError(f"--level-weights {min(config.level_weights)}: must be at least 0")
    if config.max_tokens < 3:
        raise ConfigError(f"--max-tokens {config.max_tokens}: must be at least 3, two of them are special tokens")
    if config.unlabelled_catalog and not wants_unlabelled(config):
        raise ConfigError(
            "--unlabelled-catalog: is of use with --pretrain-epochs or --pseudo-labels only; add one of them"
        )
    if not config.text_columns:
        raise ConfigError("--text-columns: name at least one column")


def _check_multi_label(config: TrainConfig) -> None:
    if config.long_tail not in ("off", "focal"):
        raise ConfigError(
            f"--long-tail {config.long_tail}: is for one category per product; with lists of them use off or focal"
        )
    for name in ("level_weights", "label_smoothing", "pseudo_labels"):
        if getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for one category per product; leave it out where they have lists of them"
            )


def _check_base(config: TrainConfig, base: Path) -> None:
    """Whether the base model can be trained in the way that is asked for."""
    tokenizer, layers, fine_tune = load_tokenizer(base, config.max_tokens), encoder_layers(base), config.fine_tune
    if fine_tune not in ("all", "head", "lora") and not (fine_tune.isdecimal() and 1 <= int(fine_tune) <= layers):
        raise ConfigError(f"--fine-tune {fine_tune}: must be all, head, lora, or a number of layers from 1 to {layers}")
    if fine_tune == "lora" and importlib.util.find_spec("peft") is None:
        raise ConfigError("--fine-tune lora: needs the package peft; pip install '.[lora]'")
    if config.pretrain_epochs and mask_token(tokenizer) is None:
        raise ConfigError(
            f"--pretrain-epochs: base model {config.base_model} has no token that masks a word; leave it out"
        )


def _open(config: TrainConfig) -> tuple[Taxonomy, list[Source]]:
    """The taxonomy of the training catalog, and the catalogs to read. Raises CatalogError."""
    uri = config.catalog or _sample_catalog()
    opened = [(TRAINING, *_count(uri, config))]
    if config.eval_catalog:
        opened.append((VALIDATION, *_count(config.eval_catalog, config)))
        first, second = (one[1].schema.field(config.label_column).type for one in opened)
        if is_list(first) != is_list(second):
            raise CatalogError(
                f"catalog {config.eval_catalog}: column {config.label_column!r} is {second}, that of --catalog {first}; "
                "both need one category per row, or lists of them"
            )
    names, rows = opened[0][2:]
    if len(rows) < 2:
        found = f"only one category, {next(iter(rows))!r}" if rows else "no category"
        raise CatalogError(
            f"catalog {uri}: column {config.label_column!r} has {found}; a classifier needs at least two"
        )
    single = sum(count == 1 for count in rows.values())
    if single:
        log.info("%s of %s categories have a single product: kept, but hardly learnable", single, len(rows))
    taxonomy = Taxonomy.from_paths(rows)
    upper, weights = taxonomy.depth - 1, len(config.level_weights)
    if config.level_weights != "auto" and weights > 1 and weights != upper:
        raise ConfigError(
            f"--level-weights: has {weights} numbers, but the categories have {upper} upper levels; give one for each, or one for all"
        )
    sources = []
    for use, catalog, names, rows in opened:
        unknown = [path for path in rows if path not in taxonomy.label_ids]
        if unknown:
            log.info(
                "%s: %s categories do not occur in the training catalog; their rows count as errors",
                catalog.location,
                len(unknown),
            )
        label_ids = {written: taxonomy.label_ids.get(path, -1) for written, path in names.items()}
        sources.append(Source(catalog, label_ids, use))
    if config.unlabelled_catalog:
        catalog = open_catalog(
            config.unlabelled_catalog, config.id_column, config.text_columns, others=grouped(config.group_column)
        )
        sources.append(Source(catalog, {}, UNLABELLED))
    return taxonomy, sources


def _count(uri: str, config: TrainConfig) -> tuple[Catalog, dict[str, str], dict[str, int]]:
    catalog = open_catalog(
        uri, config.id_column, config.text_columns, config.label_column, grouped(config.group_column)
    )
    names, rows = normalise_labels(count_labels(catalog, config.label_column), uri, config.label_column)
    return catalog, names, rows


def _sample_catalog() -> str:
    folder = Path("sample-catalog/labelled")
    if not folder.exists():
        log.info("no --catalog: generating a sample catalog in %s", folder)
        sample.generate(SampleConfig(output=str(folder), labelled=True))
    return str(folder)
