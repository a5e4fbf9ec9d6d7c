"""What is published of a model's answers: their columns, made from its answers and read back.

Answers are Arrow tables with one row per distinct text. Those of one category: label, confidence, levels [D] (NaN below the
depth of the category), alternatives [K] and alternative_confidence [K]; those of any number: labels, probabilities,
confidence, alternatives and alternative_confidence, all but the third of any length; those of tags: tags. Those of a model with words also have
TIER, who gave them, and those of a model that sees IMAGE_STATUS. Labels have the published columns.
"""

import contextlib
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cataloger.heads.category_columns import BECAUSE, IMAGE_STATUS, MODELS, SOURCE, TIER, Categories, Category
from cataloger.heads.tag_columns import PublishedTags, Tagged
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec


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


COLUMNS: dict[str, type[Columns]] = {ONE_CATEGORY: Category, MANY_CATEGORIES: Categories, TAGS: Tagged}


# Names that labels may have for other things than a further answer.
OWN = {
    *("id", "text_hash", TIER, IMAGE_STATUS, BECAUSE, SOURCE, MODELS, "needs_review", "trusted_category"),
    *("row", "text", "seen", "written", "places"),  # of evaluations
    "reason",  # of rejects
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


def by_the_model(labels: pa.Table) -> pa.Table:
    """Labels that others had a part in, as they would be if nobody but the model had decided; those that it had no answer for are left out."""
    own = labels.column(MODELS).combine_chunks()
    model = pc.equal(labels.column(SOURCE), "model").combine_chunks()
    for field in own.type:
        if field.name not in labels.column_names:
            continue
        place = labels.column_names.index(field.name)
        column = labels.column(field.name).combine_chunks()
        both = pa.concat_arrays([column, pc.struct_field(own, field.name)])
        rows = pa.array(range(len(labels)))
        labels = labels.set_column(place, field.name, both.take(pc.if_else(model, rows, pc.add(rows, len(labels)))))
    return labels.filter(pc.or_(model, own.is_valid())).drop_columns([SOURCE, MODELS])


def by(answers: pa.Table, tier: str) -> pa.Table:
    """Answers that say who gave them."""
    return answers.append_column(TIER, pa.repeat(pa.scalar(tier), len(answers)))


def seen(answers: pa.Table, status: pa.Array) -> pa.Table:
    """Answers that say what became of each row's picture."""
    return answers.append_column(IMAGE_STATUS, status)


def explained(answers: pa.Table, because: pa.Array) -> pa.Table:
    """Answers that say which words they rest on."""
    return answers.append_column(BECAUSE, because)


def also(spec: Spec, explain: int) -> tuple[str, ...]:
    """The columns that answers of this model have beside those of its head, and labels as well; `explain` is how many words say why."""
    own = (*([TIER] if spec.words else []), *([IMAGE_STATUS] if spec.picture else []))
    return (*own, BECAUSE) if explain else own
