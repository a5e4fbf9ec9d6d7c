"""How tonight's labels differ from the published ones: the last check before they replace them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.errors import StorageError
from cataloger.heads.category_columns import Category
from cataloger.heads.columns import answer_in, further_in, published_in
from cataloger.heads.tag_columns import PublishedTags
from cataloger.infra.storage import Location, explain
from cataloger.publishing import doubts, snapshot
from cataloger.publishing.doubts import Doubt
from cataloger.taxonomy import prefix

# Products compared one by one; chosen by the hash of their id, so the same ones in both runs.
COMPARED_PRODUCTS = 1_000_000
CONFIDENCE_BINS = 20
# A category without a label counts as half a label, so that the index stays finite.
LEAST_COUNT = 0.5


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


@dataclass(frozen=True)
class Drift:
    """Shares between 0 and 1.

    `missing`: of the products that were labelled before, those that are not, or are on several rows now where they had one.
    `changed`: of the products in both runs, those in another category; `new_texts`: those with another text. `shift`: total
    variation distance between the category distributions, that is the share of labels that would have to move to make them
    equal; `stability`: their population stability index, the sum of (now - before) ln(now / before) (Siddiqi 2006, chapter 9).
    `confidence_fall`: mean confidence before minus now. `flows`: products by (category before, category now).
    """

    every: int
    """One in so many products was looked at."""
    known: int
    """Products of the sample that were labelled before."""
    lost: int
    """Those of them that are missing now."""
    compared: int
    changed: float
    new_texts: float
    shift: float
    stability: float
    confidence_fall: float
    flows: Counter[tuple[str, str]]
    appeared: tuple[str, ...]
    """Categories that had no label before."""
    vanished: tuple[str, ...]

    @property
    def missing(self) -> float:
        return self.lost / max(1, self.known)

    @property
    def worst(self) -> float:
        """The largest of changed, shift and confidence_fall, to be held against a limit."""
        return max(self.changed, self.shift, self.confidence_fall)

    def __str__(self) -> str:
        flows = "; ".join(f"{before} → {now} ({count:,})" for (before, now), count in self.flows.most_common(5))
        return (
            f"{self.missing:.1%} of {self.known:,} products are missing, {self.changed:.1%} of {self.compared:,} compared products "
            f"changed their label, the distribution of labels shifted by {self.shift:.1%}, mean confidence fell by "
            f"{self.confidence_fall:.3f}" + (f"; most moved: {flows}" if flows else "")
        )


def compare(before: Summary, now: Summary) -> Drift:
    """Both with the same sample of products."""
    both = before.labels.merge(now.labels, on="id", suffixes=("_before", "_now"))
    there = np.union1d(now.labels["id"].to_numpy(np.uint64), now.repeated)
    lost = len(before.labels) - len(both) + int((~np.isin(before.repeated, there)).sum())
    moved = both[both["category_before"] != both["category_now"]]
    categories = sorted({*before.counts, *now.counts})
    old, new = (np.array([run.counts[path] for path in categories], float) for run in (before, now))
    empty = not old.sum() or not new.sum()
    p, q = (np.maximum(counts, LEAST_COUNT) / max(1.0, counts.sum()) for counts in (old, new))
    return Drift(
        every=before.every,
        known=len(before.labels) + len(before.repeated),
        lost=lost,
        compared=len(both),
        changed=len(moved) / max(1, len(both)),
        new_texts=float((both["text_before"] != both["text_now"]).mean()) if len(both) else 0.0,
        shift=0.0 if empty else float(np.abs(old / old.sum() - new / new.sum()).sum() / 2),
        stability=0.0 if empty else float(((q - p) * np.log(q / p)).sum()),
        confidence_fall=0.0 if empty else before.mean_confidence - now.mean_confidence,
        # Sets of tags are nearly as many as products are.
        flows=Counter() if now.tags else Counter(zip(moved["category_before"], moved["category_now"], strict=True)),
        appeared=tuple(path for path, count in zip(categories, old, strict=True) if not count),
        vanished=tuple(path for path, count in zip(categories, new, strict=True) if not count),
    )


def sample_every(rows: int) -> int:
    """How `summarise` is to sample the products of a run of about so many rows."""
    return ids.sample_every(rows, COMPARED_PRODUCTS)


def summarise(parts: Sequence[Location], every: int | None, column: str | None = None) -> Summary:
    """Of the label files of a run, and of its further answer in a column where one is named; without `every`, no products are kept."""
    rows, review, without, confidence, histogram = 0, 0, 0, 0.0, np.zeros(CONFIDENCE_BINS, np.int64)
    counts: Counter[str] = Counter()
    reviewed: Counter[str] = Counter()
    values: Counter[tuple[str, str, str]] = Counter()
    doubtful: tuple[Doubt, ...] = ()
    samples, tags = [], False
    units = {part.path: unit for unit, part in enumerate(parts)}
    # Folded as they come: ten thousand categories counted in each of a thousand parts would not fit the driver.
    for part in snapshot.each(parts, lambda part: _read_part(part, units[part.path], every, column)):
        rows, review, confidence = rows + part.rows, review + part.review, confidence + part.confidence
        histogram += part.histogram
        counts.update(part.counts)
        reviewed.update(part.reviewed)
        without, tags = without + part.without, tags or part.tags
        values.update(part.values)
        doubtful = doubts.least([*doubtful, *part.doubts])
        samples.append(part.labels)
    labels = pd.concat(samples) if samples else pd.DataFrame({"id": [], "category": [], "text": []})
    return Summary(
        rows=rows,
        counts=counts,
        confidence=confidence,
        histogram=histogram,
        review=review,
        labels=labels.drop_duplicates("id", keep=False),
        repeated=labels.loc[labels["id"].duplicated(), "id"].unique().astype(np.uint64),
        every=every or 1,
        reviewed=reviewed,
        without=without,
        doubts=doubtful,
        values=values,
        tags=tags,
        says_review=not (tags and column),
    )


@dataclass(frozen=True)
class _Part:
    """What one label file adds to a summary."""

    rows: int
    counts: Counter[str]
    confidence: float
    histogram: npt.NDArray[np.int64]
    review: int
    labels: pd.DataFrame
    reviewed: Counter[str]
    without: int
    doubts: tuple[Doubt, ...]
    values: Counter[tuple[str, str, str]]
    tags: bool


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


def _read_part(part: Location, unit: int, every: int | None, column: str | None) -> _Part:
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
    frame = table.select(["needs_review"]).to_pandas()
    frame["confidence"] = columns.confidence(table).to_numpy()
    counts = pc.value_counts(columns.each(table)).to_pylist()
    # A row of several categories counts in each.
    reviewed = pc.value_counts(columns.each(table.filter(table.column("needs_review")))).to_pylist()
    whole = columns.whole(table)
    # Of what does not move, it is enough to know whether it is the same.
    frame["category"] = whole if columns.moves else ids.hash_ids(pa.array(whole, pa.string()))
    # By hash: ids that were numbers yesterday and are strings today are simply other ids.
    frame["id"], frame["text"] = ids.hash_ids(products.column("id")), ids.hash_ids(products.column("text_hash"))
    chosen = frame["id"] % np.uint64(every) == 0 if every else np.zeros(len(frame), bool)
    return _Part(
        rows=len(frame),
        counts=Counter({pair["values"]: pair["counts"] for pair in counts}),
        confidence=float(frame["confidence"].sum()),
        histogram=np.histogram(frame["confidence"], CONFIDENCE_BINS, (0, 1))[0],
        review=int(frame["needs_review"].sum()),
        labels=frame.loc[chosen, ["id", "category", "text"]],
        reviewed=Counter({pair["values"]: pair["counts"] for pair in reviewed}),
        without=columns.empty(table),
        doubts=doubts.in_part(frame, unit),
        values=columns.values(table, _top_categories(products)) if isinstance(columns, PublishedTags) else Counter(),
        tags=not columns.moves,
    )


def _top_categories(products: pa.Table) -> pa.Array:
    """The first step of each product's path, "" where products have none, or several."""
    if Category.answer not in products.column_names:
        return pa.repeat(pa.scalar(""), len(products))
    paths = products.column(Category.answer).combine_chunks().cast(pa.string()).dictionary_encode()
    tops = pa.array([prefix(path, 1) for path in paths.dictionary.to_pylist()], pa.string())
    return tops.take(paths.indices)
