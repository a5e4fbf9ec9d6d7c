"""A new version of a model that knows further categories, by their names and a few examples, without a training."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.adapting.bundles import make_bundle
from cataloger.adapting.newcomers import read_newcomers
from cataloger.bundle import read_spec
from cataloger.config import ExtendConfig
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.data.inputs import Input, input_of
from cataloger.data.text import split_hash, split_keys, split_position
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.data.units import plan_reads, plan_units, read_units
from cataloger.errors import ConfigError
from cataloger.infra import tracking
from cataloger.infra.node_cache import working_folder
from cataloger.model import registry
from cataloger.model.registry import ModelSource
from cataloger.model.tiers import Tiers
from cataloger.spec import ONE_CATEGORY, Spec

log = logging.getLogger(__name__)
# Of the products of old categories that are judged rightly, new ones may take so many; a hundredth of a point less than is promised.
TAKEN = 0.004
# Products of old categories to tell new ones from, and to balance them by.
MOST_ROWS = 5_000
ROUNDS = 6


@dataclass(frozen=True)
class Extended:
    """The new version, and how it answers about products of old categories that neither it nor the old one has learnt."""

    model_uri: str
    run_id: str
    categories: int
    """New ones."""
    examples: int
    rows: int
    """Products of old categories that were looked at."""
    before: float
    """Accuracy on these."""
    after: float
    taken: float
    """Share of these that get a new category now."""


def extend(config: ExtendConfig) -> Extended:
    """Raises CatalogerError."""
    tracking.connect()
    source = registry.fetch_model(config.model)
    spec = read_spec(source.folder)
    _check(spec, source)
    new = read_newcomers(config.categories, spec)
    catalog = open_catalog(
        config.catalog, config.id_column, spec.text_columns, (config.label_column,), grouped(spec.group_column)
    )
    learnt, judged = _rows(catalog, spec, input_of(spec, source.folder), config)
    log.info(
        "%s new categories with %s examples, told from %s products and balanced by %s",
        f"{len(new.paths):,}",
        f"{len(new.examples):,}",
        f"{len(learnt):,}",
        f"{len(judged):,}",
    )
    with (
        tracking.run("extend", config.model_name, config, catalog, {"extended_from": source.uri}) as run_id,
        working_folder("extend") as aside,
    ):
        before, truth = Tiers(source.folder), judged.column(config.label_column)
        old = before.label(judged).column("category")
        share = TAKEN
        for turn in range(ROUNDS):
            folder = aside / f"bundle-{turn}"
            make_bundle(source.folder, folder, new, learnt, judged, truth, share)
            now = Tiers(folder).label(judged).column("category")
            lost = _accuracy(old, truth) - _accuracy(now, truth)
            if lost <= TAKEN:
                break
            # Words and network each take their share, and not from the same products.
            share /= 2
        taken = pc.is_in(now, pa.array(new.paths))
        uri, first = registry.register(folder, config.model_name, run_id)
        registry.tag_version(ModelSource(folder, uri, uri.removeprefix("models:/")), {"extended_from": source.uri})
        found = Extended(
            uri,
            run_id,
            len(new.paths),
            len(new.examples),
            len(judged),
            _accuracy(old, truth),
            _accuracy(now, truth),
            pc.mean(taken).as_py(),
        )
        tracking.log_metrics(
            {"old_accuracy_before": found.before, "old_accuracy": found.after, "taken_fraction": found.taken}
        )
    log.info("registered %s as %s", uri, "champion, the first of its name" if first else "challenger")
    return found


def _check(spec: Spec, source: ModelSource) -> None:
    if spec.head != ONE_CATEGORY or spec.others:
        raise ConfigError(
            f"model {source.uri}: only a model of one category for each product can be extended; train this one with --corrections"
        )
    if spec.picture:
        raise ConfigError(
            f"model {source.uri}: sees pictures, and only a model of texts can be extended; train this one with --corrections"
        )


def _rows(catalog: Catalog, spec: Spec, given: Input, config: ExtendConfig) -> tuple[pa.Table, pa.Table]:
    """(rows to tell new categories from, rows to balance them by), of known categories; the second are those that the model has not learnt."""
    names, _ = normalise_labels(
        count_labels(catalog, config.label_column, config.id_column), config.catalog, config.label_column
    )
    known = pa.array([written for written, path in names.items() if path in set(spec.categories)], pa.large_string())
    paths = pa.array([names[written] for written in known.to_pylist()], pa.string())
    held = spec.test_fraction + (spec.validation_fraction or 0.0) * (1 - spec.test_fraction)
    tables = []
    for table in _tables(catalog):
        place = pc.index_in(table.column(config.label_column).cast(pa.large_string()), known)
        table = table.set_column(
            table.column_names.index(config.label_column), config.label_column, paths.take(place.combine_chunks())
        )
        tables.append(table.filter(place.is_valid()))
    rows = pa.concat_tables(tables).combine_chunks()
    if not len(rows):
        raise ConfigError(
            f"--catalog {config.catalog}: no row has a category that the model knows; name labelled products, and their --label-column"
        )
    rows = rows.take(pa.array(np.random.default_rng(0).permutation(len(rows))))
    texts = given.identity(given.read(rows).values)
    position = split_position(
        split_hash(split_keys(rows, texts, spec.group_column), spec.format_version), spec.test_start
    )
    # The test side is nobody's; without a validation side of its own, the model was validated elsewhere.
    judged = (position >= spec.test_fraction) & (position < held) if held > spec.test_fraction else position >= 0
    learnt = position >= held if held > spec.test_fraction else np.zeros(len(rows), bool)
    if not judged.any():
        raise ConfigError(
            f"--catalog {config.catalog}: no row falls on the model's validation side; name the catalog that it was trained on"
        )
    if not learnt.any():
        half = np.arange(len(rows)) % 2 == 0
        learnt, judged = half, ~half
    return (rows.filter(pa.array(side)).slice(0, MOST_ROWS) for side in (learnt, judged))  # type: ignore[return-value]


def _tables(catalog: Catalog) -> Iterator[pa.Table]:
    for read in plan_reads(plan_units(catalog)):
        for _, table in read_units(catalog.location.filesystem, read.units, catalog.schema):
            yield table


def _accuracy(said: pa.ChunkedArray, truth: pa.ChunkedArray) -> float:
    return float(pc.mean(pc.fill_null(pc.equal(said, truth), False)).as_py())
