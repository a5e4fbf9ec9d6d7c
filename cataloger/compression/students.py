"""The training of a student, or the judging of a mean: planned like any other, from first weights and lessons that lie in the storage."""

from collections.abc import Sequence
from dataclasses import replace

from cataloger.bundle import read_spec
from cataloger.compression import teachers
from cataloger.config import CompressConfig, TrainConfig
from cataloger.data.catalog import Catalog
from cataloger.errors import ConfigError
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec
from cataloger.training.defaults import batch_size_for, epochs_for
from cataloger.training.lessons import Lessons
from cataloger.training.plan import Plan, plan


def student(
    config: CompressConfig, spec: Spec, sources: Sequence[ModelSource], storage: Location, catalog: Catalog
) -> Plan:
    """The training of a student: its first weights and its lessons lie in the storage, by what they are made from. A mean of several
    models is not trained; what goes with its weights is fitted."""
    base = _first_weights(config, sources, storage)
    learnt = round(catalog.rows * (1 - spec.test_fraction))  # with or without a category
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
            epochs=epochs_for(learnt) if config.epochs is None else config.epochs,
            batch_size=batch_size_for(learnt),
            # It would take twice as long; whether it helps here as well was not measured.
            adversarial=0.0,
            test_fraction=spec.test_fraction,
            test_start=spec.test_start,
            validation_fraction=None if config.eval_catalog else spec.validation_fraction,
            target_precision=config.target_precision,
            tiers=config.tiers,
            tier_risk=config.tier_risk,
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            seed=config.seed,
            storage=config.storage,
            experiment=config.experiment,
            model_name=config.model_name,
        ),
        spec.categories,
    )
    if config.average_models:
        return replace(planned, config=replace(planned.config, epochs=0))
    if not any(number >= 0 for number in planned.sources[0].label_ids.values()):
        raise ConfigError(
            f"--label-column {config.label_column}: no row of {config.catalog} has a category that the model knows there, and a student is judged by "
            "those; name another column"
        )
    asked = planned.sources[0].catalog
    place = storage / f"lessons-{teachers.digest_of(sources, asked.fingerprint, spec.text_columns)}.parquet"
    if not place.exists():
        specs = [read_spec(one.folder).reading(config.text_columns, None) for one in sources]
        given = [teachers.ask(one, own, config, storage) for one, own in zip(sources, specs, strict=True)]
        Lessons.mean(given).write(place)
    sources_of_rows = tuple(replace(source, taught=True) for source in planned.sources)
    return replace(planned, sources=sources_of_rows, lessons=place)


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
