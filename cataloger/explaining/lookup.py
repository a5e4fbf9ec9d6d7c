"""Products of a catalog: those with given ids, and those whose words are most like a given text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from cataloger.data.catalog import Catalog
from cataloger.data.ids import written
from cataloger.data.inputs import Input
from cataloger.data.ngrams import blocks_of, ngrams
from cataloger.data.reading import read_units
from cataloger.data.texts import SHOWN_CHARACTERS
from cataloger.data.units import plan_units
from cataloger.errors import CatalogError
from cataloger.model.words import Vocabulary

MOST_NAMED = 5


@dataclass(frozen=True)
class Neighbour:
    """A labelled product, and how like a text its words are: the cosine of their n-grams, from 0 to 1."""

    id: str
    text: str
    categories: tuple[str, ...]
    likeness: float


def products(catalog: Catalog, id_column: str, ids: Sequence[str]) -> pa.Table:
    """The rows with these ids, in their order; of rows that share one, the first. Raises CatalogError for an id that is not there."""
    found: dict[str, pa.Table] = {}
    wanted = pa.array(ids, pa.large_string())
    filesystem, units = catalog.location.filesystem, plan_units(catalog)
    alone = pa.schema([catalog.schema.field(id_column)])
    # The ids first: of the other columns, which may hold pictures, only the units with one of the products are read.
    with_one = [
        unit
        for unit, table in read_units(filesystem, units, alone)
        if pc.any(pc.is_in(_texts(table.column(id_column)), wanted)).as_py()
    ]
    for _, table in read_units(filesystem, with_one, catalog.schema):
        names = _texts(table.column(id_column))
        for row in np.flatnonzero(pc.is_in(names, wanted).to_numpy(zero_copy_only=False)).tolist():
            found.setdefault(names[row].as_py(), table.take([row]))
    missing = [one for one in dict.fromkeys(ids) if one not in found]
    if missing:
        more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
        raise CatalogError(
            f"catalog {catalog.location}: no product has the id {', '.join(missing[:MOST_NAMED])}{more} in column {id_column!r}"
        )
    return pa.concat_tables([found[one] for one in ids]).combine_chunks()


def nearest(
    catalog: Catalog,
    id_column: str,
    label_column: str,
    given: Input,
    texts: Sequence[str],
    own: Sequence[str | None],
    vocabulary: Vocabulary | None,
    count: int,
) -> list[list[Neighbour]]:
    """For each text, the labelled products of a catalog whose n-grams are most like its own, the nearest first.

    `own` are the ids of the products that the texts are of: none is its own neighbour. Words weigh as they do in the model's
    `vocabulary`; without one they weigh alike. One block of the catalog is in memory at a time.
    """
    asked = _weighed(ngrams(pa.array(texts, pa.large_string())), vocabulary)
    best: list[list[Neighbour]] = [[] for _ in texts]
    for _, table in read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema):
        table = table.filter(table.column(label_column).is_valid())
        read = given.read(table)
        known = read.values.is_valid()
        values, rows = read.values.filter(known), np.flatnonzero(known.to_numpy(zero_copy_only=False))
        for start, block in blocks_of(given.texts(values), 8_192):
            likeness = (asked @ _weighed(ngrams(block), vocabulary).T).toarray()
            for place, found in enumerate(likeness):
                for at in np.argsort(-found, kind="stable")[: count + 1].tolist():
                    row = int(rows[start + at])
                    name = str(_texts(table.column(id_column).slice(row, 1))[0].as_py())
                    if name == own[place] or found[at] <= 0:
                        continue
                    label = table.column(label_column)[row].as_py()
                    paths = tuple(path for path in (label if isinstance(label, list) else [label]) if path)
                    best[place].append(Neighbour(name, block[at].as_py()[:SHOWN_CHARACTERS], paths, float(found[at])))
                # Of equally like ones those that come first in the catalog.
                best[place] = sorted(best[place], key=lambda one: -one.likeness)[:count]
    return best


def _weighed(counts: sparse.csr_matrix, vocabulary: Vocabulary | None) -> sparse.csr_matrix:
    """[N, n-grams], each row of length one."""
    if vocabulary:
        return vocabulary.weigh(counts)
    weighed = counts.astype(np.float32)
    weighed.data = 1 + np.log(weighed.data)
    length = np.sqrt(np.asarray(weighed.multiply(weighed).sum(axis=1)).ravel())
    scaled: sparse.csr_matrix = sparse.diags(1 / np.maximum(length, 1e-12)) @ weighed
    return scaled


def _texts(ids: pa.ChunkedArray) -> pa.Array:
    """Ids as they are given on the command line."""
    return written(ids)[0].cast(pa.large_string())
