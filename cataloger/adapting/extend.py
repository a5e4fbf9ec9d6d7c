"""A new version of a model that knows further categories, by their names and a few examples, without a training."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.adapting.bundles import make_bundle
from cataloger.adapting.newcomers import read_newcomers
from cataloger.bundle import read_spec
from cataloger.config import ExtendConfig
from cataloger.data import seen
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.data.inputs import Input, input_of
from cataloger.data.reading import read_units
from cataloger.data.seen import Seen
from cataloger.data.text import split_position
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import ConfigError, TrainingError
from cataloger.infra import tracking
from cataloger.infra.node_cache import working_folder
from cataloger.model import registry
from cataloger.model.registry import ModelSource
from cataloger.model.tiers import Tiers
from cataloger.spec import ONE_CATEGORY, Spec

log = logging.getLogger(__name__)
# Of the products of old categories that are judged rightly, new ones may take so many; a hundredth of a point less than is promised.
TAKEN = 0.004
# Products of old categories to tell new ones from, and to balance them by; of fewer that the model has not learnt, nothing can be said.
MOST_ROWS, LEAST_ROWS = 5_000, 200
MIXER = np.uint64(0x9E3779B97F4A7C15)
ROUNDS, APART = 6, 0.1


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
    unlearnt: bool
    """Whether these are products that the model has not learnt."""


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
    learnt, judged, unlearnt = _rows(catalog, spec, input_of(spec, source.folder), seen.read(source.folder), config)
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
        for turn in range(ROUNDS):
            folder = aside / f"bundle-{turn}"
            make_bundle(source.folder, folder, new, learnt, judged, truth, TAKEN / 2**turn, APART * turn)
            now = Tiers(folder).label(judged).column("category")
            lost = _accuracy(old, truth) - _accuracy(now, truth)
            if lost <= TAKEN:
                break
            # Words and network each take their share, and not from the same products.
        else:
            raise TrainingError(
                f"--categories {config.categories}: the new categories take more than {TAKEN:.1%} of the old ones' products ({lost:.1%}), so "
                "they cannot be told apart by words; train a model with --corrections instead"
            )
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
            unlearnt,
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


def _rows(
    catalog: Catalog, spec: Spec, given: Input, saw: Seen | None, config: ExtendConfig
) -> tuple[pa.Table, pa.Table, bool]:
    """(rows to tell new categories from, rows to balance them by, whether the model has not learnt the second), of known categories."""
    names, _ = normalise_labels(
        count_labels(catalog, config.label_column, config.id_column), config.catalog, config.label_column
    )
    categories = set(spec.categories)
    written = [one for one, path in names.items() if path in categories]
    known, paths = pa.array(written, pa.large_string()), pa.array([names[one] for one in written], pa.string())
    learnt, judged = _Sample(), _Sample()
    for table in _tables(catalog):
        place = pc.index_in(table.column(config.label_column).cast(pa.large_string()), known).combine_chunks()
        column = table.column_names.index(config.label_column)
        table = table.set_column(column, config.label_column, paths.take(place)).filter(place.is_valid())
        keys = seen.keys(table, given.identity(given.read(table).values), spec.group_column, spec.format_version)
        new = pc.equal(saw.recognise(keys), False) if saw else pa.nulls(len(table), pa.bool_())
        unknown = pc.fill_null(new, False).to_numpy(zero_copy_only=False) | _validated(keys, spec)
        judged.add(table.filter(pa.array(unknown)), keys[unknown])
        learnt.add(table.filter(pa.array(~unknown)), keys[~unknown])
    rows, unlearnt = learnt.rows(), judged.rows()

    def apart() -> tuple[pa.Table, pa.Table]:
        """Where there is one of them alone, half of it each: no row judges what was learnt from it."""
        return judged.halves() if rows is None else (rows, unlearnt)

    if unlearnt is not None and len(unlearnt) >= LEAST_ROWS:
        return (*apart(), True)
    few = 0 if unlearnt is None else len(unlearnt)
    if few > 1 and few >= (0 if rows is None else len(rows) // 2):
        log.warning(
            "--catalog %s: has %s products that the model has not learnt, which is few to judge new categories by; name more",
            config.catalog,
            few,
        )
        return (*apart(), True)
    if rows is None or len(rows) < 2:
        raise ConfigError(
            f"--catalog {config.catalog}: no row has a category that the model knows; name labelled products, and their --label-column"
        )
    log.warning(
        "--catalog %s: the model has learnt nearly all of these products, so new categories may take more of others than of them; best name "
        "products that it has not learnt, or train it with --test-fraction",
        config.catalog,
    )
    return (*learnt.halves(), False)


def _validated(keys: npt.NDArray[np.uint64], spec: Spec) -> npt.NDArray[np.bool_]:
    """[N] which rows a network was validated on, and neither it nor the words beside it learnt from."""
    position = split_position(keys, spec.test_start)
    held_out = spec.test_fraction + (spec.validation_fraction or 0.0) * (1 - spec.test_fraction)
    return spec.network & (position >= spec.test_fraction) & (position < held_out)


class _Sample:
    """Up to MOST_ROWS rows, those of the smallest keys: the same of the same catalog, and no more in memory."""

    def __init__(self) -> None:
        self._tables, self._keys = list[pa.Table](), list[npt.NDArray[np.uint64]]()

    def add(self, table: pa.Table, keys: npt.NDArray[np.uint64]) -> None:
        self._tables.append(table)
        self._keys.append(keys)
        if sum(map(len, self._tables)) > 4 * MOST_ROWS:
            self._cut()

    def rows(self) -> pa.Table | None:
        self._cut()
        return self._tables[0] if self._tables and len(self._tables[0]) else None

    def halves(self) -> tuple[pa.Table, pa.Table]:
        """Rows of one key, which stand together, are in the same half where there are several keys."""
        self._cut()
        table, keys = self._tables[0], self._keys[0]
        ends = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        middle = len(keys) // 2
        cut = int(ends[np.abs(ends - middle).argmin()]) if len(ends) else middle
        return table.slice(0, cut), table.slice(cut)

    def _cut(self) -> None:
        if self._tables:
            table, keys = pa.concat_tables(self._tables), np.concatenate(self._keys)
            order = np.argsort(keys * MIXER, kind="stable")[:MOST_ROWS]
            self._tables, self._keys = [table.take(pa.array(order)).combine_chunks()], [keys[order]]


def _tables(catalog: Catalog) -> Iterator[pa.Table]:
    for read in plan_reads(plan_units(catalog)):
        for _, table in read_units(catalog.location.filesystem, read.units, catalog.schema):
            yield table


def _accuracy(said: pa.ChunkedArray, truth: pa.ChunkedArray) -> float:
    return float(pc.mean(pc.fill_null(pc.equal(said, truth), False)).as_py())
