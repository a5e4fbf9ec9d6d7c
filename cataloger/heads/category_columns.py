"""What is published of categories: of one for each row, and of any number."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.kinds import is_list
from cataloger.spec import Spec
from cataloger.taxonomy import Taxonomy

# Who answered: words alone, or words and network together.
TIER, BY_WORDS, BY_BOTH = "tier", "words", "both"
# Of a model that sees, what became of the row's picture (`data.images`).
IMAGE_STATUS = "image_status"
# Of labels that need review, where that was asked for: the words that speak most for the category.
BECAUSE = "because"
# Where pins or rules were given: who decided the label, and what the model would have said where it was not the model.
SOURCE, MODELS = "source", "model"
BY_PIN = "pin"


def by_rule(name: str) -> str:
    """What `source` says of a label that a rule decided."""
    return f"rule:{name}"


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


def lists_of(matrix: npt.NDArray[Any]) -> pa.Array:
    """A [rows, width] matrix as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


def _also(table: pa.Table) -> dict[str, pa.Array]:
    return {
        name: table.column(name).combine_chunks()
        for name in (TIER, IMAGE_STATUS, BECAUSE)
        if name in table.column_names
    }


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
