"""What a model reads of a catalog: some of it, and all of its texts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.catalog import Catalog
from cataloger.data.inputs import Input, input_of
from cataloger.data.reading import read_units
from cataloger.data.text import split_hash, split_keys, split_position
from cataloger.data.units import plan_units
from cataloger.labeling.packed import Model
from cataloger.spec import Spec

# Of this many places of a catalog are taken those rows that stand for all.
PLACES = 16


def reader(model: Model, base: str) -> Input:
    """What reads a row's texts. A picture has no tokens, and to decode it would take longer than all texts."""
    return input_of(replace(model.spec, picture=None), model.folder(), base)


def some_rows(catalog: Catalog, spec: Spec, folder: Path, wanted: int) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """(what the model reads of about so many rows at most, evenly spread over the catalog, each value once; whether its training held each
    of them out)"""
    given, units = input_of(spec, folder, catalog.base), plan_units(catalog)
    chosen = np.unique(np.linspace(0, len(units) - 1, PLACES).astype(int))
    each, found, positions = -(-wanted // len(chosen)), [], []
    for unit in (units[number] for number in chosen.tolist()):
        ((_, table),) = read_units(catalog.location.filesystem, [unit], catalog.schema)
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), each)).astype(int))
        read = given.read(table.take(pa.array(rows)))
        usable = read.reasons.is_null()
        values = read.values.filter(usable)
        group = spec.group_column if spec.group_column in read.table.column_names else None
        keys = split_keys(read.table.filter(usable), given.identity(values), group)
        positions.append(split_position(split_hash(keys, spec.format_version), spec.test_start))
        found.append(values)
    values, position = pa.concat_arrays(found), np.concatenate(positions)
    distinct = given.distinct(values)
    _, first = np.unique(distinct.place.to_numpy(zero_copy_only=False), return_index=True)
    held_out = spec.test_fraction + (spec.validation_fraction or 0.0) * (1 - spec.test_fraction)
    return values.take(pa.array(first)), position[first] < held_out
