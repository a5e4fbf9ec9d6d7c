"""What a model said about rows whose category is known: evaluation writes it, comparison reads it."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger import seen
from cataloger.errors import CatalogError

log = logging.getLogger(__name__)
FILE = "predictions.parquet"
_ABOUT = b"cataloger.evaluation"
SLICE = "slice."  # before the name of a column to slice by

Sets = Sequence[Collection[str]]


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
    seen: float | None = None
    """The share of these rows that the model was trained or validated on; None where that cannot be told."""

    @property
    def knows_the_answers(self) -> bool:
        """Whether the model saw so many of the rows that its scores are too good."""
        return (self.seen or 0.0) > seen.TOLERATED


@dataclass(frozen=True)
class Predictions:
    """One row per product that has a category: `row` (its number in the catalog), id, text, true_category, category,
    confidence, needs_review, and the columns to slice by as `slice.NAME`; true_categories and categories of a multi-label model."""

    table: pa.Table
    about: About

    @classmethod
    def of(cls, labels: pa.Table, names: Mapping[str, str], about: About) -> "Predictions":
        """From labels with the columns `written`, the category or list of them as it stands in the catalog, and `seen`.

        `names` has the normalised path of each written one. Raises CatalogError when no row has a category.
        """
        answer = "categories" if "categories" in labels.column_names else "category"
        true = [_normalised(written, names) for written in labels.column("written").to_pylist()]
        columns = {name: labels.column(name) for name in ("row", "id", "text")}
        columns |= {
            name: labels.column(name).cast(pa.large_string()) for name in labels.column_names if name.startswith(SLICE)
        }
        columns[f"true_{answer}"] = pa.array(true, labels.schema.field(answer).type)
        columns |= {name: labels.column(name) for name in (answer, "confidence", "needs_review")}
        table = pa.table(columns)
        known = pa.array([bool(value) for value in true])
        scored = table.filter(known)
        if len(scored) < len(table):
            log.info("%s rows without a category were left out", f"{len(table) - len(scored):,}")
        if not len(scored):
            raise CatalogError(
                f"catalog {about.catalog}: no row with text and a category to score; check --label-column and --split"
            )
        return cls(scored, replace(about, seen=seen.share(labels.column("seen").filter(known))))

    @property
    def multi_label(self) -> bool:
        return "categories" in self.table.column_names

    @property
    def answer(self) -> str:
        """The name of the column of the model's answers; that of the true ones has `true_` before it."""
        return "categories" if self.multi_label else "category"

    @property
    def slices(self) -> list[str]:
        """The names of the columns to slice by."""
        return [name for name in self.table.column_names if name.startswith(SLICE)]

    @property
    def true(self) -> Sets:
        """The true categories of each row."""
        return self._sets(f"true_{self.answer}")

    @property
    def given(self) -> Sets:
        """The categories that the model gave each row."""
        return self._sets(self.answer)

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """[rows]"""
        return np.asarray(self.table.column("confidence").to_numpy(), np.float64)

    def take(self, rows: npt.NDArray[np.int64]) -> "Predictions":
        """These places of the table, in this order."""
        return Predictions(self.table.take(pa.array(rows)), self.about)

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
        return cls(table, About(**{**about, "categories": tuple(about["categories"])}))

    def _sets(self, column: str) -> Sets:
        values: list[list[str]] = self.table.column(column).to_pylist()
        return values if self.multi_label else [[path] for path in values]  # type: ignore[list-item]


def exact(true: Sets, given: Sets) -> npt.NDArray[np.bool_]:
    """[rows] whether the model gave a row just its true categories."""
    return np.array([set(left) == set(right) for left, right in zip(true, given, strict=True)], bool)


def _normalised(written: str | list[str | None] | None, names: Mapping[str, str]) -> str | list[str] | None:
    if isinstance(written, list):
        return sorted({names[path] for path in written if path is not None and path in names})
    return None if written is None else names.get(written)
