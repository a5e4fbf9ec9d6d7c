"""The stream that labelling and evaluation share: read → encode → answer; its callers make labels of the answers.

One row of the Ray Dataset is one unit, its tables packed as Arrow IPC bytes: no stage can split or merge units, and
GPU actors get exactly one per call.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data

from cataloger.config import Precision
from cataloger.data.units import LEAST_UNITS_PER_READ, MOST_UNITS_PER_READ, Read, Unit, plan_reads
from cataloger.infra import runtime, spread
from cataloger.infra.runtime import ActorShape
from cataloger.labeling.cost import Cost
from cataloger.labeling.labeler import Labeler
from cataloger.labeling.packed import Model, unpack
from cataloger.labeling.reading import Reading, read

# Ray Data sets this share of all CPUs and of its memory aside for the stages of the stream, beginning with the first. With its own,
# half, nothing is left for the last stage beside the actor of a node of up to nine cores: it would write when all is read.
RESERVED = 0.05
# Of a large catalog a task reads neighbouring units, which have parts of the published run in common. There are so many tasks for each
# CPU all the same, so that all are busy to the end.
MOST_READ_TOGETHER = 8
READS_PER_CPU = 32
# Row groups of many units are shared out among tasks until there are so many for each CPU: of a catalog of one row group all CPUs have
# some. Not with pictures, which are large: each further task fetches the row group again.
LEAST_READS_PER_CPU = 2


@dataclass(frozen=True)
class Done:
    """A unit at the end of the stream: its rows, an answer per distinct text (`place` says which is a row's), what it took."""

    unit: int
    rows: pa.Table
    answers: pa.Table
    cost: Cost

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Done":
        """From one row of `predict_units`."""
        cost = Cost(**json.loads(row["cost"]))
        return cls(int(row["unit"]), unpack(row["rows"]), unpack(row["answers"]), cost)


def predict_units(
    reading: Reading, model: Model, units: Sequence[Unit], shape: ActorShape, precision: Precision
) -> ray.data.Dataset:
    """The stream without its end: rows that `Done.of` reads, in any order."""
    reads = shared_out(units, max(1.0, runtime.capacity("CPU")), model.spec.picture is not None)
    items = ray.data.from_items([read.as_dict() for read in reads], override_num_blocks=len(reads))
    context = items.context  # this stream's own
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = spread.STUCK_SECONDS
    context.max_consecutive_actor_init_deaths = 2  # a node lost while its actor starts
    context.op_resource_reservation_ratio = RESERVED
    # A task that reads several units hands on each as soon as it has it, and no block has two.
    context.target_max_block_size = 1
    rows = items.flat_map(functools.partial(read, reading=reading, model=model), num_cpus=runtime.TASK_CPUS)
    if not model.spec.network:
        return rows
    about = {"model": model, "shape": shape, "precision": precision, "alternatives": reading.alternatives}
    about["explain"] = reading.explain
    return rows.map_batches(
        Labeler,
        fn_constructor_kwargs=about,
        batch_size=1,
        batch_format="pyarrow",
        # Two units at once, whose batches take turns: between units the engine would wait for the next one otherwise.
        compute=ray.data.ActorPoolStrategy(
            min_size=shape.min_actors,
            max_size=shape.max_actors,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
    )


def shared_out(units: Sequence[Unit], cpus: float, pictures: bool) -> list[Read]:
    """What the reading tasks of a cluster with so many CPUs read."""
    together = min(MOST_READ_TOGETHER, len(units) // int(READS_PER_CPU * cpus))
    enough = max(LEAST_UNITS_PER_READ, len(units) // int(LEAST_READS_PER_CPU * cpus))
    sharing = MOST_UNITS_PER_READ if pictures else min(MOST_UNITS_PER_READ, enough)
    return plan_reads(units, max(1, together), sharing)
