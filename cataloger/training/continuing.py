"""A training that goes on from a trained model: its encoder, and what it knows of the categories that both have."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cataloger.bundle import digest, read_spec
from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.seen import Seen
from cataloger.errors import ConfigError
from cataloger.infra import deciding, places, tracking
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import check_writable, locate
from cataloger.model import registry
from cataloger.spec import Spec

log = logging.getLogger(__name__)
# What says on which side of a split a row falls, and is a flag of a training.
SPLIT = ("test_fraction", "test_start", "group_column")


@dataclass(frozen=True)
class Begun:
    """The trained model that a training goes on from."""

    name: str
    """NAME/VERSION, or where it lies."""
    categories: frozenset[str]
    held_out: float | None
    """The share of its catalog that was held out for validation; None where it had another catalog for that, or is not known."""
    saw: Seen | None = None
    """The rows that it was trained on or validated by."""

    def knows(self, categories: Sequence[str]) -> bool:
        """Whether it has learnt most of these: a model of another catalog has not."""
        return 2 * len(self.categories.intersection(categories)) >= len(categories)


def continued(config: TrainConfig) -> tuple[TrainConfig, Begun]:
    """(with a base model, in the storage that all nodes reach, that is made of the trained one; which one this is). Raises CatalogerError."""
    from cataloger.model.student import write_student

    if config.base_model.startswith(("models:/", "runs:/")):
        tracking.connect()
    source = registry.fetch_model(config.base_model)
    spec = read_spec(source.folder)
    for holds, what in (
        (not spec.network, "has no network to go on with"),
        (bool(spec.picture), "sees pictures, and only a model of texts can be gone on with"),
        (
            bool(spec.tags or spec.others),
            "gives tags, or several answers, and only a model of categories can be gone on with",
        ),
    ):
        if holds:
            raise ConfigError(f"--base-model {config.base_model}: {what}; name another base model")
    if spec.text_columns != config.text_columns:
        log.warning(
            "--base-model %s reads %s; this training reads %s",
            config.base_model,
            " ".join(spec.text_columns),
            " ".join(config.text_columns),
        )
    storage = locate(places.place(config.storage, "--storage"))
    check_writable(storage)
    _check_split(config, spec)
    place = storage / f"from-{digest(source.folder)}-{deciding.digest_of_first_weights()}"
    if not (place / "config.json").exists():
        with working_folder("base") as aside:
            write_student(source.folder, aside / "base", None)
            place.write_folder(aside / "base", last="config.json")
    log.info("going on from %s, which knows %s categories", config.base_model, f"{len(spec.categories):,}")
    begun = Begun(
        source.version or source.uri,
        frozenset(spec.categories),
        spec.validation_fraction or None,
        seen.read(source.folder),
    )
    return replace(config, base_model=place.path if place.is_local else place.uri), begun


def _check_split(config: TrainConfig, spec: Spec) -> None:
    """Warns where rows that the model has learnt from would judge the one that it becomes."""
    if config.eval_catalog:
        return
    other = [name for name in SPLIT if getattr(config, name) != getattr(spec, name)]
    if not spec.validation_fraction or (config.validation_fraction or 0.0) > (spec.validation_fraction or 1.0):
        other.append("validation_fraction")
    if other:
        flags = " ".join(f"--{name.replace('_', '-')}" for name in other)
        log.warning(
            "--base-model %s was trained with another split (%s): rows that it has learnt from may judge this training, and make it look too "
            "good; use the same split, or judge by another catalog (--eval-catalog)",
            config.base_model,
            flags,
        )


def check_keeping(config: TrainConfig, goes_on: bool) -> None:
    """Raises ConfigError where --keep-old cannot be."""
    if config.keep_old is None:
        return
    if not 0 <= config.keep_old <= 1:
        raise ConfigError(f"--keep-old {config.keep_old}: must be from 0 to 1")
    if not goes_on:
        raise ConfigError("--keep-old: is for going on from a trained model; name one as --base-model, or leave it out")
    if other := chooses_rows(config):
        raise ConfigError(f"--keep-old: also chooses what is learnt from; leave it out with {other}")


def chooses_rows(config: TrainConfig) -> str:
    """The flag that says which rows are learnt from, or how often, where there is one."""
    if config.long_tail in ("sampling", "augmentation"):
        return f"--long-tail {config.long_tail}"
    for name in ("pretrain_epochs", "pseudo_labels", "group_balance"):
        if getattr(config, name):
            return f"--{name.replace('_', '-')}"
    return ""
