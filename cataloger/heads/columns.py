"""What is published of a model's answers: their columns, made from its answers and read back.

Answers are Arrow tables with one row per distinct text. Those of one category: label, confidence, levels [D] (NaN below the
depth of the category), alternatives [K] and alternative_confidence [K]; those of any number: labels, probabilities,
confidence, alternatives and alternative_confidence, all but the third of any length; those of tags: tags. Those of a model with words also have
TIER, who gave them, and those of a model that sees IMAGE_STATUS. Labels have the published columns.
"""

import contextlib
from collections import Counter
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec
from cataloger.data.kinds import is_list
from cataloger.heads.tag_columns import PublishedTags, Tagged
from cataloger.taxonomy import Taxonomy

# Who answered: words alone, or words and network together.
TIER, BY_WORDS, BY_BOTH = "tier", "words", "both"
# Of a model that sees, what became of the row's picture (`data.images`).
IMAGE_STATUS = "image_status"


class Published(Protocol):
    """The published columns of one kind of answer, as they are read."""

    answer: str
    """The column of the category, or categories, or tags."""
    kept: tuple[str, ...]
    """The columns that answers can be made from again, with those of `also`."""
    watched: tuple[str, ...]
    """Those that the methods below need, but for `scored`."""

    moves: bool
    """Whether it is of interest which answer became which other one."""

    def each(self, labels: pa.Table) -> pa.Array | pa.ChunkedArray:
        """The category of every row; of rows that have several, all of them, end to end; of tags, the names that each row has."""

    def values(self, labels: pa.Table) -> Counter[tuple[str, str]]:
        """Of tags, how often a name has a value; of categories, nothing."""

    def whole(self, labels: pa.Table) -> list[str]:
        """One string per row, the same for the same category, or the same set of them."""

    def scored(self, labels: pa.Table) -> list[list[tuple[str, float]]]:
        """Of each row its (category, confidence), the most probable first."""

    def empty(self, labels: pa.Table) -> int:
        """Rows without any category."""

    def confidence(self, labels: pa.Table) -> pa.Array:
        """[rows]"""


class Columns(Published, Protocol):
    """The published columns of one kind of answer, both ways."""

    def __init__(self, spec: Spec) -> None: ...

    @staticmethod
    def fits(label: pa.Field) -> bool:
        """Whether such a label column is what a model with these answers learns from."""

    def to_labels(self, answers: pa.Table) -> dict[str, pa.Array]:
        """The columns by name, `answer` first; `needs_review` is among them."""

    def from_labels(self, labels: pa.Table, alternatives: int) -> pa.Table:
        """The answers that labels of the same model, with as many alternatives, were made from."""


class Category:
    """Of one category each."""

    answer: str = "category"
    moves = True
    watched: tuple[str, ...] = ("category", "confidence")
    kept: tuple[str, ...] = ("category", "level_confidences", "confidence", "alternatives")

    def __init__(self, spec: Spec) -> None:
        self.categories, self.taxonomy = pa.array(spec.categories), Taxonomy(spec.categories)
        self.thresholds = np.array(spec.thresholds or [0.0] * self.taxonomy.depth, np.float32)

    @staticmethod
    def fits(label: pa.Field) -> bool:
        return not is_list(label.type)

    def to_labels(self, answers: pa.Table) -> dict[str, pa.Array]:
        category = self.categories.take(answers.column("label").combine_chunks())
        trusted = self._trusted(answers)
        return {
            "category": category,
            "confidence": answers.column("confidence").combine_chunks(),
            "level_confidences": _trim(answers.column("levels").combine_chunks()),
            "alternatives": _alternatives(answers, self.categories),
            "trusted_category": trusted,
            "needs_review": pc.invert(pc.fill_null(pc.equal(trusted, category), False)),
            **_also(answers),
        }

    def from_labels(self, labels: pa.Table, alternatives: int) -> pa.Table:
        count = min(alternatives, len(self.categories) - 1)
        label = pc.index_in(labels.column("category").combine_chunks(), self.categories)
        levels = labels.column("level_confidences").combine_chunks()
        depths = pc.list_value_length(levels).to_numpy(zero_copy_only=False)
        matrix = np.full((len(labels), self.taxonomy.depth), np.nan, np.float32)
        matrix[np.arange(matrix.shape[1]) < depths[:, None]] = levels.flatten().to_numpy()
        others = labels.column("alternatives").combine_chunks().flatten()
        other_labels = pc.index_in(others.field("category"), self.categories).to_numpy(zero_copy_only=False)
        return pa.table(
            {
                "label": label.cast(pa.int32()),
                "confidence": labels.column("confidence").combine_chunks(),
                "levels": lists_of(matrix),
                "alternatives": lists_of(other_labels.astype(np.int32).reshape(len(labels), count)),
                "alternative_confidence": lists_of(others.field("confidence").to_numpy().reshape(len(labels), count)),
                **_also(labels),
            }
        )

    @staticmethod
    def each(labels: pa.Table) -> pa.ChunkedArray:
        return labels.column("category")

    @staticmethod
    def values(labels: pa.Table) -> Counter[tuple[str, str]]:
        return Counter()

    @staticmethod
    def whole(labels: pa.Table) -> list[str]:
        return list(labels.column("category").to_pylist())

    @staticmethod
    def scored(labels: pa.Table) -> list[list[tuple[str, float]]]:
        columns = (labels.column(name).to_pylist() for name in ("category", "confidence"))
        return [[pair] for pair in zip(*columns, strict=True)]

    @staticmethod
    def empty(labels: pa.Table) -> int:
        return 0

    @staticmethod
    def confidence(labels: pa.Table) -> pa.Array:
        return labels.column("confidence").combine_chunks()

    @cached_property
    def _ancestors(self) -> pa.Array:
        """Those of all categories at the top level, at the next one, …"""
        taxonomy = self.taxonomy
        return pa.array([name for level in range(taxonomy.depth) for name in taxonomy.ancestors(level)])

    def _trusted(self, answers: pa.Table) -> pa.Array:
        """The deepest step of each answer's path that reaches the threshold of its level; null where not even the top does."""
        taxonomy, label = self.taxonomy, answers.column("label").to_numpy().astype(np.int64)
        levels = answers.column("levels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        confidence = answers.column("confidence").to_numpy()
        certainty = taxonomy.certainty(levels.reshape(len(label), taxonomy.depth), confidence, label)
        passed = certainty >= self.thresholds
        deepest = taxonomy.depth - 1 - passed[:, ::-1].argmax(axis=1)
        return self._ancestors.take(pa.array(deepest * len(taxonomy) + label, mask=~passed.any(axis=1)))


class Categories:
    """Of any number of categories each."""

    answer: str = "categories"
    moves = True
    watched: tuple[str, ...] = ("categories", "confidence")
    kept: tuple[str, ...] = ("categories", "confidences", "confidence", "alternatives")

    def __init__(self, spec: Spec) -> None:
        self.categories = pa.array(spec.categories)
        self.threshold = pa.scalar((spec.thresholds or (0.0,))[0], pa.float32())

    @staticmethod
    def fits(label: pa.Field) -> bool:
        return is_list(label.type) and not pa.types.is_struct(label.type.value_type)

    def to_labels(self, answers: pa.Table) -> dict[str, pa.Array]:
        confidence = answers.column("confidence").combine_chunks()
        labels, probabilities = (answers.column(name).combine_chunks() for name in ("labels", "probabilities"))
        return {
            "categories": _relisted(labels, self.categories.take(labels.flatten())),
            "confidences": _relisted(probabilities, probabilities.flatten()),
            "confidence": confidence,
            "alternatives": _alternatives(answers, self.categories),
            "needs_review": pc.less(confidence, self.threshold),
            **_also(answers),
        }

    def from_labels(self, labels: pa.Table, alternatives: int) -> pa.Table:
        names, others = (labels.column(name).combine_chunks() for name in ("categories", "alternatives"))
        fields = others.flatten()
        return pa.table(
            {
                "labels": _relisted(names, pc.index_in(names.flatten(), self.categories).cast(pa.int32())),
                "probabilities": labels.column("confidences").combine_chunks(),
                "confidence": labels.column("confidence").combine_chunks(),
                "alternatives": _relisted(
                    others, pc.index_in(fields.field("category"), self.categories).cast(pa.int32())
                ),
                "alternative_confidence": _relisted(others, fields.field("confidence")),
                **_also(labels),
            }
        )

    @staticmethod
    def each(labels: pa.Table) -> pa.ChunkedArray:
        found = labels.column("categories")
        return pa.chunked_array([chunk.flatten() for chunk in found.chunks], found.type.value_type)

    @staticmethod
    def values(labels: pa.Table) -> Counter[tuple[str, str]]:
        return Counter()

    @staticmethod
    def whole(labels: pa.Table) -> list[str]:
        return [" + ".join(sorted(row)) or "none" for row in labels.column("categories").to_pylist()]

    @staticmethod
    def scored(labels: pa.Table) -> list[list[tuple[str, float]]]:
        columns = (labels.column(name).to_pylist() for name in ("categories", "confidences"))
        return [list(zip(*row, strict=True)) for row in zip(*columns, strict=True)]

    @staticmethod
    def empty(labels: pa.Table) -> int:
        return int(pc.sum(pc.equal(pc.list_value_length(labels.column("categories")), 0)).as_py() or 0)

    @staticmethod
    def confidence(labels: pa.Table) -> pa.Array:
        return labels.column("confidence").combine_chunks()


COLUMNS: dict[str, type[Columns]] = {ONE_CATEGORY: Category, MANY_CATEGORIES: Categories, TAGS: Tagged}


# Names that labels may have for other things than a further answer.
OWN = {
    *("id", "text_hash", TIER, IMAGE_STATUS, "needs_review", "trusted_category"),
    *(name for kind in (Category, Categories) for name in kind.kept),
}


def columns_of(spec: Spec) -> Columns:
    """Those of a model."""
    return SeveralAnswers(spec) if spec.others else COLUMNS[spec.head](spec)  # type: ignore[return-value]  # reads as its first


class SeveralAnswers:
    """The first answer as a model with that one alone publishes it; each further one in a column of its own."""

    def __init__(self, spec: Spec) -> None:
        self.first, *others = (COLUMNS[answer.head](answer) for answer in spec.answers)
        self.others = {answer.label_column: own for answer, own in zip(spec.answers[1:], others, strict=True)}
        self.answer, self.moves, self.watched = self.first.answer, self.first.moves, self.first.watched
        self.kept = (*self.first.kept, *self.others)
        self.fits = self.first.fits

    def to_labels(self, answers: pa.Table) -> dict[str, pa.Array]:
        labels = self.first.to_labels(answers)
        for number, (column, own) in enumerate(self.others.items(), 1):
            found = own.to_labels(_numbered(answers, number))
            if isinstance(own, PublishedTags):
                labels[column] = found[column]
            else:
                labels[column] = pa.StructArray.from_arrays(list(found.values()), list(found))
        return labels

    def from_labels(self, labels: pa.Table, alternatives: int) -> pa.Table:
        answers = self.first.from_labels(labels, alternatives)
        for number, (column, own) in enumerate(self.others.items(), 1):
            found = own.from_labels(answer_in(labels, column), alternatives)
            for name in found.column_names:
                answers = answers.append_column(f"{number}.{name}", found.column(name))
        return answers

    def __getattr__(self, name: str) -> Any:
        """All that is read of labels is read of the first answer."""
        return getattr(self.first, name)


def _numbered(answers: pa.Table, number: int) -> pa.Table:
    """The columns of a further answer."""
    before = f"{number}."
    own = [name for name in answers.column_names if name.startswith(before)]
    return answers.select(own).rename_columns([name.removeprefix(before) for name in own])


def answer_in(labels: pa.Table, column: str) -> pa.Table:
    """Labels as they would be if the further answer of this column were the only one; of tags, nothing says that they need review."""
    found = labels.column(column).combine_chunks()
    if not pa.types.is_struct(found.type):
        return labels.select([column]).append_column("needs_review", pa.repeat(pa.scalar(False), len(labels)))
    return pa.table({field.name: found.field(field.name) for field in found.type})


def further_in(schema: pa.Schema) -> dict[str, Published]:
    """What further answers labels with such columns have, by their column."""
    first, found = published_in(schema).answer, {}
    for field in schema:
        kind = pa.schema(list(field.type)) if pa.types.is_struct(field.type) else pa.schema([field])
        with contextlib.suppress(ValueError):
            if field.name not in (first, *OWN):
                found[field.name] = published_in(kind)
    return found


def published_in(schema: pa.Schema) -> Published:
    """Those of labels with such columns, whatever model made them. Raises ValueError where it made none."""
    for kind in (Category, Categories):
        if kind.answer in schema.names:
            return kind  # type: ignore[return-value]  # as it is: reading needs no spec
    if column := PublishedTags.column_in(schema):
        return PublishedTags(column)
    raise ValueError("no column category or categories, nor one of tags")


def head_for(label: pa.Field) -> str:
    """The head of a model that learns from such a label column."""
    return next(head for head, kind in COLUMNS.items() if kind.fits(label))


def assemble(rows: pa.Table, answers: pa.Table, columns: Columns) -> tuple[pa.Table, pa.Table]:
    """(labels, rejects) of a unit in input order: `place` says which answer is a row's, `reason` why it has none."""
    found = answers.take(rows.column("place"))
    reason = pc.coalesce(rows.column("reason"), found.column("error"))
    labelled = reason.is_null()
    kept = rows.drop_columns(["place", "reason", "text_hash"])
    labels, found = kept.filter(labelled), found.filter(labelled)
    for name, column in columns.to_labels(found).items():
        labels = labels.append_column(name, column)
    labels = labels.append_column("text_hash", rows.column("text_hash").filter(labelled))
    rejected = pc.invert(labelled)
    return labels, kept.filter(rejected).append_column("reason", reason.filter(rejected))


def lists_of(matrix: npt.NDArray[Any]) -> pa.Array:
    """A [rows, width] matrix as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def by(answers: pa.Table, tier: str) -> pa.Table:
    """Answers that say who gave them."""
    return answers.append_column(TIER, pa.repeat(pa.scalar(tier), len(answers)))


def seen(answers: pa.Table, status: pa.Array) -> pa.Table:
    """Answers that say what became of each row's picture."""
    return answers.append_column(IMAGE_STATUS, status)


def also(spec: Spec) -> tuple[str, ...]:
    """The columns that answers of this model have beside those of its head, and labels as well."""
    return (*([TIER] if spec.words else []), *([IMAGE_STATUS] if spec.picture else []))


def _also(table: pa.Table) -> dict[str, pa.Array]:
    return {name: table.column(name).combine_chunks() for name in (TIER, IMAGE_STATUS) if name in table.column_names}


def _trim(levels: pa.Array) -> pa.Array:
    """Level confidences without the NaN below the depth of a category."""
    values = levels.flatten().to_numpy(zero_copy_only=False)
    real = ~np.isnan(values)
    starts = levels.offsets.to_numpy()[:-1] - levels.offsets[0].as_py()
    counts = np.add.reduceat(real, starts) if len(levels) else np.empty(0, int)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[real]))


def _alternatives(found: pa.Table, categories: pa.Array) -> pa.Array:
    labels = found.column("alternatives").combine_chunks()
    scores = found.column("alternative_confidence").combine_chunks()
    columns = [categories.take(labels.flatten()), scores.flatten()]
    return _relisted(labels, pa.StructArray.from_arrays(columns, ["category", "confidence"]))


def _relisted(lists: pa.ListArray, values: pa.Array) -> pa.ListArray:
    """Lists as long as these, of other values."""
    return pa.ListArray.from_arrays(pc.subtract(lists.offsets, lists.offsets[0]), values)
