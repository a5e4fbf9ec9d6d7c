"""Whether an export keeps the order of the published run, so that each of its units finds its rows in few parts of it."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from cataloger.data.text import hash_words
from cataloger.data.units import Unit
from cataloger.errors import StorageError
from cataloger.infra import spread
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import Reading, keys_of
from cataloger.publishing import sketches

log = logging.getLogger(__name__)
# Of a run like this, each node reads and sorts the whole in seconds, and misses none of its labels.
ROWS_OF_A_SMALL_RUN = 1 << 22
# So many units are looked at, of which one at most may have its rows all over the run: they are asked again.
UNITS_LOOKED_AT, MOST_SCATTERED = 16, 1
# What must lie in few parts of what a unit shares with the run.
ENOUGH = 0.95


def found_by_parts(reading: Reading, model: Model, units: Sequence[Unit]) -> Reading:
    """The reading that looks into single parts of the published run, where these units keep its order; else as it is."""
    published = reading.published
    if published is None or published.rows <= ROWS_OF_A_SMALL_RUN or not units:
        return reading
    try:
        found = sketches.read(published.folder, published.units)
    except StorageError as error:
        log.warning("labels are carried over without the help of sketches: %s", error)
        return reading
    if found is None:
        return reading
    shared = ray.put(found)
    # In a list, so that it is handed on as what it is.
    together = functools.partial(_together, reading=reading, model=model, shared=[shared])
    looked_at = np.unique(np.linspace(0, len(units) - 1, UNITS_LOOKED_AT).astype(int))
    scattered = sum(share < ENOUGH for share in spread.each([units[number] for number in looked_at], together))
    if scattered > MOST_SCATTERED:
        log.info("the catalog has another order than the published run: each node reads the whole of it")
        return reading
    return replace(reading, published=replace(published, sketches=shared))


def _together(unit: Unit, reading: Reading, model: Model, shared: list[Any]) -> float:
    """What share of what a unit has in common with the published run lies in few of its parts."""
    words = hash_words(keys_of(unit, reading, model))
    share: float = ray.get(shared[0]).parts_with(words[:, 0])[1]
    return share
