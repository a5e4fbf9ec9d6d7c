"""The training of a student, or the judging of a mean: planned like any other, from first weights and lessons that lie in the storage."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from cataloger.bundle import read_spec
from cataloger.compression import teachers
from cataloger.config import CompressConfig, TrainConfig
from cataloger.data.catalog import Catalog
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec
from cataloger.training.defaults import batch_size_for, epochs_for, held_out_of
from cataloger.training.lessons import Lessons
from cataloger.training.plan import Plan, plan
from cataloger.training.rows import Source

log = logging.getLogger(__name__)


def student(
    config: CompressConfig, spec: Spec, sources: Sequence[ModelSource], storage: Location, catalog: Catalog
) -> Plan:
    """The training of a student: its first weights and its lessons lie in the storage, by what they are made from. A mean of several
    models is not trained; what goes with its weights is fitted."""
    base = _first_weights(config, sources, storage)
    held_out = 0.0 if config.eval_catalog else spec.validation_fraction or held_out_of(catalog.rows)
    learnt = round(catalog.rows * (1 - spec.test_fraction) * (1 - held_out))  # with or without a category
    planned = plan(
        TrainConfig(
            catalog=config.catalog,
            eval_catalog=config.eval_catalog,
            id_column=config.id_column,
            text_columns=spec.text_columns,
            label_column=(config.label_column,),
            group_column=spec.group_column,
            base_model=base,
            max_tokens=spec.max_tokens,
            epochs=config.epochs or epochs_for(learnt),
            batch_size=batch_size_for(learnt),
            # It would take twice as long; whether it helps here as well was not measured.
            adversarial=0.0,
            test_fraction=spec.test_fraction,
            test_start=spec.test_start,
            validation_fraction=held_out or None,
            target_precision=config.target_precision,
            tiers=config.tiers,
            tier_risk=config.tier_risk,
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            seed=config.seed,
            storage=config.storage,
            experiment=config.experiment,
            model_name=config.model_name,
        )
    )
    numbered = replace(planned.spec, categories=spec.categories)
    if config.average_models:
        settings = replace(planned.config, epochs=0)
        return replace(planned, config=settings, spec=numbered, sources=_by(planned, spec, taught=False))
    asked = planned.sources[0].catalog
    place = storage / f"lessons-{teachers.digest_of(sources, asked.fingerprint, spec.text_columns)}.parquet"
    if not place.exists():
        specs = [read_spec(one.folder).reading(config.text_columns, None) for one in sources]
        given = [teachers.ask(one, own, config, storage) for one, own in zip(sources, specs, strict=True)]
        Lessons.mean(given).write(place)
    return replace(planned, spec=numbered, sources=_by(planned, spec, taught=True), lessons=place)


def _by(planned: Plan, spec: Spec, taught: bool) -> tuple[Source, ...]:
    """The catalog by the model's numbers of categories; rows of one that it does not know have only its answers to learn from."""
    number = {path: label for label, path in enumerate(spec.categories)}
    own = planned.spec.categories
    unknown = sum(path not in number for path in own)
    if unknown:
        log.warning(
            "%s categories of the catalog are none of the model's: their rows are learnt by its answers", f"{unknown:,}"
        )
    return tuple(
        replace(
            source,
            label_ids={
                written: number[own[label]]
                for written, label in source.label_ids.items()
                if label >= 0 and own[label] in number
            },
            taught=taught,
        )
        for source in planned.sources
    )


def _first_weights(config: CompressConfig, sources: Sequence[ModelSource], storage: Location) -> str:
    """The place of what the training begins with."""
    from cataloger.model.student import write_average, write_student

    folders = [one.folder for one in sources]
    what = "mean" if config.average_models else f"student-{config.layers or 'all'}"
    place = storage / f"{what}-of-{teachers.digest_of(sources, what, ())}"
    if not (place / "config.json").exists():
        with working_folder("student") as aside:
            if config.average_models:
                write_average(folders, aside / "base")
            else:
                write_student(folders[0], aside / "base", config.layers)
            place.write_folder(aside / "base", last="config.json")
    return place.path if place.is_local else place.uri
