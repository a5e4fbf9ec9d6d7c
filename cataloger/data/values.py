"""What is read of the rows of a table, before anything is made of it for a network."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.batching import IntArray


@dataclass(frozen=True)
class Values:
    """What is read of the N rows of a table, which has null for what cannot be read.

    `values` is a column of whatever the input reads, null where nothing was read. `reasons` says why a row cannot be
    answered, null where it can: a row of which a part cannot be read has a reason too.
    """

    table: pa.Table
    values: pa.Array
    reasons: pa.Array


@dataclass(frozen=True)
class Distinct:
    """The values of N rows, each once and in the order in which they come first: `place` [N] says which is a row's, null where none."""

    values: pa.Array
    keys: pa.Array
    """A hash of all that is read of each value, as 32 hex digits."""
    place: pa.Array

    @classmethod
    def by_key(cls, values: pa.Array, keys: pa.Array) -> "Distinct":
        """Of values whose keys are there already, null for null."""
        found = keys.dictionary_encode()
        place = found.indices
        known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        _, first = np.unique(pc.drop_null(place).to_numpy(), return_index=True)
        rows: IntArray = known[first]
        return cls(values.take(pa.array(rows)), found.dictionary, place)
