"""What is published of tags: one column of lists, named as the column that they were learnt from."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.batching import IntArray
from cataloger.data.kinds import is_tags
from cataloger.spec import Spec

# Of an answer: `name` and `field` are numbers, of the spec's categories and text columns.
FOUND = pa.struct(
    [
        ("name", pa.int32()),
        ("value", pa.string()),
        ("field", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("confidence", pa.float32()),
    ]
)
PUBLISHED = pa.struct(
    [*(field if field.name not in ("name", "field") else (field.name, pa.string()) for field in FOUND)]
)
# Between a name and its value where both are one string.
IS = ": "
# Of a name, so many values are counted in each part and group: one such as a product code has another one in every row.
MOST_VALUES = 50


class PublishedTags:
    """Labels with a column of tags."""

    moves = False

    def __init__(self, column: str) -> None:
        self.answer = column
        self.kept: tuple[str, ...] = (column,)
        self.watched: tuple[str, ...] = (column,)

    @staticmethod
    def column_in(schema: pa.Schema) -> str | None:
        """The first column of tags as they are published."""
        for field in schema:
            inner = field.type.value_type if pa.types.is_list(field.type) else field.type
            if pa.types.is_struct(inner) and inner.names == PUBLISHED.names:
                return str(field.name)
        return None

    def each(self, labels: pa.Table) -> pa.Array:
        tags = labels.column(self.answer).combine_chunks()
        owner, name = _owners(tags), tags.flatten().field("name").dictionary_encode()
        pairs = np.unique(owner * max(1, len(name.dictionary)) + name.indices.to_numpy())
        return name.dictionary.take(pa.array(pairs % max(1, len(name.dictionary))))

    def whole(self, labels: pa.Table) -> list[str]:
        return [
            " + ".join(sorted({said(tag) for tag in row})) or "none" for row in labels.column(self.answer).to_pylist()
        ]

    def scored(self, labels: pa.Table) -> list[list[tuple[str, float]]]:
        rows = labels.column(self.answer).to_pylist()
        return [sorted(((said(tag), tag["confidence"]) for tag in row), key=lambda pair: -pair[1]) for row in rows]

    def values(self, labels: pa.Table, groups: pa.Array) -> Counter[tuple[str, str, str]]:
        """Tags by the group of their row, name and value: of each group and name the commonest values."""
        tags = labels.column(self.answer).combine_chunks()
        flat, own = tags.flatten(), groups.take(pa.array(_owners(tags)))
        found = pa.table({"group": own, "name": flat.field("name"), "value": flat.field("value")})
        counts = found.group_by(found.column_names).aggregate([([], "count_all")])
        order = [("count_all", "descending"), ("value", "ascending")]
        kept: Counter[tuple[str, str, str]] = Counter()
        shown: Counter[tuple[str, str]] = Counter()
        for row in counts.sort_by(order).to_pylist():
            shown[row["group"], row["name"]] += 1
            if shown[row["group"], row["name"]] <= MOST_VALUES:
                kept[row["group"], row["name"], row["value"]] = row["count_all"]
        return kept

    def empty(self, labels: pa.Table) -> int:
        return int(pc.sum(pc.equal(pc.list_value_length(labels.column(self.answer)), 0)).as_py() or 0)

    def confidence(self, labels: pa.Table) -> pa.Array:
        return least_confidence(labels.column(self.answer).combine_chunks())


class Tagged(PublishedTags):
    """Of a model that gives tags."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec.label_column)
        self.names, self.fields = pa.array(spec.categories), pa.array(spec.text_columns, pa.string())
        self.thresholds = np.array(spec.category_thresholds or [0.0] * len(spec.categories), np.float32)

    @staticmethod
    def fits(label: pa.Field) -> bool:
        return is_tags(label.type)

    def to_labels(self, answers: pa.Table) -> dict[str, pa.Array]:
        tags = answers.column("tags").combine_chunks()
        flat = tags.flatten()
        name = flat.field("name")
        columns = {field: flat.field(field) for field in FOUND.names}
        columns |= {"name": self.names.take(name), "field": self.fields.take(flat.field("field"))}
        doubtful = flat.field("confidence").to_numpy() < self.thresholds[name.to_numpy()]
        return {
            self.answer: listed(tags, pa.StructArray.from_arrays(list(columns.values()), fields=list(PUBLISHED))),
            "needs_review": pa.array(np.bincount(_owners(tags), doubtful, len(tags)) > 0),
        }

    def from_labels(self, labels: pa.Table, alternatives: int) -> pa.Table:
        tags = labels.column(self.answer).combine_chunks()
        flat = tags.flatten()
        columns = {field: flat.field(field) for field in FOUND.names}
        columns |= {
            name: pc.index_in(flat.field(name), all_of).cast(pa.int32())
            for name, all_of in (("name", self.names), ("field", self.fields))
        }
        columns = {name: column.cast(FOUND.field(name).type) for name, column in columns.items()}
        return pa.table({"tags": listed(tags, pa.StructArray.from_arrays(list(columns.values()), fields=list(FOUND)))})


def said(tag: dict[str, Any]) -> str:
    """A tag as one string."""
    return f"{tag['name']}{IS}{' '.join(tag['value'].split())}"


def least_confidence(tags: pa.Array) -> pa.Array:
    """float32 [rows] the lowest confidence of each row's tags, 1 where there is none."""
    found = np.ones(len(tags), np.float32)
    np.minimum.at(found, _owners(tags), tags.flatten().field("confidence").to_numpy())
    return pa.array(found)


def _owners(tags: pa.Array) -> IntArray:
    """The row of each tag."""
    return np.repeat(np.arange(len(tags)), pc.list_value_length(tags).to_numpy())


def listed(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Other values in lists of the same lengths."""
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
