"""A labelled catalog through a model: its rows with their true and their predicted categories, for evaluation and audit."""

import logging
from collections.abc import Mapping

import pyarrow as pa

from cataloger import progress, runtime
from cataloger.answers import assemble
from cataloger.bundle import digest, read_spec
from cataloger.catalog import Catalog
from cataloger.config import Precision
from cataloger.stream import NO_TEXT, Done, Model, Reading, predict_units
from cataloger.tracking import ModelSource
from cataloger.units import plan_units

log = logging.getLogger(__name__)


def predict_labelled(
    title: str,
    catalog: Catalog,
    kept: Mapping[str, str],
    source: ModelSource,
    *,
    text_columns: tuple[str, ...],
    held_out: bool,
    alternatives: int,
    precision: Precision,
    use_gpu: bool,
) -> pa.Table:
    """The labels of `answers.assemble` with the columns of `kept`, in the catalog's order; of all rows, or of those that the
    model's training left out. Rows without text are left out and counted in the log. Needs a running Ray."""
    spec = read_spec(source.folder)
    reading = Reading(catalog.location.filesystem, catalog.schema, kept, text_columns, held_out)
    model = Model(spec, digest(source.folder), [runtime.share_folder(source.folder)])
    shape, units = runtime.labelling_shape(use_gpu), plan_units(catalog)
    tables, seen, rejected = [], 0, 0
    with runtime.errors_of_tasks(), progress.meter(title, catalog.rows) as shown:
        for row in predict_units(reading, model, units, shape, precision, alternatives).iter_rows():
            done = Done.of(row)
            labels, rejects = assemble(done.rows, done.answers, spec)
            tables.append((done.unit, labels))
            rejected += len(rejects)
            seen += units[done.unit].rows
            shown.advance_to(seen)
    if rejected:
        log.info("%s rows could not be labelled and are left out: %s", f"{rejected:,}", NO_TEXT)
    return pa.concat_tables([table for _, table in sorted(tables, key=lambda pair: pair[0])])
