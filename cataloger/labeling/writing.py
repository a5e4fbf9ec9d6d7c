"""The end of the labelling stream: a unit's answers become its part. Apart from the job, so that its tasks need no MLflow."""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.config import Precision
from cataloger.curation.decisions import Decisions
from cataloger.data import ids
from cataloger.data.images import UNREACHABLE
from cataloger.data.units import Unit
from cataloger.heads.category_columns import IMAGE_STATUS
from cataloger.heads.columns import assemble, columns_of
from cataloger.infra import progress, runtime, spread
from cataloger.infra.runtime import ActorShape
from cataloger.infra.storage import Location
from cataloger.labeling.cost import Cost
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import Reading
from cataloger.labeling.stream import Done, predict_units
from cataloger.publishing import sketches
from cataloger.publishing.parts import Part, write_part
from cataloger.spec import Spec

log = logging.getLogger(__name__)


def label_units(
    reading: Reading,
    model: Model,
    units: Sequence[Unit],
    shape: ActorShape,
    precision: Precision,
    folder: Location,
    about: Mapping[str, str],
    every: int,
) -> Iterator[tuple[Part, ids.Hashes, Cost]]:
    """Write each unit to the run's folder, and show how far it is: its part, the hashes of the ids that `every` samples, its cost.

    Units come in any order. Raises the CatalogerError a task met.
    """
    if not units:
        return
    write = functools.partial(
        _write, spec=model.spec, folder=folder, about=about, every=every, decisions=reading.decisions
    )
    stream = predict_units(reading, model, units, shape, precision).map(write, num_cpus=runtime.TASK_CPUS)
    rejects, cost = 0, Cost()
    with spread.errors_of_tasks(), progress.meter("label", sum(unit.rows for unit in units)) as shown:
        for row in stream.iter_rows():
            part, spent = Part.from_dict(json.loads(row["part"])), Cost(**json.loads(row["cost"]))
            if spent.halvings > cost.halvings:
                log.warning(
                    "a GPU ran out of memory: fewer tokens per forward pass from now on; the labels stay the same"
                )
            cost, rejects = cost + spent, rejects + part.rejects
            rejected = f"{rejects:,} rejected, " if rejects else ""
            shown.advance_to(cost.rows, rejected + cost.describe(shown.seconds))
            yield part, np.frombuffer(row["ids"], np.uint64), spent


def _write(
    row: dict[str, Any],
    spec: Spec,
    folder: Location,
    about: Mapping[str, str],
    every: int,
    decisions: Decisions | None,
) -> dict[str, Any]:
    done, columns = Done.of(row), columns_of(spec)
    with done.cost.timed("writing"):
        labels, rejects = assemble(done.rows, done.answers, columns)
        answered = {**done.cost.answered, **_images(labels, rejects)}
        if decisions:
            labels, rejects, answered["decisions"] = decisions.decide(labels, rejects, columns)
        answered["sketch"] = sketches.of(labels.column("text_hash"))
        part = write_part(folder, done.unit, labels, rejects, answered, about)
        hashes = ids.sample(done.rows.column("id"), every).tobytes()
    return {"part": json.dumps(asdict(part)), "ids": hashes, "cost": json.dumps(asdict(done.cost))}


def _images(labels: pa.Table, rejects: pa.Table) -> dict[str, Any]:
    """How many labels there are by what became of the row's picture, and how many rows in all whose picture could not be reached."""
    if IMAGE_STATUS not in labels.column_names:
        return {}
    counts = pc.value_counts(labels.column(IMAGE_STATUS)).to_pylist()
    images = {count["values"]: count["counts"] for count in counts}
    # A row that had nothing but its picture.
    lost = pc.sum(pc.ends_with(rejects.column("reason"), UNREACHABLE)).as_py() or 0
    return {"images": images, "unreachable": images.get(UNREACHABLE, 0) + lost}
