"""The rows of a catalog through a model, back on the driver: for evaluation, audit and comparison."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cataloger import ids, progress, runtime
from cataloger.answers import assemble
from cataloger.bundle import digest, read_spec
from cataloger.catalog import Catalog
from cataloger.config import Precision
from cataloger.effort import Effort
from cataloger.errors import ConfigError
from cataloger.registry import ModelSource
from cataloger.stream import NO_TEXT, ROW, Done, Model, Reading, predict_units
from cataloger.units import plan_units

log = logging.getLogger(__name__)
SAMPLED_UNITS = 32


@dataclass(frozen=True)
class Predicted:
    """The labels of `answers.assemble` in the catalog's order, `row` among their columns: the number of the row in the catalog."""

    labels: pa.Table
    rejected: int
    effort: Effort


def predict_rows(
    title: str,
    catalog: Catalog,
    kept: Mapping[str, str],
    source: ModelSource,
    *,
    text_columns: tuple[str, ...],
    precision: Precision,
    use_gpu: bool,
    alternatives: int = 0,
    held_out: bool = False,
    at_most: int | None = None,
) -> Predicted:
    """Labels with the columns of `kept`: of all rows, of those that the model's training left out (`held_out`), or of about
    `at_most` rows, the same ones for every model. Rows without text are left out and counted. Needs a running Ray.

    Raises ConfigError where the held-out rows cannot be told from others."""
    spec, units = read_spec(source.folder), plan_units(catalog)
    if held_out and text_columns != spec.text_columns and not spec.group_column:
        raise ConfigError(
            f"--text-columns {' '.join(text_columns)}: which rows model {source.uri} has not seen goes by their text, which is "
            f"made of {' '.join(spec.text_columns)}; leave the option out"
        )
    starts = np.cumsum([0, *(unit.rows for unit in units)])
    every = 1
    if at_most is not None:
        chosen = np.unique(np.linspace(0, len(units) - 1, SAMPLED_UNITS).astype(int))
        units = [units[number] for number in chosen]
        every = ids.sample_every(sum(unit.rows for unit in units), at_most)
    reading = Reading(
        catalog.location.filesystem, catalog.schema, {"row": ROW, **kept}, text_columns, held_out, every=every
    )
    model = Model(spec, digest(source.folder), [runtime.share_folder(source.folder)])
    shape, rows_of = runtime.labelling_shape(use_gpu), {unit.index: unit.rows for unit in units}
    tables, rejected, seen, effort = [], 0, 0, Effort()
    with runtime.errors_of_tasks(), progress.meter(title, sum(rows_of.values())) as shown:
        for row in predict_units(reading, model, units, shape, precision, alternatives).iter_rows():
            done = Done.of(row)
            labels, rejects = assemble(done.rows, done.answers, spec)
            number = pa.array(labels.column("row").to_numpy() + starts[done.unit])
            place = labels.column_names.index("row")
            tables.append((done.unit, labels.set_column(place, "row", number)))
            rejected += len(rejects)
            effort += done.effort
            seen += rows_of[done.unit]
            shown.advance_to(seen)
    if rejected:
        log.info("%s rows could not be labelled and are left out: %s", f"{rejected:,}", NO_TEXT)
    labels = pa.concat_tables([table for _, table in sorted(tables, key=lambda pair: pair[0])])
    return Predicted(labels, rejected, effort)
