"""A training that goes on from a trained model: its encoder, and what it knows of the categories that both have."""

import logging
from dataclasses import replace
from pathlib import Path

from cataloger.bundle import SPEC, digest, read_spec
from cataloger.config import TrainConfig
from cataloger.errors import ConfigError
from cataloger.infra import places, tracking
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import check_writable, locate
from cataloger.model import registry

log = logging.getLogger(__name__)


def is_trained(base_model: str) -> bool:
    """Whether this names a model of ours."""
    return base_model.startswith(("models:/", "runs:/")) or (Path(base_model).expanduser() / SPEC).is_file()


def continued(config: TrainConfig) -> TrainConfig:
    """With a base model, in the storage that all nodes reach, that is made of the trained one. Raises CatalogerError."""
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
    place = storage / f"from-{digest(source.folder)}"
    if not (place / "config.json").exists():
        with working_folder("base") as aside:
            write_student(source.folder, aside / "base", None)
            place.write_folder(aside / "base", last="config.json")
    log.info("going on from %s, which knows %s categories", config.base_model, f"{len(spec.categories):,}")
    return replace(config, base_model=place.path if place.is_local else place.uri)
