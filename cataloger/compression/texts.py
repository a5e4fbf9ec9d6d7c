"""What a model reads of a catalog: some of it, and all of its texts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cataloger.data.catalog import Catalog
from cataloger.data.inputs import Input, input_of
from cataloger.data.units import plan_units, read_units
from cataloger.labeling.packed import Model
from cataloger.spec import Spec

# Of this many places of a catalog are taken those rows that stand for all.
PLACES = 16


def reader(model: Model, base: str) -> Input:
    """What reads a row's texts. A picture has no tokens, and to decode it would take longer than all texts."""
    return input_of(replace(model.spec, picture=None), model.folder(), base)


def some_rows(catalog: Catalog, spec: Spec, folder: Path, wanted: int) -> pa.Array:
    """What the model reads of about so many rows at most, evenly spread over the catalog, each value once."""
    given, units = input_of(spec, folder, catalog.base), plan_units(catalog)
    chosen = np.unique(np.linspace(0, len(units) - 1, PLACES).astype(int))
    each, found = -(-wanted // len(chosen)), []
    for unit in (units[number] for number in chosen.tolist()):
        ((_, table),) = read_units(catalog.location.filesystem, [unit], catalog.schema)
        rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), each)).astype(int))
        read = given.read(table.take(pa.array(rows)))
        found.append(given.distinct(read.values.filter(read.reasons.is_null())).values)
    return given.distinct(pa.concat_arrays(found)).values
