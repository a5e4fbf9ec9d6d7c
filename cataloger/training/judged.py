"""Rows that judge a training are not learnt from, where both catalogs have them."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from cataloger.infra import runtime, spread
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION

log = logging.getLogger(__name__)
# Of a row that nothing is made of.
UNUSED = -1


def without_judged(blocks: Sequence[Any]) -> list[Any]:
    """Products that a catalog of their own has to judge by are not learnt from, where the other has them too."""
    judged = np.unique(np.concatenate([np.empty(0, np.uint64), *spread.each(blocks, judging)]))
    twice = list(spread.each(blocks, functools.partial(_count_of, judged=judged)))
    if not any(twice):
        return list(blocks)
    log.info("%s rows of --catalog are in --eval-catalog too: they judge, and are not learnt from", f"{sum(twice):,}")
    # Also from within a trial of a sweep, whose own placement has no CPU.
    task: Any = ray.remote(without).options(num_cpus=runtime.TASK_CPUS, scheduling_strategy="SPREAD")
    kept = ray.put(judged)
    return [task.remote(block, kept) if count else block for block, count in zip(blocks, twice, strict=True)]


def judging(table: pa.Table) -> npt.NDArray[np.uint64]:
    """The keys of the rows that judge; others may have none."""
    chosen = pa.array(table.column("use").to_numpy() == VALIDATION)
    found: npt.NDArray[np.uint64] = table.column("key").filter(chosen).to_numpy()
    return found


def _twice(table: pa.Table, judged: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """[N] the rows to learn from that are judged by."""
    keys = table.column("key").fill_null(0).to_numpy()
    return np.isin(keys, judged) & np.isin(table.column("use").to_numpy(), (TRAINING, UNLABELLED))


def _count_of(table: pa.Table, judged: npt.NDArray[np.uint64]) -> int:
    return int(_twice(table, judged).sum())


def without(table: pa.Table, judged: npt.NDArray[np.uint64]) -> pa.Table:
    """The rows, those that are judged by of no use to learn from."""
    uses = np.where(_twice(table, judged), UNUSED, table.column("use").to_numpy()).astype(np.int8)
    return table.set_column(table.column_names.index("use"), "use", pa.array(uses))
