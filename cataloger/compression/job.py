"""The compression job: a student of a model's answers, its vocabulary cut, its numbers in eight bits; each by itself, or all of them."""

import contextlib
import functools
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray.train

from cataloger.bundle import INT8, INT8_WEIGHTS, digest, network_shape, read_spec
from cataloger.compression import precision
from cataloger.compression.checks import check, opened
from cataloger.compression.measuring import Figures, measure
from cataloger.compression.students import student
from cataloger.compression.texts import reader
from cataloger.config import CompressConfig
from cataloger.data import seen
from cataloger.data.catalog import Catalog
from cataloger.data.seen import Seen
from cataloger.errors import ConfigError
from cataloger.infra import places, runtime, tracking, vitals
from cataloger.infra.node_cache import working_folder
from cataloger.infra.storage import check_writable, locate
from cataloger.labeling.packed import Model
from cataloger.model import registry
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec
from cataloger.training.job import fitted
from cataloger.training.tokens import used_tokens

log = logging.getLogger(__name__)
# A vocabulary is cut by itself where that leaves at most this share of it.
MOST_KEPT = 0.9


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
    check(config, spec, sources)
    storage = locate(places.place(config.storage, "--storage"))
    check_writable(storage)
    catalog = opened(config.catalog, config, spec)
    judge = opened(config.eval_catalog, config, spec) if config.eval_catalog else None
    about = {"teachers": " ".join(one.uri for one in sources)}
    with contextlib.ExitStack() as stack:
        aside = stack.enter_context(working_folder("compress"))
        bundle = aside / "bundle"
        if config.layers or len(sources) > 1:
            planned = student(config, spec, sources, storage, catalog)
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
        return _finish(config, catalog, judge, sources, spec, bundle, run_id, done)


def _trained(config: CompressConfig) -> str:
    if config.average_models:
        return f"the mean of {len(config.average_models)} models"
    return f"{config.layers} layers" if config.layers else "a student of all"


def _finish(
    config: CompressConfig,
    catalog: Catalog,
    judge: Catalog | None,
    sources: Sequence[ModelSource],
    spec: Spec,
    bundle: Path,
    run_id: str,
    done: list[str],
) -> Compressed:
    """Cut, quantise, measure, register."""
    from cataloger.model.vocabulary import can_be_cut, cut_vocabulary

    source = sources[0]
    asked_for = bool(done or config.prune_vocabulary or config.precision)
    if config.prune_vocabulary or (not asked_for and spec.text_columns and can_be_cut(bundle)):
        own = read_spec(bundle).reading(config.text_columns, config.image_column)
        shared = Model(own, digest(bundle), [runtime.share_folder(bundle)])
        reads = functools.partial(reader, shared, catalog.base)
        used = used_tokens(catalog, spec.text_columns, reads, network_shape(bundle)[1])
        cut = bundle.with_name("cut")
        found = cut_vocabulary(bundle, cut, used)
        if found.after <= MOST_KEPT * found.before or config.prune_vocabulary:
            done.append(f"{found.after:,} of {found.before:,} tokens")
            log.info("the vocabulary has %s", done[-1])
            _move_rest(bundle, cut)
            bundle = cut
    # A network in eight bits is of the weights that it was made from: of others it is made anew.
    if config.precision == "int8" or (source.folder / INT8).exists() or not asked_for:
        said = precision.quantised(bundle, catalog, judge, config, insist=config.precision == "int8")
        done += [said] if said else []
    if not done:
        raise ConfigError(
            f"model {source.uri}: nothing makes it cheaper on this machine; --layers trains a smaller one"
        )
    before, after, agreement, rows = measure(config, catalog, judge, source, spec, bundle)
    metrics = {
        "agreement": agreement,
        "compressed_rows": float(rows),
        **{f"before_{name}": value for name, value in before.metrics().items()},
        **{f"after_{name}": value for name, value in after.metrics().items()},
    }
    tracking.log_metrics(metrics)
    folders = [*(one.folder for one in sources), bundle]
    samples = [sample for folder in folders if (sample := seen.read(folder))]
    if len(samples) == len(folders) and (both := Seen.union(samples)).tells_enough(samples[-1]):
        seen.write(bundle, both)
    uri, first = registry.register(bundle, config.model_name, run_id)
    made = ModelSource(bundle, uri, uri.removeprefix("models:/"))
    registry.tag_version(
        made, {"compressed_from": " ".join(one.uri for one in sources), "compressed_to": ", ".join(done)}
    )
    log.info(
        "registered %s as %s: %s", uri, "champion, the first of its name" if first else "challenger", ", ".join(done)
    )
    return Compressed(uri, run_id, tuple(done), before, after, agreement, rows)


def _move_rest(bundle: Path, cut: Path) -> None:
    """What a bundle has beside its network: words, and which rows were seen."""
    for file in bundle.iterdir():
        if file.is_file() and not (cut / file.name).exists() and file.name not in (INT8, INT8_WEIGHTS, "vocab.txt"):
            shutil.copy(file, cut / file.name)
