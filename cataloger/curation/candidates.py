"""The products of a published run with their labels, side by side, and those among them that are worth asking people about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data.catalog import Catalog
from cataloger.data.ids import as_text
from cataloger.data.reading import read_units
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import CatalogError, StorageError
from cataloger.heads.category_columns import BY_PIN, SOURCE, Category
from cataloger.heads.columns import published_in
from cataloger.infra.storage import Location, explain
from cataloger.publishing.parts import REJECTS, part_name

# Of so many times as many candidates as are asked about the most telling ones are chosen; never of fewer than so many. Of more, ones that
# are nearly sure would be chosen because they are like many others: `benchmarks/review.py` reaches less with twenty times as many.
PER_QUESTION, LEAST = 10, 1_000
MOST = 10_000
WORTH, WEIGHT, ALIKE = "worth", "weight", "alike"
# Before the names of a product's own columns, which may be called anything.
OF_PRODUCT = "product."


def labelled_rows(
    manifest: Mapping[str, Any], folder: Location, catalog: Catalog
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(labels, the rows of the catalog that they are of), part by part. Raises CatalogError for a catalog of other rows."""
    rows = {file["name"]: file["rows"] for file in manifest["files"]}
    sizes = [rows[part_name(unit)] + rows.get(f"{REJECTS}/{part_name(unit)}", 0) for unit in range(manifest["units"])]
    if catalog.rows != sum(sizes):
        raise _others(catalog, manifest)
    for unit, table in enumerate(_cut(_tables(catalog), sizes)):
        labels = _read(folder / part_name(unit))
        rejected = f"{REJECTS}/{part_name(unit)}"
        lost = (
            _read(folder / rejected).column("id")
            if rejected in rows
            else pa.chunked_array([], labels.schema.field("id").type)
        )
        kept = _labelled(as_text(table.column(0)), as_text(labels.column("id")), as_text(lost))
        if kept is None:
            raise _others(catalog, manifest)
        yield labels, table.filter(pa.array(kept))


def _others(catalog: Catalog, manifest: Mapping[str, Any]) -> CatalogError:
    return CatalogError(
        f"catalog {catalog.location}: has other products than run {manifest['run']} was made from; name that catalog, or label this one first"
    )


def _tables(catalog: Catalog) -> Iterator[pa.Table]:
    for read in plan_reads(plan_units(catalog)):
        for _, table in read_units(catalog.location.filesystem, read.units, catalog.schema):
            yield table


def _cut(tables: Iterator[pa.Table], sizes: Sequence[int]) -> Iterator[pa.Table]:
    """The same rows in tables of these sizes: how a run was cut depends on its columns. Short ones where there are not enough."""
    left = next(tables, None)
    for size in sizes:
        found: list[pa.Table] = []
        wanted = size
        while wanted and left is not None:
            found.append(left.slice(0, wanted))
            wanted -= len(found[-1])
            left = left.slice(len(found[-1]))
            if not len(left):
                left = next(tables, None)
        if found:
            yield pa.concat_tables(found).combine_chunks()


def _labelled(own: pa.Array, labelled: pa.Array, rejected: pa.Array) -> npt.NDArray[np.bool_] | None:
    """[N] which rows have the labels, in their order; None where the ids are not those of labels and rejects together."""
    if len(own) != len(labelled) + len(rejected):
        return None
    kept = np.ones(len(own), bool)
    if len(rejected):
        kept = ~pc.is_in(own, rejected).to_numpy(zero_copy_only=False)
        if kept.sum() != len(labelled):  # an id on several rows, of which some are rejected
            kept = _walked(own.to_pylist(), labelled.to_pylist())
    return kept if own.filter(pa.array(kept)).equals(labelled) else None


def _walked(own: Sequence[Any], labelled: Sequence[Any]) -> npt.NDArray[np.bool_]:
    kept, place = np.zeros(len(own), bool), 0
    for row, one in enumerate(own):
        if place < len(labelled) and one == labelled[place]:
            kept[row] = True
            place += 1
    return kept


def _read(location: Location) -> pa.Table:
    try:
        return pq.read_table(location.path, filesystem=location.filesystem, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{location}: cannot be read, to choose among its labels: {explain(error)}") from error


@dataclass(frozen=True)
class Candidates:
    """Products that may be asked about, one for each text: their columns in the catalog, their label, and what an answer is worth."""

    rows: pa.Table
    seen: int
    """Labels that were looked at."""


def find(
    pairs: Iterator[tuple[pa.Table, pa.Table]], columns: Sequence[str], weight: str | None, budget: int
) -> Candidates:
    """Those whose answer is worth most: how unsure the label is, times the weight of all products with its text.

    Labels that a person has given are none, nor are products without an id. Of many products the weights are summed among those
    that are kept so far. Raises CatalogError for a weight that is negative.
    """
    most, seen, pool = max(LEAST, min(MOST, PER_QUESTION * budget), 2 * budget), 0, list[pa.Table]()
    for labels, products in pairs:
        seen += len(labels)
        rows = _columns(labels, products, columns, weight)
        pool.append(rows.filter(pc.greater(rows.column(WORTH), 0)))
        if sum(map(len, pool)) > 4 * most:
            pool = [_best(pa.concat_tables(pool), most)]
    return Candidates(_best(pa.concat_tables(pool), most) if pool else pa.table({}), seen)


def _columns(labels: pa.Table, products: pa.Table, columns: Sequence[str], weight: str | None) -> pa.Table:
    weights = np.ones(len(labels))
    if weight:
        try:
            weights = pc.fill_null(products.column(weight).cast(pa.float64()), 0.0).to_numpy()
        except pa.ArrowException as error:
            raise CatalogError(
                f"--weight-column {weight}: has text that is no number; name a column of numbers from 0 on"
            ) from error
        if (weights < 0).any() or not np.isfinite(weights).all():
            raise CatalogError(
                f"--weight-column {weight}: has values below 0, or none at all; name a column of numbers from 0 on"
            )
    worth = unsure(labels) * weights
    if SOURCE in labels.column_names:
        worth[pc.equal(labels.column(SOURCE), BY_PIN).to_numpy()] = 0
    worth[labels.column("id").is_null().to_numpy()] = 0
    said = (published_in(labels.schema).answer, "confidences", "confidence", "alternatives", "text_hash")
    found = {name: labels.column(name) for name in ("id", *said) if name in labels.column_names}
    found |= {OF_PRODUCT + name: products.column(name) for name in columns}
    return pa.table({**found, WEIGHT: weights, WORTH: worth, ALIKE: np.ones(len(labels), np.int64)})


def products_of(rows: pa.Table) -> pa.Table:
    """The columns of candidates that are the catalog's, by their names there; the id is `id`."""
    own = [name for name in rows.column_names if name.startswith(OF_PRODUCT) and name != OF_PRODUCT + "id"]
    return rows.select(["id", *own]).rename_columns(["id", *(name.removeprefix(OF_PRODUCT) for name in own)])


def unsure(labels: pa.Table) -> npt.NDArray[np.float64]:
    """[N] from 0 to 1: of one category how near the next one is, 1 - (p1 - p2), the margin of Scheffer et al. 2001; of lists 1 - confidence."""
    confidence: npt.NDArray[np.float64] = labels.column("confidence").to_numpy().astype(np.float64)
    if Category.answer not in labels.column_names:
        return 1 - confidence
    others = labels.column("alternatives").combine_chunks()
    some = pc.greater(pc.list_value_length(others), 0)
    runner_up = np.zeros(len(labels))
    second = pc.struct_field(pc.list_element(others.filter(some), 0), "confidence")
    runner_up[some.to_numpy(zero_copy_only=False)] = second.to_numpy()
    return np.asarray(np.clip(1 - (confidence - runner_up), 0, 1))


def _best(rows: pa.Table, most: int) -> pa.Table:
    """The most worthy ones, one for each text, and one for each id: an answer to one tells of all that have the text."""
    rows = rows.combine_chunks()
    coded = rows.column("text_hash").combine_chunks().dictionary_encode()
    number = coded.indices.to_numpy()
    _, first = np.unique(number, return_index=True)
    found = rows.take(pa.array(first))
    for name in (WEIGHT, WORTH, ALIKE):
        total = np.bincount(number, rows.column(name).to_numpy().astype(np.float64))
        kind = rows.schema.field(name).type
        found = found.set_column(found.column_names.index(name), name, pa.array(total).cast(kind))
    found = found.take(pa.array(np.argsort(-found.column(WORTH).to_numpy(), kind="stable")))
    _, once = np.unique(as_text(found.column("id")).dictionary_encode().indices.to_numpy(), return_index=True)
    return found.take(pa.array(np.sort(once)[:most]))
