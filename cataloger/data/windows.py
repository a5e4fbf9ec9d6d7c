"""Long texts for a network that answers word by word: windows of tokens that overlap, and which of them answers for a word."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.batching import Batch, IntArray, Ragged, Tokens

# How many windows of --max-tokens a text may have; what lies beyond is not read.
MOST_WINDOWS = 32
# The share of a window that the next one reads again, so that every word has some text on both sides.
OVERLAP = 0.25


@dataclass(frozen=True)
class Frame:
    """How a window is made of tokens: what the tokenizer puts before and behind them, and how many there may be in all."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    size: int

    @property
    def content(self) -> int:
        """Tokens of the text."""
        return self.size - len(self.before) - len(self.behind)

    @property
    def overlap(self) -> int:
        return int(OVERLAP * self.content)

    @property
    def stride(self) -> int:
        return self.content - self.overlap

    @property
    def most_tokens(self) -> int:
        return self.content + (MOST_WINDOWS - 1) * self.stride


@dataclass(frozen=True)
class Windows:
    """N texts, `Encoded` for a network that answers for each word: `words` has the number of the first token of each.

    `origins` has the column of each word's text (-1 where it is of none, but parts two of them), and its start and end there, in
    characters: int32 [words, 3]. `fields` has those texts, a column for each; nothing where only a training needs the rows.
    """

    tokens: Tokens
    words: Ragged
    origins: npt.NDArray[np.int32]
    frame: Frame
    fields: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def without_texts(self) -> Self:
        """For a training, which needs no values."""
        return replace(self, fields=None)

    @property
    def counts(self) -> IntArray:
        """[N] windows of each text."""
        return self._counts(self.tokens.lengths)

    @property
    def costs(self) -> IntArray:
        return self._costs(self.tokens.lengths)

    def costs_of(self, rows: IntArray) -> IntArray:
        return self._costs(self.tokens.costs_of(rows))

    def _counts(self, lengths: IntArray) -> IntArray:
        counts: IntArray = 1 + -(-np.maximum(lengths - self.frame.content, 0) // self.frame.stride)
        return counts

    def _costs(self, lengths: IntArray) -> IntArray:
        longest = np.minimum(lengths, self.frame.content) + self.frame.size - self.frame.content
        costs: IntArray = self._counts(lengths) * longest
        return costs

    def ahead(self, rows: IntArray) -> None:
        """A batch of tokens is made in no time."""

    def batch(self, rows: IntArray) -> Batch:
        """`input_ids` and `attention_mask` [windows, tokens] of these rows' windows, and `word_index` [rows, 1 + words]: where in the
        first two, flattened, each row's first token is, and then each word's first one, -1 for none."""
        frame, tokens = self.frame, self.tokens
        counts = self.counts[rows]
        owner = np.repeat(rows, counts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = tokens.offsets[owner] + number * frame.stride
        length = np.minimum(tokens.offsets[owner + 1] - start, frame.content)
        width = int(length.max(initial=1)) + len(frame.before) + len(frame.behind)
        ids = np.full((len(owner), width), tokens.pad_id, np.int64)
        mask = np.arange(width) < (length + len(frame.before) + len(frame.behind))[:, None]
        ids[:, : len(frame.before)] = frame.before
        place = np.arange(width) - len(frame.before)
        inside = (place >= 0) & (place < length[:, None])
        ids[inside] = tokens.flat[(start[:, None] + place)[inside]]
        for offset, token in enumerate(frame.behind):
            ids[np.arange(len(owner)), len(frame.before) + length + offset] = token
        return {"input_ids": ids, "attention_mask": mask, "word_index": self._word_index(rows, counts, width)}

    def _word_index(self, rows: IntArray, counts: IntArray, width: int) -> npt.NDArray[np.int64]:
        frame, first = self.frame, np.cumsum(counts) - counts
        words = self.words.take(rows)
        row = np.repeat(np.arange(len(rows)), words.lengths)
        # Of two windows that have a word, the one in which it is farther from the end.
        window = np.clip((words.flat - frame.overlap // 2) // frame.stride, 0, counts[row] - 1)
        at = (first[row] + window) * width + len(frame.before) + words.flat - window * frame.stride
        between = self.origins[_places(self.words, rows), 0] < 0
        index = np.full((len(rows), 1 + int(words.lengths.max(initial=1))), -1, np.int64)
        index[:, 0] = first * width
        index[row, 1 + np.arange(len(row)) - words.offsets[row]] = np.where(between, -1, at)
        return index

    def located(self, answers: pa.Table) -> pa.Table:
        """Answers whose tags are numbers of words, as they stand in the texts of these rows: see `heads.tag_columns`."""
        for place, (name, kind) in enumerate(zip(answers.schema.names, answers.schema.types, strict=True)):
            if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
                answers = answers.set_column(place, name, self._located(answers.column(name).combine_chunks()))
        return answers

    def _located(self, tags: pa.Array) -> pa.Array:
        assert self.fields is not None, "kept, where rows are answered"
        flat, lengths = tags.flatten(), np.diff(tags.offsets.to_numpy())
        row = np.repeat(np.arange(len(tags)), lengths)
        begin = self.origins[self.words.offsets[row] + flat.field("first").to_numpy()]
        end = self.origins[self.words.offsets[row] + flat.field("last").to_numpy(), 2]
        texts = [column.to_pylist() for column in self.fields.columns]
        stretches = zip(begin[:, 0].tolist(), row.tolist(), begin[:, 1].tolist(), end.tolist(), strict=True)
        values = pa.array([texts[field][row][start:stop] for field, row, start, stop in stretches], pa.string())
        columns = [flat.field("name"), values, pa.array(begin[:, 0]), pa.array(begin[:, 1]), pa.array(end)]
        names = ["name", "value", "field", "start", "end", "confidence"]
        found = pa.StructArray.from_arrays([*columns, flat.field("confidence")], names)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), found)

    def take(self, rows: IntArray) -> Self:
        return replace(
            self,
            tokens=self.tokens.take(rows),
            words=self.words.take(rows),
            origins=self.origins[_places(self.words, rows)],
            fields=self.fields.take(pa.array(rows)) if self.fields else None,
        )

    def slice(self, start: int, stop: int) -> Self:
        """Rows `start` to `stop`, without a copy."""
        fields = self.fields.slice(start, stop - start) if self.fields else None
        return replace(self, tokens=self.tokens.slice(start, stop), words=self.words.slice(start, stop), fields=fields)

    def to_arrow(self) -> pa.Table:
        here = self.origins[self.words.offsets[0] : self.words.offsets[-1]]
        origins = pa.FixedSizeListArray.from_arrays(pa.array(here.reshape(-1)), 3)
        words = self.words.lists()
        columns: dict[str, Any] = {"tokens": self.tokens.lists(), "words": words}
        columns["origins"] = pa.ListArray.from_arrays(words.offsets, origins)
        if self.fields is not None:
            columns |= {f"field.{name}": self.fields.column(name) for name in self.fields.column_names}
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table, pad_id: int, frame: Frame) -> Self:
        own = [name for name in table.column_names if name.startswith("field.")]
        fields = table.select(own).rename_columns([name.removeprefix("field.") for name in own]) if own else None
        flat = [chunk.flatten().flatten() for chunk in table.column("origins").chunks]
        origins = np.concatenate([np.empty(0, np.int32), *(chunk.to_numpy() for chunk in flat)])
        words = Ragged.from_arrow(table.column("words"))
        words = words.take(np.arange(len(words)))  # from 0 on, as the origins are
        return cls(Tokens.from_arrow(table.column("tokens"), pad_id), words, origins.reshape(-1, 3), frame, fields)


def _places(words: Ragged, rows: IntArray) -> IntArray:
    """The places in `flat` of all words of these rows, end to end."""
    lengths = words.lengths[rows]
    return np.repeat(words.offsets[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
