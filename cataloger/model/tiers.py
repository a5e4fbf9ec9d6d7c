"""Words first: what they answer alone, and what they have to say of the rows that go on to the network.

Loads no torch: in a nightly job words answer in the reading tasks.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import SPEC, WORDS, read_spec
from cataloger.config import Precision
from cataloger.data.batching import IntArray
from cataloger.data.images import UNREAD
from cataloger.data.inputs import input_of
from cataloger.errors import ModelError
from cataloger.heads.arrays import FloatArray, reader_of
from cataloger.heads.category_columns import BY_WORDS
from cataloger.heads.columns import by, columns_of, seen
from cataloger.heads.ranked import Ranked, WithRanked
from cataloger.model.words import WordModel
from cataloger.spec import Spec


@dataclass(frozen=True)
class Said:
    """What words have to say of N texts."""

    alone: npt.NDArray[np.bool_]
    """[N] whose answer stands without the network's."""
    answers: pa.Table
    """Those, in their order."""
    ranked: Ranked
    """Of the other texts."""

    @property
    def place(self) -> IntArray:
        """[N] where the answer of each text is when those of words come first and then all others, each in their order."""
        return np.where(self.alone, np.cumsum(self.alone) - 1, self.alone.sum() + np.cumsum(~self.alone) - 1)


class FirstTier:
    """The words of a bundle, which answer alone what the spec says. Raises ModelError."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        assert spec.words
        self.words, self.model, self.reader = spec.words, WordModel.load(folder), reader_of(spec)
        if len(self.model.bias) != len(spec.categories):
            raise ModelError(
                f"model {folder}: {WORDS} has {len(self.model.bias):,} categories, {SPEC} has {len(spec.categories):,}; "
                "copy the folder again from where the model was trained"
            )
        self.sees = spec.picture is not None
        self.alone_from = self.words.alone_from if spec.network else 0.0

    def ask(self, texts: pa.Array, alternatives: int) -> Said:
        """Of texts without nulls. Of an empty one they know nothing."""
        empty = self._unread(texts)
        no_logits = np.empty((0, len(self.model.bias)), np.float32)
        alone: list[npt.NDArray[np.bool_]] = [np.empty(0, bool)]
        answers = [self.reader.answers(no_logits, alternatives)]
        ranked, start = [Ranked.of(no_logits)], 0
        for scores in self.model.scores(texts):
            logits, nothing = self.reader.logits(scores, self.words), empty[start : start + len(scores)]
            probabilities = self.reader.probabilities(logits)
            sure = self._sure(probabilities) & ~nothing
            alone.append(sure)
            answers.append(self.reader.answers(logits[sure], alternatives))
            ranked.append(Ranked.of(probabilities[~sure]).silent(nothing[~sure]))
            start += len(scores)
        return Said(
            np.concatenate(alone), by(pa.concat_tables(answers), BY_WORDS).combine_chunks(), Ranked.joined(ranked)
        )

    def probabilities(self, texts: pa.Array) -> FloatArray:
        """float32 [N, categories] of texts without nulls, as words alone see them."""
        found = [
            self.reader.probabilities(self.reader.logits(scores, self.words)) for scores in self.model.scores(texts)
        ]
        return np.concatenate([np.empty((0, len(self.model.bias)), np.float32), *found])

    def rank(self, texts: pa.Array) -> Ranked:
        """What they know of texts without nulls, whoever answers them."""
        none = Ranked.of(np.empty((0, len(self.model.bias)), np.float32))
        scores = self.model.scores(texts)
        ranked = Ranked.joined(
            [none, *(Ranked.of(self.reader.probabilities(self.reader.logits(block, self.words))) for block in scores)]
        )
        return ranked.silent(self._unread(texts))

    def _unread(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """[N] of which words know nothing, as there is a picture alone."""
        return blank(texts) if self.sees else np.zeros(len(texts), bool)

    def _sure(self, probabilities: FloatArray) -> npt.NDArray[np.bool_]:
        if self.alone_from is None:
            return np.zeros(len(probabilities), bool)
        return np.asarray(probabilities.max(axis=1, initial=0) >= np.float32(self.alone_from))


def blank(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """[N] which texts are empty: what words make of those is the same for all, and means nothing."""
    empty: npt.NDArray[np.bool_] = pc.equal(texts, "").to_numpy(zero_copy_only=False)
    return empty


def unseen(answers: pa.Table, spec: Spec) -> pa.Table:
    """Answers of words alone, as those of the network come: where it sees, nobody looked at these rows' pictures."""
    return seen(answers, pa.repeat(pa.scalar(UNREAD), len(answers))) if spec.picture else answers


@functools.lru_cache(maxsize=2)
def first_tier(folder: Path, spec: Spec) -> FirstTier:
    """Kept for the next units of a task's process."""
    return FirstTier(folder, spec)


@dataclass(frozen=True)
class Labelled:
    """Of N rows."""

    labels: pa.Table
    """The published columns but for the id, all null where there is no label."""
    reasons: pa.Array
    """Why there is none; null where there is one."""


class Tiers:
    """A whole bundle in one process: words first, the network for what they leave.

    The way of a row: read, encode, answer, to labels. A nightly job places the same steps on a cluster (`labeling.stream`).
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        precision: Precision = "fp32",
        spec: Spec | None = None,
        base: str = "",
        live: bool = False,
    ) -> None:
        self.spec = spec or read_spec(folder)
        self.input, self.columns = input_of(self.spec, folder, base), columns_of(self.spec)
        self.first = FirstTier(folder, self.spec) if self.spec.words else None
        self.network: Any = None
        if self.spec.network:
            from cataloger.model.predictor import Predictor

            self.network = Predictor(folder, device, precision, self.spec, live)

    def label(self, table: pa.Table, alternatives: int = 0) -> pa.Table:
        """The published columns of each row of a table with the model's columns, in its order; all null where it cannot be read."""
        return self.published(table, alternatives).labels.drop_columns(["text_hash"])

    def published(self, table: pa.Table, alternatives: int = 0) -> Labelled:
        """What a nightly job publishes of the rows of a table with the model's columns."""
        read = self.input.read(table)
        known = read.reasons.is_null().to_numpy(zero_copy_only=False)
        values = read.values.filter(pa.array(known))
        answers, others, reasons = self._answer(values, alternatives)
        distinct, useful = self.input.distinct(values), reasons.is_null()
        keys = pc.coalesce(others, distinct.keys.take(distinct.place))
        labels = pa.table(self.columns.to_labels(answers.filter(useful)))
        labels = labels.append_column("text_hash", keys.filter(useful))
        found_out = read.reasons.to_numpy(zero_copy_only=False)
        found_out[known] = reasons.to_numpy(zero_copy_only=False)
        known[known] = useful.to_numpy(zero_copy_only=False)
        labels = labels.take(pa.array(np.cumsum(known) - 1, mask=~known))
        return Labelled(labels, pa.array(found_out, pa.string()))

    def answer(self, values: pa.Array, alternatives: int = 0, encoded: Any = None) -> pa.Table:
        """Of what `input` has read, without nulls; `encoded` are those for the network, where they are encoded already."""
        return self._answer(values, alternatives, encoded)[0]

    def _answer(self, values: pa.Array, alternatives: int, encoded: Any = None) -> tuple[pa.Table, pa.Array, pa.Array]:
        """(answers, another key of each that was not read after all, else null, why it is of no use, else null)"""
        nothing = pa.nulls(len(values), pa.string())
        said = self.first.ask(self.input.texts(values), alternatives) if self.first else None
        if said and not self.network:
            return said.answers, nothing, nothing
        rest = self.encode(values, said) if encoded is None else encoded
        if said is None:
            return self.network.answer(rest, alternatives), *self.input.found_out(values, rest)
        first = unseen(said.answers, self.spec)
        answers = pa.concat_tables([first, self.network.answer(WithRanked(rest, said.ranked), alternatives)])
        found_out = self.input.found_out(values.filter(pa.array(~said.alone)), rest)
        others, reasons = (
            pa.concat_arrays([nothing.slice(0, len(first)), found]).take(pa.array(said.place)) for found in found_out
        )
        return answers.take(pa.array(said.place)), others, reasons

    def encode(self, values: pa.Array, said: Said | None = None) -> Any:
        """Those that go on to the network, `said` being what words say of them all."""
        if self.network is None:
            return None
        said = said or (self.first.ask(self.input.texts(values), 0) if self.first else None)
        return self.input.encode(values.filter(pa.array(~said.alone)) if said else values)
