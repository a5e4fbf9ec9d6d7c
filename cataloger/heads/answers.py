"""A model's answers as Arrow tables, and how they become the labels and rejects of a unit.

Answers have one row per distinct text. Those of one category: label, confidence, levels [D] (NaN below the depth of the
category), alternatives [K] and alternative_confidence [K]; those of any number: labels, probabilities, confidence,
alternatives and alternative_confidence, all but the third of any length. Labels have the columns of the published layout.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import Spec


def label_columns(spec: Spec) -> list[str]:
    """The published columns that answers are made into, and can be made from again."""
    own = ["categories", "confidences"] if spec.multi_label else ["category", "level_confidences"]
    return ["text_hash", *own, "confidence", "alternatives"]


def from_labels(labels: pa.Table, spec: Spec, alternatives: int) -> pa.Table:
    """The answers that published labels of the same model, with as many alternatives, were made from."""
    return _from_sets(labels, spec) if spec.multi_label else _from_categories(labels, spec, alternatives)


def assemble(rows: pa.Table, answers: pa.Table, spec: Spec) -> tuple[pa.Table, pa.Table]:
    """(labels, rejects) of a unit in input order: `place` says which answer is a row's, `reason` why it has none."""
    found = answers.take(rows.column("place"))
    reason = pc.coalesce(rows.column("reason"), found.column("error"))
    labelled = reason.is_null()
    kept = rows.drop_columns(["place", "reason", "text_hash"])
    found = found.filter(labelled)
    labels = kept.filter(labelled)
    columns = _sets(found, spec) if spec.multi_label else _categories(found, spec)
    for name, column in (columns | {"text_hash": rows.column("text_hash").filter(labelled)}).items():
        labels = labels.append_column(name, column)
    rejected = pc.invert(labelled)
    return labels, kept.filter(rejected).append_column("reason", reason.filter(rejected))


def _categories(found: pa.Table, spec: Spec) -> dict[str, pa.Array]:
    """The columns of labels of one category."""
    categories = pa.array(spec.categories)
    category, trusted = categories.take(found.column("label").combine_chunks()), _trusted(found, spec)
    return {
        "category": category,
        "confidence": found.column("confidence").combine_chunks(),
        "level_confidences": _trim(found.column("levels").combine_chunks()),
        "alternatives": _alternatives(found, categories),
        "trusted_category": trusted,
        "needs_review": pc.invert(pc.fill_null(pc.equal(trusted, category), False)),
    }


def _sets(found: pa.Table, spec: Spec) -> dict[str, pa.Array]:
    """The columns of labels of any number of categories."""
    categories, confidence = pa.array(spec.categories), found.column("confidence").combine_chunks()
    labels, probabilities = (found.column(name).combine_chunks() for name in ("labels", "probabilities"))
    return {
        "categories": _relisted(labels, categories.take(labels.flatten())),
        "confidences": _relisted(probabilities, probabilities.flatten()),
        "confidence": confidence,
        "alternatives": _alternatives(found, categories),
        "needs_review": pc.less(confidence, pa.scalar((spec.thresholds or (0.0,))[0], pa.float32())),
    }


def _from_categories(labels: pa.Table, spec: Spec, alternatives: int) -> pa.Table:
    categories, count = pa.array(spec.categories), min(alternatives, len(spec.categories) - 1)
    label = pc.index_in(labels.column("category").combine_chunks(), categories)
    levels = labels.column("level_confidences").combine_chunks()
    depths = pc.list_value_length(levels).to_numpy(zero_copy_only=False)
    matrix = np.full((len(labels), spec.taxonomy.depth), np.nan, np.float32)
    matrix[np.arange(matrix.shape[1]) < depths[:, None]] = levels.flatten().to_numpy()
    others = labels.column("alternatives").combine_chunks().flatten()
    other_labels = pc.index_in(others.field("category"), categories).to_numpy(zero_copy_only=False)
    return pa.table(
        {
            "label": label.cast(pa.int32()),
            "confidence": labels.column("confidence").combine_chunks(),
            "levels": _lists(matrix),
            "alternatives": _lists(other_labels.astype(np.int32).reshape(len(labels), count)),
            "alternative_confidence": _lists(others.field("confidence").to_numpy().reshape(len(labels), count)),
        }
    )


def _from_sets(labels: pa.Table, spec: Spec) -> pa.Table:
    categories = pa.array(spec.categories)
    names, others = (labels.column(name).combine_chunks() for name in ("categories", "alternatives"))
    fields = others.flatten()
    return pa.table(
        {
            "labels": _relisted(names, pc.index_in(names.flatten(), categories).cast(pa.int32())),
            "probabilities": labels.column("confidences").combine_chunks(),
            "confidence": labels.column("confidence").combine_chunks(),
            "alternatives": _relisted(others, pc.index_in(fields.field("category"), categories).cast(pa.int32())),
            "alternative_confidence": _relisted(others, fields.field("confidence")),
        }
    )


def _trusted(found: pa.Table, spec: Spec) -> pa.Array:
    """The deepest step of each answer's path that reaches the threshold of its level; null where not even the top does."""
    taxonomy, label = spec.taxonomy, found.column("label").to_numpy().astype(np.int64)
    levels = found.column("levels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    confidence = found.column("confidence").to_numpy()
    certainty = taxonomy.certainty(levels.reshape(len(label), taxonomy.depth), confidence, label)
    passed = certainty >= np.array(spec.thresholds or [0.0] * taxonomy.depth, np.float32)
    deepest = taxonomy.depth - 1 - passed[:, ::-1].argmax(axis=1)
    names = pa.array([name for level in range(taxonomy.depth) for name in taxonomy.ancestors(level)])
    return names.take(pa.array(deepest * len(taxonomy) + label, mask=~passed.any(axis=1)))


def _lists(matrix: npt.NDArray[Any]) -> pa.Array:
    """A [rows, width] matrix as a list column."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * matrix.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))


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
