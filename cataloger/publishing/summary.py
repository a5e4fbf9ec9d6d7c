"""What the labels of a run come to: counted part by part, and of a sample of products what they are."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.errors import StorageError
from cataloger.heads.category_columns import Category
from cataloger.heads.columns import Published, answer_in, further_in, published_in
from cataloger.heads.tag_columns import PublishedTags
from cataloger.infra.storage import Location, explain
from cataloger.publishing import doubts, snapshot
from cataloger.publishing.doubts import Doubt
from cataloger.taxonomy import prefix

# Products compared one by one; chosen by the hash of their id, so the same ones in both runs.
COMPARED_PRODUCTS = 1_000_000
CONFIDENCE_BINS = 20
# What so many parts come to is handed on as one: ten thousand categories counted in each of ten thousand parts would keep who adds
# them up busy. Of a smaller run there are this many groups.
PARTS_PER_GROUP = 16
LEAST_GROUPS = 64

Item = TypeVar("Item")
Found = TypeVar("Found")
Each = Callable[[Iterable[Item], Callable[[Item], Found]], Iterator[Found]]


@dataclass(frozen=True)
class Summary:
    """What the labels of a run come to.

    `labels` has id, category and text (both hashed but the category) of a sample of products, `repeated` the hashed ids of
    those in the sample that are on several rows: these cannot be followed from one run to the next.
    """

    rows: int
    counts: Counter[str]
    confidence: float
    """The sum over all rows."""
    histogram: npt.NDArray[np.int64]
    """Rows by confidence, in 20 bins from 0 to 1."""
    review: int
    labels: pd.DataFrame
    repeated: ids.Hashes
    every: int
    """One in so many products is in the sample."""
    reviewed: Counter[str]
    """Of `counts`, the labels that need review."""
    without: int
    """Rows without any category, as a model of any number of categories may leave them."""
    doubts: tuple[Doubt, ...]
    """Of the labels that need review the least certain, one for each text."""
    values: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Of tags, by the top category of the product, or "" without one, how often a name has a value: the commonest of each name."""
    tags: bool = False
    """Whether the labels are tags of words; `counts` are of their names then."""
    says_review: bool = True
    """Whether the labels say which of them need review: tags that are a further answer do not."""

    @property
    def mean_confidence(self) -> float:
        return self.confidence / max(1, self.rows)

    @property
    def review_share(self) -> float:
        return self.review / max(1, self.rows)


def sample_every(rows: int) -> int:
    """How `summarise` is to sample the products of a run of about so many rows."""
    return ids.sample_every(rows, COMPARED_PRODUCTS)


def summarise(
    parts: Sequence[Location],
    every: int | None,
    column: str | None = None,
    each: "Each[_Group, _Tally]" = snapshot.each,
) -> Summary:
    """Of the label files of a run, and of its further answer in a column where one is named; without `every`, no products are kept.

    `each` does the reading: threads of this process, unless it is told otherwise.
    """
    size = min(PARTS_PER_GROUP, max(1, len(parts) // LEAST_GROUPS))
    numbered = list(enumerate(parts))
    groups = [numbered[first : first + size] for first in range(0, len(parts), size)]
    total = _Tally()
    # Folded as they come: all of them would not fit the driver.
    for tally in each(groups, functools.partial(_read_group, every=every, column=column)):
        total.add(tally)
    labels = pd.concat(total.labels) if total.labels else pd.DataFrame({"id": [], "category": [], "text": []})
    return Summary(
        rows=total.rows,
        counts=total.counts,
        confidence=total.confidence,
        histogram=total.histogram,
        review=total.review,
        labels=labels.drop_duplicates("id", keep=False),
        repeated=labels.loc[labels["id"].duplicated(), "id"].unique().astype(np.uint64),
        every=every or 1,
        reviewed=total.reviewed,
        without=total.without,
        doubts=total.doubts,
        values=total.values,
        tags=total.tags,
        says_review=not (total.tags and column),
    )


def further_answers(parts: Sequence[Location]) -> list[str]:
    """The columns of the further answers that labels have, by the first of their files. Raises StorageError."""
    for part in parts[:1]:
        try:
            return list(further_in(pq.read_schema(part.path, filesystem=part.filesystem)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(part, error) from error
    return []


def _unreadable(part: Location, error: BaseException) -> StorageError:
    return StorageError(f"{part}: cannot be read, to compare labels: {explain(error)}; see jobs/verify.py")


_Group = Sequence[tuple[int, Location]]


@dataclass
class _Tally:
    """What some parts come to."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    confidence: float = 0.0
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64))
    review: int = 0
    labels: list[pd.DataFrame] = field(default_factory=list)
    reviewed: Counter[str] = field(default_factory=Counter)
    without: int = 0
    doubts: tuple[Doubt, ...] = ()
    values: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    tags: bool = False

    def add(self, other: "_Tally") -> None:
        self.rows, self.review = self.rows + other.rows, self.review + other.review
        self.confidence, self.without = self.confidence + other.confidence, self.without + other.without
        self.histogram += other.histogram
        for own, others in ((self.counts, other.counts), (self.reviewed, other.reviewed), (self.values, other.values)):
            own.update(others)  # type: ignore[arg-type]  # each with its like
        self.doubts = doubts.least([*self.doubts, *other.doubts])
        self.labels += other.labels
        self.tags |= other.tags


def _read_group(group: _Group, every: int | None, column: str | None) -> _Tally:
    total = _Tally()
    for unit, part in group:
        total.add(_read_part(part, unit, every, column))
    if total.labels:
        total.labels = [pd.concat(total.labels)]
    return total


def _read_part(part: Location, unit: int, every: int | None, column: str | None) -> _Tally:
    try:
        with pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
            schema = file.schema_arrow
            columns = further_in(schema)[column] if column else published_in(schema)
            first = published_in(schema)
            names = [column, *first.watched] if column else ["needs_review", *columns.watched]
            products = file.read(columns=["id", "text_hash", *names])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(part, error) from error
    if column:  # of a product that the model could not read, and people gave a category, it says nothing else
        products = products.filter(products.column(column).is_valid())
    table = answer_in(products, column) if column else products
    confidence, review = columns.confidence(table).to_numpy(), table.column("needs_review")
    # A row of several categories counts in each.
    counts, reviewed = (pc.value_counts(columns.each(some)).to_pylist() for some in (table, table.filter(review)))
    return _Tally(
        rows=len(table),
        counts=Counter({pair["values"]: pair["counts"] for pair in counts}),
        confidence=float(confidence.sum(dtype=np.float64)),
        histogram=np.histogram(confidence, CONFIDENCE_BINS, (0, 1))[0],
        review=pc.sum(review).as_py() or 0,
        labels=[_sample(products, table, columns, every)] if every else [],
        reviewed=Counter({pair["values"]: pair["counts"] for pair in reviewed}),
        without=columns.empty(table),
        doubts=doubts.in_part(confidence, review.to_numpy(), products.column("text_hash"), unit),
        values=columns.values(table, _top_categories(products)) if isinstance(columns, PublishedTags) else Counter(),
        tags=not columns.moves,
    )


def _sample(products: pa.Table, table: pa.Table, columns: Published, every: int) -> pd.DataFrame:
    """By hash: ids that were numbers yesterday and are strings today are simply other ids."""
    hashes = ids.hash_ids(products.column("id"))
    rows = np.flatnonzero(hashes % np.uint64(every) == 0)
    whole = columns.whole(table.take(pa.array(rows)))
    return pd.DataFrame(
        {
            "id": hashes[rows],
            # Of what does not move, it is enough to know whether it is the same.
            "category": whole if columns.moves else ids.hash_ids(pa.array(whole, pa.string())),
            "text": ids.hash_ids(products.column("text_hash").take(pa.array(rows))),
        }
    )


def _top_categories(products: pa.Table) -> pa.Array:
    """The first step of each product's path, "" where products have none, or several."""
    if Category.answer not in products.column_names:
        return pa.repeat(pa.scalar(""), len(products))
    paths = products.column(Category.answer).combine_chunks().cast(pa.string()).dictionary_encode()
    tops = pa.array([prefix(path, 1) for path in paths.dictionary.to_pylist()], pa.string())
    return tops.take(paths.indices)
