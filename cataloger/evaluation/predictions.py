"""What a model said about rows whose category is known: evaluation writes it, comparison reads it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import seen
from cataloger.data.kinds import SPANS, is_list
from cataloger.errors import CatalogError
from cataloger.evaluation import tagging
from cataloger.heads.category_columns import IMAGE_STATUS
from cataloger.heads.columns import Published, published_in
from cataloger.heads.sets import Sets, indicators
from cataloger.heads.tag_columns import PublishedTags
from cataloger.spec import prefix_of

log = logging.getLogger(__name__)
FILE, WRITTEN = "predictions.parquet", "written"
_ABOUT = b"cataloger.evaluation"
SLICE = "slice."  # before the name of a column to slice by
TRUE = "true_"  # before that of the answer
# Of a model that reads and sees, a slice of its own: what a row's category would have been without the picture.
DECIDED, BY_PICTURE, BY_TEXT = "decided_by", "picture", "text"


class NothingToScore(CatalogError):
    """No row has a true answer."""


@dataclass(frozen=True)
class About:
    """Which model was asked, and about what."""

    model: str
    catalog: str
    catalog_fingerprint: str
    id_column: str
    label_column: str
    split: str
    categories: tuple[str, ...]
    """Those that the model can answer."""
    texts_per_second: float
    """Of one model actor."""
    text_columns: tuple[str, ...] = ()
    label_kind: str = ""
    """What the label column has; see `data.kinds`."""
    further: tuple[str, ...] = ()
    """The columns of the model's further answers, whose predictions lie beside these."""
    seen: float | None = None
    """The share of these rows that the model was trained or validated on; None where that cannot be told."""

    @property
    def knows_the_answers(self) -> bool:
        """Whether the model saw so many of the rows that its scores are too good."""
        return (self.seen or 0.0) > seen.TOLERATED


@dataclass(frozen=True)
class Predictions:
    """One row per product that has a category: `row` (its number in the catalog), id, text, true_category, category,
    confidence, needs_review, and the columns to slice by as `slice.NAME`, such as what became of its picture; true_categories and categories of a multi-label model."""

    table: pa.Table
    about: About
    others: Mapping[str, "Predictions"] = field(default_factory=dict)
    """Of the model's further answers, by their columns."""

    @classmethod
    def of(
        cls, labels: pa.Table, names: Mapping[str, str], about: About, found: Published | None = None
    ) -> "Predictions":
        """From labels with the columns `written`, the category or list of them as it stands in the catalog, and `seen`.

        `names` has the normalised path of each written one, `found` says which columns are the model's. Raises NothingToScore when no
        row has a category.
        """
        found = found or published_in(labels.schema)
        answer, places, given = found.answer, {}, labels.column(found.answer)
        if isinstance(found, PublishedTags):
            true, true_places, hidden = tagging.true_paths(labels, about.text_columns, about.label_kind == SPANS)
            counts = tagging.pairs(true.to_pylist(), tagging.scored_paths(given))
            given, own_places = tagging.given_paths(given, hidden, about.text_columns)
            places = {tagging.TRUE_PLACES: true_places, tagging.PLACES: own_places}
            places |= dict(zip(tagging.PAIRS, counts.T, strict=True))
        else:
            true = _normalised(labels.column(WRITTEN), names)
        columns = {name: labels.column(name) for name in ("row", "id", "text")}
        if IMAGE_STATUS in labels.column_names:
            columns[SLICE + IMAGE_STATUS] = labels.column(IMAGE_STATUS)
        columns |= {
            name: labels.column(name).cast(pa.large_string()) for name in labels.column_names if name.startswith(SLICE)
        }
        columns[f"{TRUE}{answer}"] = true
        columns |= {
            answer: given,
            "confidence": found.confidence(labels),
            "needs_review": labels.column("needs_review"),
        }
        table = pa.table(columns | places)
        # A product may well have no tag; without a category it has no label.
        known = pc.greater(pc.list_value_length(true), 0) if is_list(true.type) and not places else true.is_valid()
        scored = table.filter(known)
        if len(scored) < len(table):
            log.info("%s rows without a category were left out", f"{len(table) - len(scored):,}")
        if not len(scored):
            raise NothingToScore(
                f"catalog {about.catalog}: no row with text and a category to score; check --label-column and --split"
            )
        return cls(scored, replace(about, seen=seen.share(labels.column("seen").filter(known))))

    @property
    def answer(self) -> str:
        """The name of the column of the model's answers; that of the true ones has `true_` before it."""
        own = [name for name in self.table.column_names if name.startswith(TRUE) and name != tagging.TRUE_PLACES]
        return str(own[0]).removeprefix(TRUE)

    @property
    def places(self) -> list[Sets]:
        """Where the true tags of each row stand, and where those stand that the model gave it; empty for other answers."""
        if tagging.PLACES not in self.table.column_names:
            return []
        return Sets.of(self.table.column(tagging.TRUE_PLACES), self.table.column(tagging.PLACES))

    @property
    def pairs(self) -> npt.NDArray[np.int64]:
        """[rows, 3] of tags, as `tagging.pairs` counts them."""
        return np.stack([self.table.column(name).to_numpy() for name in tagging.PAIRS], axis=1)

    @property
    def slices(self) -> list[str]:
        """The names of the columns to slice by."""
        return [name for name in self.table.column_names if name.startswith(SLICE)]

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """[rows]"""
        return np.asarray(self.table.column("confidence").to_numpy(), np.float64)

    def take(self, rows: npt.NDArray[np.int64]) -> "Predictions":
        """These places of the table, in this order."""
        if np.array_equal(rows, np.arange(len(self.table))):
            return self  # no copy of what may be gigabytes
        return replace(self, table=self.table.take(pa.array(rows)))

    def to_parquet(self) -> bytes:
        sink = pa.BufferOutputStream()
        metadata = {_ABOUT: json.dumps(asdict(self.about), ensure_ascii=False).encode()}
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd")
        return bytes(sink.getvalue())

    @classmethod
    def from_parquet(cls, data: bytes) -> "Predictions":
        table = pq.read_table(pa.BufferReader(data))
        about = json.loads(table.schema.metadata[_ABOUT])
        if about.pop("saw_these_rows", False):  # what evaluations said before they knew how many
            about["seen"] = 1.0
        lists = {name: tuple(about.get(name, ())) for name in ("categories", "text_columns", "further")}
        return cls(table, About(**{**about, **lists}))


def file_of(column: str) -> str:
    """The name in MLflow of the predictions of a further answer, or of the first one without a name."""
    return f"{prefix_of(column)}{FILE}" if column else FILE


def decided(labels: pa.Table, blind: pa.Table) -> pa.Array:
    """For each of these labels whether the same model gave another one, or none, without the picture."""
    columns = published_in(labels.schema)
    without = dict(zip(blind.column("row").to_pylist(), columns.whole(blind), strict=True))
    rows = zip(labels.column("row").to_pylist(), columns.whole(labels), strict=True)
    return pa.array([BY_TEXT if without.get(row) == category else BY_PICTURE for row, category in rows], pa.string())


def sides(first: Predictions, *others: Predictions) -> list[Sets]:
    """The true categories of each row, and those that each of the models gave it, over one list of names."""
    answers = [one.table.column(one.answer) for one in (first, *others)]
    return Sets.of(first.table.column(f"{TRUE}{first.answer}"), *answers)


def _normalised(written: pa.ChunkedArray, names: Mapping[str, str]) -> pa.Array:
    """The category, null where a row has none, or the sorted list of them."""
    paths = sorted(set(names.values()))
    place = {path: number for number, path in enumerate(paths)}
    lists = is_list(written.type)
    flat = (
        pa.chunked_array([chunk.flatten() for chunk in written.chunks], written.type.value_type) if lists else written
    )
    flat = flat if pa.types.is_dictionary(flat.type) else flat.dictionary_encode()
    flat = flat.unify_dictionaries().combine_chunks()
    ids = pa.array([place.get(names.get(path, "")) for path in flat.dictionary.to_pylist()], pa.int32()).take(
        flat.indices
    )
    if not lists:
        return pa.DictionaryArray.from_arrays(ids, pa.array(paths, pa.string()))
    known = ids.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(written), 0).to_numpy()
    owners = np.repeat(np.arange(len(lengths)), lengths)[known]
    rows = indicators(
        ids.to_numpy(zero_copy_only=False)[known].astype(np.int32),
        np.bincount(owners, minlength=len(lengths)),
        len(paths),
    )
    return pa.ListArray.from_arrays(
        pa.array(rows.indptr.astype(np.int32)), pa.array(paths, pa.string()).take(pa.array(rows.indices))
    )
