"""Answers out of arrays, without torch: as the heads of networks make them of tensors, for what answers in reading tasks."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse, special

from cataloger.data.batching import IntArray
from cataloger.heads.category_columns import lists_of
from cataloger.spec import MANY_CATEGORIES, Spec, Words
from cataloger.taxonomy import Taxonomy

FloatArray = npt.NDArray[np.float32]


class CategoryReader:
    """One category per row: the most probable one."""

    def __init__(self, spec: Spec, categories: int) -> None:
        taxonomy = Taxonomy(spec.categories)
        self.groups, self.depths = taxonomy.groups, taxonomy.depths
        ones = np.ones(categories, np.float32)
        self.members = [sparse.csr_matrix((ones, (np.arange(categories), group))) for group in self.groups]

    def logits(self, scores: FloatArray, words: Words) -> FloatArray:
        """Logarithms of a sigmoid of each score: the softmax makes their sum one (Zadrozny and Elkan 2002, section 4)."""
        return np.asarray(special.log_expit(_scaled(scores, words)))

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """float32 [rows, categories]"""
        return np.asarray(special.softmax(logits, axis=1))

    def loss(self, logits: FloatArray, targets: npt.NDArray[np.bool_]) -> float:
        """The mean over the rows with a category; `targets` are [rows, categories]."""
        own = special.log_softmax(logits, axis=1)[targets]
        return float(-own.mean(dtype=np.float64))

    def answers(self, logits: FloatArray, alternatives: int) -> pa.Table:
        """As `OneCategory.join` gives them, of logits [rows, categories]."""
        probabilities = self.probabilities(logits)
        label = best(probabilities, alternatives + 1)
        first = label[:, 0]
        levels = np.full((len(label), len(self.groups)), np.nan, np.float32)
        for level, (group, members) in enumerate(zip(self.groups, self.members, strict=True)):
            mass = probabilities @ members
            levels[:, level] = np.minimum(mass[np.arange(len(label)), group[first]], 1.0)
        levels[np.arange(levels.shape[1]) >= self.depths[first][:, None]] = np.nan
        return category_answers(label, np.take_along_axis(probabilities, label, axis=1), levels)


class SetReader:
    """Any number of categories per row: all whose probability reaches their threshold."""

    def __init__(self, spec: Spec, categories: int) -> None:
        self.thresholds = np.array(spec.category_thresholds or [0.5] * categories, np.float32)

    def logits(self, scores: FloatArray, words: Words) -> FloatArray:
        return _scaled(scores, words)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """float32 [rows, categories]"""
        return np.asarray(special.expit(logits))

    def loss(self, logits: FloatArray, targets: npt.NDArray[np.bool_]) -> float:
        """The mean over rows and categories; `targets` are [rows, categories]."""
        return float(-special.log_expit(np.where(targets, logits, -logits)).mean(dtype=np.float64))

    def answers(self, logits: FloatArray, alternatives: int) -> pa.Table:
        """As `ManyCategories.join` gives them, of logits [rows, categories]."""
        probabilities = self.probabilities(logits)
        chosen = probabilities >= self.thresholds
        count = chosen.sum(axis=1)
        label = best(np.where(chosen, probabilities, probabilities - 1), int(count.max(initial=0)) + alternatives)
        scores, scaled = (np.take_along_axis(values, label, axis=1) for values in (probabilities, logits))
        label[np.arange(label.shape[1]) >= count[:, None] + alternatives] = -1
        none = special.log_expit(np.abs(logits)) - np.maximum(logits, 0)  # see `many_categories`
        return set_answers(label, scores, scaled, count, none.sum(axis=1, dtype=np.float64))


def as_judged(answers: pa.Table, taxonomy: Taxonomy) -> dict[str, npt.NDArray[Any]]:
    """Of answers of one category each, what `OneCategory.judge` makes of them: `given` [N] and `certainty` [N, levels]."""
    label = answers.column("label").to_numpy().astype(np.int64)
    levels = answers.column("levels").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    levels = levels.reshape(len(label), taxonomy.depth)
    return {"given": label, "certainty": taxonomy.certainty(levels, answers.column("confidence").to_numpy(), label)}


def _scaled(scores: FloatArray, words: Words) -> FloatArray:
    return np.asarray((scores - np.float32(words.shift)) / np.float32(words.temperature))


def reader_of(spec: Spec) -> CategoryReader | SetReader:
    return (SetReader if spec.head == MANY_CATEGORIES else CategoryReader)(spec, len(spec.categories))


def best(values: FloatArray, count: int) -> IntArray:
    """[rows, count] the columns of the highest values of each row, the highest first; of equal ones the first."""
    count = min(count, values.shape[1])
    if count < values.shape[1] // 4:
        found = np.sort(np.argpartition(-values, count, axis=1)[:, :count], axis=1)
        least = np.take_along_axis(values, found, axis=1).min(axis=1, keepdims=True, initial=np.inf)
        tied = np.flatnonzero((values >= least).sum(axis=1) > count)  # with one left out that is as high as one found
        found[tied] = np.sort(np.argsort(-values[tied], axis=1, kind="stable")[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


def category_answers(label: IntArray, score: FloatArray, level: FloatArray) -> pa.Table:
    """Of [rows, 1 + alternatives] labels and their probabilities, and [rows, levels] confidences."""
    return pa.table(
        {
            "label": label[:, 0].astype(np.int32),
            "confidence": score[:, 0],
            "levels": lists_of(level),
            "alternatives": lists_of(label[:, 1:].astype(np.int32)),
            "alternative_confidence": lists_of(score[:, 1:]),
        }
    )


def set_answers(
    label: IntArray, score: FloatArray, logit: FloatArray, count: IntArray, none: npt.NDArray[np.float64]
) -> pa.Table:
    """Of [rows, width] labels, -1 beyond the alternatives, their probabilities and scaled logits; the first `count` are the answer.

    `none` [rows] is the log of the probability that a row has no category at all.
    """
    mine = np.arange(label.shape[1]) < count[:, None]
    other = ~mine & (label >= 0)
    return pa.table(
        {
            "labels": _lists(label.astype(np.int32), mine),
            "probabilities": _lists(score, mine),
            "confidence": set_confidence(none, count, logit[mine]),
            "alternatives": _lists(label.astype(np.int32), other),
            "alternative_confidence": _lists(score, other),
        }
    )


def set_confidence(none: npt.NDArray[np.float64], counts: IntArray, logits: FloatArray) -> FloatArray:
    """[N] that a row has just its categories, taking all as independent.

    `none` [N] is the log of the probability that it has none at all; `counts` [N] are how many it has, and `logits` theirs, end to
    end: log p - log(1 - p) is the logit. Added up in one order, so that the same numbers always have the same sum.
    """
    rows = np.repeat(np.arange(len(none)), counts)
    order = np.lexsort((logits, rows))
    total = none + np.bincount(rows[order], logits[order].astype(np.float64), len(none))
    return np.asarray(np.exp(np.minimum(total, 0.0)), np.float32)


def _lists(values: npt.NDArray[Any], wanted: npt.NDArray[np.bool_]) -> pa.Array:
    """Those of [rows, width] values that are wanted, as lists."""
    offsets = np.concatenate([[0], np.cumsum(wanted.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[wanted]))
