"""The rows of a catalog through a model, back on the driver: for evaluation, audit and comparison."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cataloger.bundle import digest, read_spec
from cataloger.config import Precision
from cataloger.data import ids, seen
from cataloger.data.catalog import Catalog
from cataloger.data.kinds import is_string
from cataloger.data.texts import NO_TEXT
from cataloger.data.units import plan_units
from cataloger.errors import ConfigError
from cataloger.heads.columns import assemble, columns_of
from cataloger.infra import progress, runtime, spread
from cataloger.labeling.cost import Cost
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import KEY, ROW, Reading
from cataloger.labeling.stream import Done, predict_units
from cataloger.model.registry import ModelSource
from cataloger.spec import Spec

log = logging.getLogger(__name__)
SAMPLED_UNITS = 32
# Columns of labels that are for those who read them every day.
UNREAD = ("text_hash", "level_confidences", "confidences", "trusted_category")


@dataclass(frozen=True)
class Predicted:
    """The labels of `columns.assemble` in the catalog's order, with two more columns: `row`, the number of the row in the catalog,
    and `seen`, whether the model was trained or validated on it, null where that cannot be told."""

    labels: pa.Table
    rejected: int
    cost: Cost


def predict_rows(
    title: str,
    catalog: Catalog,
    kept: Mapping[str, str],
    source: ModelSource,
    *,
    spec: Spec,
    precision: Precision,
    use_gpu: bool,
    alternatives: int = 0,
    tiers: bool = True,
    held_out: bool = False,
    at_most: int | None = None,
    blind: bool = False,
) -> Predicted:
    """Labels with the columns of `kept`, by the model as `spec` has it, with columns of other names for instance: of all rows, of those
    that the model's training left out (`held_out`), or of about `at_most` rows, the same ones for all models that read the same columns; `blind`
    is as if no row had a picture. Rows that the model can read nothing of are left out and counted. Needs a running Ray.

    Raises ConfigError where the held-out rows cannot be told from others."""
    trained, units, saw = read_spec(source.folder), plan_units(catalog), seen.read(source.folder)
    spec = spec if tiers else spec.without_tiers()
    alike = (spec.text_columns, spec.picture) == (trained.text_columns, trained.picture)
    if held_out and not alike and not spec.group_column:
        raise ConfigError(
            f"--text-columns {' '.join(_read(spec))}: which rows model {source.uri} has not seen goes by their text, which is "
            f"made of {' '.join(_read(trained))}; leave the option out"
        )
    starts = np.cumsum([0, *(unit.rows for unit in units)])
    every = 1
    if at_most is not None:
        chosen = np.unique(np.linspace(0, len(units) - 1, SAMPLED_UNITS).astype(int))
        units = [units[number] for number in chosen]
        every = ids.sample_every(sum(unit.rows for unit in units), at_most)
    same_files = catalog.fingerprint == spec.catalog_fingerprint
    if not _has_keys(spec, catalog, alike or not same_files):
        saw = None
    # Without keys, the files' sizes and times are all there is to go by.
    otherwise = pa.scalar(True if same_files and not held_out else None, pa.bool_())
    kept = {"row": ROW, **kept, **({"seen": KEY} if saw else {})}
    schema = catalog.schema
    if blind and spec.picture:
        schema = schema.remove(schema.get_field_index(spec.picture.column))
    reading = Reading(
        catalog.location.filesystem,
        schema,
        kept,
        catalog.base,
        held_out,
        every=every,
        blind=blind,
        alternatives=alternatives,
    )
    model = Model(spec, digest(source.folder), [runtime.share_folder(source.folder)])
    shape, rows_of = runtime.labelling_shape(use_gpu), {unit.index: unit.rows for unit in units}
    tables, rejected, read, cost, columns = [], 0, 0, Cost(), columns_of(spec)
    with spread.errors_of_tasks(), progress.meter(title, sum(rows_of.values())) as shown:
        for row in predict_units(reading, model, units, shape, precision).iter_rows():
            done = Done.of(row)
            labels, rejects = assemble(done.rows, done.answers, columns)
            number = pa.array(labels.column("row").to_numpy() + starts[done.unit])
            known = saw.recognise(labels.column("seen").to_numpy()) if saw else pa.repeat(otherwise, len(labels))
            unread = [name for name in UNREAD if name in labels.column_names]
            labels = labels.drop_columns(["row", *unread] + ["seen"] * bool(saw))
            answer = labels.column(columns.answer)
            if is_string(answer.type):
                # Names by number: among millions of rows they would be most of what the driver holds.
                place = labels.column_names.index(columns.answer)
                labels = labels.set_column(place, columns.answer, answer.dictionary_encode())
            tables.append((done.unit, labels.add_column(0, "row", number).append_column("seen", known)))
            rejected += len(rejects)
            cost += done.cost
            read += rows_of[done.unit]
            shown.advance_to(read)
    if rejected:
        log.info("%s rows could not be labelled and are left out: %s", f"{rejected:,}", NO_TEXT)
    labels = pa.concat_tables([table for _, table in sorted(tables, key=lambda pair: pair[0])]).unify_dictionaries()
    return Predicted(labels, rejected, cost)


def _read(spec: Spec) -> tuple[str, ...]:
    return (*spec.text_columns, *([spec.picture.column] if spec.picture else []))


def _has_keys(spec: Spec, catalog: Catalog, same_texts: bool) -> bool:
    """Whether what the training's rows were split by can be made of these rows. Columns of other names may hold the same texts,
    but not in the same files."""
    if spec.group_column:
        return spec.group_column in catalog.schema.names
    return same_texts
