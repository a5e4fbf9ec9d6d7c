"""The compression job: a student of a model's answers, its vocabulary cut, its numbers in eight bits; each by itself, or all of them."""

import contextlib
import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray.train

from cataloger.bundle import INT8, INT8_WEIGHTS, digest, network_shape, read_spec
from cataloger.compression import precision, teachers
from cataloger.compression.measuring import Figures, measure
from cataloger.compression.texts import reader
from cataloger.config import CompressConfig, TrainConfig
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.errors import ConfigError
from cataloger.infra import places, runtime, tracking, vitals
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import Location, check_writable, locate
from cataloger.labeling.packed import Model
from cataloger.model import registry
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec
from cataloger.training.job import fitted
from cataloger.training.lessons import Lessons
from cataloger.training.plan import Plan, plan
from cataloger.training.rows import Source
from cataloger.training.tokens import used_tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compressed:
    """The new version, what was done to it, and how it compares with the model that it was made from."""

    model_uri: str
    run_id: str
    done: tuple[str, ...]
    before: Figures
    after: Figures
    agreement: float
    """Of the rows that both were asked about, the share with the same answer."""
    rows: int
    """Those."""


def compress(config: CompressConfig) -> Compressed:
    """Make a cheaper model, measure it beside the one it was made from, and register it as challenger.

    The same call after a crash goes on where it was. Raises CatalogerError.
    """
    tracking_uri = tracking.connect()
    sources = [registry.fetch_model(uri) for uri in config.average_models or config.model]
    spec = read_spec(sources[0].folder).reading(config.text_columns, config.image_column)
    _check(config, spec, sources)
    storage = locate(places.place(config.storage, "--storage"))
    check_writable(storage)
    catalog = _open(config, spec)
    about = {"teachers": " ".join(one.uri for one in sources)}
    with contextlib.ExitStack() as stack:
        aside = stack.enter_context(working_folder("compress"))
        bundle = aside / "bundle"
        if config.layers or len(sources) > 1:
            planned = _planned(config, spec, sources, storage)
            found = stack.enter_context(fitted(planned, about))
            run_id, done = found.run_id, [_trained(config)]
            checkpoint = ray.train.Checkpoint(found.checkpoint.path, found.checkpoint.filesystem)
            with checkpoint.as_directory() as folder:
                shutil.copytree(Path(folder) / "bundle", bundle)
        else:
            stack.enter_context(runtime.session())
            tracking.check_nodes(tracking_uri)
            name = Path(catalog.location.path).stem
            run_id, done = stack.enter_context(tracking.run("compress", name, config, catalog, about)), []
            stack.enter_context(vitals.watch(run_id))
            shutil.copytree(sources[0].folder, bundle)
        return _finish(config, catalog, sources[0], spec, bundle, run_id, done)


def _trained(config: CompressConfig) -> str:
    if config.average_models:
        return f"the mean of {len(config.average_models)} models"
    return f"{config.layers} layers" if config.layers else "a student of all"


def _check(config: CompressConfig, spec: Spec, sources: Sequence[ModelSource]) -> None:
    names = " ".join(config.average_models or config.model)
    if len(config.average_models) == 1 or (config.average_models and config.layers):
        reason = "is of several models; name more" if not config.layers else "has no layers fewer; leave out --layers"
        raise ConfigError(f"--average-models {names}: {reason}")
    if not spec.network:
        raise ConfigError(f"model {names}: words alone have no network to make cheaper")
    for other in sources[1:]:
        theirs = read_spec(other.folder)
        if (theirs.categories, theirs.head) != (spec.categories, spec.head):
            raise ConfigError(
                f"model {other.uri}: answers with other categories than {sources[0].uri}; teachers need the same"
            )
    if config.layers is not None and config.layers < 1:
        raise ConfigError(f"--layers {config.layers}: must be at least 1")
    if config.layers or len(sources) > 1:
        what = "--average-models" if config.average_models else "--layers" if config.layers else "several models"
        if spec.tags or spec.others:
            raise ConfigError(f"{what}: is for models that answer with categories alone; leave it out")
        if spec.picture:
            raise ConfigError(f"{what}: is for models that read texts alone; leave it out")
    if config.prune_vocabulary and not spec.text_columns:
        raise ConfigError("--prune-vocabulary: the model reads no text; leave it out")
    if config.precision == "int8":
        precision.check_possible()


def _open(config: CompressConfig, spec: Spec) -> Catalog:
    """The catalog, with its categories where it has some."""
    group = grouped(spec.group_column)
    catalog = open_catalog(config.catalog, config.id_column, spec.text_columns, picture=spec.picture)
    names = set(catalog.files[0].schema.names)
    labels = (config.label_column,) if config.label_column in names else ()
    if (config.layers or len(config.average_models or config.model) > 1) and not labels:
        raise ConfigError(
            f"--layers: catalog {config.catalog} has no column {config.label_column!r}; a student is judged by rows whose category is "
            "known: name another --label-column"
        )
    others = group if all(name in names for name in group) else {}
    return open_catalog(config.catalog, config.id_column, spec.text_columns, labels, others, spec.picture)


def _planned(config: CompressConfig, spec: Spec, sources: Sequence[ModelSource], storage: Location) -> Plan:
    """The training of a student: its first weights and its lessons lie in the storage, by what they are made from. A mean of several
    models is not trained; what goes with its weights is fitted."""
    base = _first_weights(config, sources, storage)
    planned = plan(
        TrainConfig(
            catalog=config.catalog,
            id_column=config.id_column,
            text_columns=spec.text_columns,
            label_column=(config.label_column,),
            group_column=spec.group_column,
            base_model=base,
            max_tokens=spec.max_tokens,
            epochs=config.epochs,
            # What the model says of all categories is more to learn from than its errors are; and it takes half the time.
            adversarial=0.0,
            test_fraction=spec.test_fraction,
            test_start=spec.test_start,
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            seed=config.seed,
            storage=config.storage,
            experiment=config.experiment,
            model_name=config.model_name,
        )
    )
    if planned.spec.head != spec.head:
        raise ConfigError(
            f"--label-column {config.label_column}: the model has another kind of answer than this column"
        )
    numbered = replace(planned.spec, categories=spec.categories)
    if config.average_models:
        settings = replace(planned.config, epochs=0)
        return replace(planned, config=settings, spec=numbered, sources=_by(planned, spec, taught=False))
    asked = planned.sources[0].catalog
    place = storage / f"lessons-{teachers.digest_of(sources, asked.fingerprint)}.parquet"
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
    layers = config.layers or precision.layers_of(folders[0])
    if config.average_models:
        place = storage / f"mean-of-{teachers.digest_of(sources, '')}"
    else:
        place = storage / f"student-{layers}-of-{digest(folders[0])}"
    if not (place / "config.json").exists():
        with working_folder("student") as aside:
            if config.average_models:
                write_average(folders, aside / "base")
            else:
                write_student(folders[0], aside / "base", layers, len(folders) > 1)
            place.write_folder(aside / "base", last="config.json")
    return place.path if place.is_local else place.uri


def _finish(
    config: CompressConfig,
    catalog: Catalog,
    source: ModelSource,
    spec: Spec,
    bundle: Path,
    run_id: str,
    done: list[str],
) -> Compressed:
    """Cut, quantise, measure, register."""
    from cataloger.model.vocabulary import cut_vocabulary

    asked_for = bool(done or config.prune_vocabulary or config.precision)
    if config.prune_vocabulary or (not asked_for and spec.text_columns):
        own = read_spec(bundle).reading(config.text_columns, config.image_column)
        shared = Model(own, digest(bundle), [runtime.share_folder(bundle)])
        used = used_tokens(catalog, functools.partial(reader, shared, catalog.base), network_shape(bundle)[1])
        cut = bundle.with_name("cut")
        try:
            found = cut_vocabulary(bundle, cut, used)
        except ConfigError as problem:
            if config.prune_vocabulary:
                raise
            log.info("%s", problem)
        else:
            done.append(f"{found.after:,} of {found.before:,} tokens")
            log.info("the vocabulary has %s", done[-1])
            _move_rest(bundle, cut)
            bundle = cut
    # A network in eight bits is of the weights that it was made from: of others it is made anew.
    if config.precision == "int8" or (source.folder / INT8).exists() or not asked_for:
        said = precision.quantised(bundle, catalog, config, insist=config.precision == "int8")
        done += [said] if said else []
    if not done:
        raise ConfigError(
            f"model {source.uri}: nothing makes it cheaper on this machine; --layers trains a smaller one"
        )
    before, after, agreement, rows = measure(config, catalog, source, spec, bundle)
    metrics = {
        "agreement": agreement,
        "compressed_rows": float(rows),
        **{f"before_{name}": value for name, value in before.metrics().items()},
        **{f"after_{name}": value for name, value in after.metrics().items()},
    }
    tracking.log_metrics(metrics)
    uri, _ = registry.register(bundle, config.model_name, run_id)
    made = ModelSource(bundle, uri, uri.removeprefix("models:/"))
    registry.tag_version(
        made, {"compressed_from": " ".join(config.average_models or config.model), "compressed_to": ", ".join(done)}
    )
    log.info("registered %s: %s", uri, ", ".join(done))
    return Compressed(uri, run_id, tuple(done), before, after, agreement, rows)


def _move_rest(bundle: Path, cut: Path) -> None:
    """What a bundle has beside its network: words, and which rows were seen."""
    for file in bundle.iterdir():
        if not (cut / file.name).exists() and file.name not in (INT8, INT8_WEIGHTS):
            shutil.copy(file, cut / file.name)
