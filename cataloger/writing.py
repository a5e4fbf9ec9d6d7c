"""The end of the labelling stream: a unit's answers become its part. Apart from labeling.py, so that its tasks need no MLflow."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.data

from cataloger import ids, runtime, snapshot
from cataloger.answers import assemble
from cataloger.bundle import Spec
from cataloger.effort import Effort
from cataloger.snapshot import Part
from cataloger.storage import Location
from cataloger.stream import Done


def write_units(
    stream: ray.data.Dataset, spec: Spec, folder: Location, about: Mapping[str, str], every: int
) -> ray.data.Dataset:
    """Write each unit of `predict_units` to the run's folder; rows that `read_written` reads. `every` samples the ids."""
    write = functools.partial(_write, spec=spec, folder=folder, about=about, every=every)
    return stream.map(write, num_cpus=runtime.TASK_CPUS)


def read_written(row: dict[str, Any]) -> tuple[Part, ids.Hashes, Effort]:
    """A unit's part, the hashes of its sampled ids, and what it took."""
    part, effort = Part.from_dict(json.loads(row["part"])), Effort(**json.loads(row["effort"]))
    return part, np.frombuffer(row["ids"], np.uint64), effort


def _write(row: dict[str, Any], spec: Spec, folder: Location, about: Mapping[str, str], every: int) -> dict[str, Any]:
    done = Done.of(row)
    with done.effort.timed("writing"):
        labels, rejects = assemble(done.rows, done.answers, spec)
        part = snapshot.write_part(folder, done.unit, labels, rejects, done.effort.forwarded, about)
        hashes = ids.sample(done.rows.column("id"), every).tobytes()
    return {"part": json.dumps(asdict(part)), "ids": hashes, "effort": json.dumps(asdict(done.effort))}
