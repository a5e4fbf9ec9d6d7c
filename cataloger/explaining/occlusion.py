"""What a category rests on: the model is asked again without each word and about each word alone, and so about parts of the picture.

What a word does depends on the others: two that say the same are missed only together. The mean of its effect on all others and on
none is the first and the last term of its Shapley value (Shapley 1953), and as faithful to the model as many orders of the words are
(`benchmarks/explaining.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.album import Decoded, Pictured
from cataloger.data.batching import IntArray
from cataloger.data.fields import Composed, composed
from cataloger.errors import ConfigError
from cataloger.explaining.words import Words
from cataloger.heads.category_columns import BY_WORDS, TIER
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES, Spec

FloatArray = npt.NDArray[np.float64]
# A picture is covered part by part: so many on each side.
GRID = 5
# Probabilities below it are taken for it: what lies beyond is rounding.
LEAST = 1e-7
# Numbers that answers to variants may have at once.
AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Word:
    """A word of a product, as it stands in the text of `field`: its characters `start` to `end`."""

    field: str
    start: int
    end: int
    text: str
    weight: float
    """By how much it raises the log odds of the category: the mean of what is lost without it and what it gives alone."""
    against_runner_up: float
    """The same of the odds between the category and the runner-up; the weight again where there is none."""
    confidence_without: float
    """The probability of the category without it."""


@dataclass(frozen=True)
class Region:
    """A part of the square that the model sees, in shares of its sides from the top left corner; the rest as of words."""

    left: float
    top: float
    right: float
    bottom: float
    weight: float
    against_runner_up: float
    confidence_without: float


@dataclass(frozen=True)
class Explanation:
    """Of one category of a product. Words stand in their order; a word that is there twice has one weight, for both."""

    category: str
    confidence: float
    runner_up: str | None
    """The next one; nothing where a product has any number of categories."""
    tier: str | None
    """Who answered: words alone, or both."""
    words: tuple[Word, ...]
    regions: tuple[Region, ...] = ()

    def strongest(self, count: int) -> list[Word]:
        """The words that speak for the category, each once, the strongest first."""
        first = {(word.text.casefold(), word.weight): word for word in reversed(self.words) if word.weight > 0}
        return sorted(first.values(), key=lambda word: (-word.weight, word.start))[:count]


@dataclass(frozen=True)
class Asked:
    """A product whose category is to be explained."""

    row: int
    category: int
    rival: int | None
    by_words: bool
    tier: str | None


def check(spec: Spec) -> None:
    """Raises ConfigError for a model whose answers cannot be explained."""
    if spec.tags:
        raise ConfigError(
            "this model finds tags: they stand in the words themselves, and its categories are not explained; explain a model "
            "that answers categories alone"
        )


class Explainer:
    """Explains what a model answers, with the model itself. Raises ConfigError for one that gives tags."""

    def __init__(self, tiers: Tiers) -> None:
        check(tiers.spec)
        self.tiers, self.spec = tiers, tiers.spec
        self.many = self.spec.head == MANY_CATEGORIES
        self.place = {name: number for number, name in enumerate(self.spec.categories)}

    def explain(self, table: pa.Table, labels: pa.Table | None = None) -> list[list[Explanation]]:
        """For each row of a table with the model's columns, one explanation per category; none where it cannot be read.

        `labels` are what `Tiers.published` has for these rows, with one alternative at least, if they are there already. Of a row that
        has no category at all, the most probable one is explained.
        """
        read = self.tiers.input.read(table)
        labels = self.tiers.published(table, 1).labels if labels is None else labels
        asked = list(self._questions(labels))
        values = read.values
        texts = self._composed(read.table) if self.spec.text_columns else None
        found: list[list[Explanation]] = [[] for _ in range(len(table))]
        for one in asked:
            found[one.row].append(self._explain(one, values.slice(one.row, 1), texts))
        return found

    def _questions(self, labels: pa.Table) -> Iterator[Asked]:
        column = self.tiers.columns.answer
        tiers = labels.column(TIER).to_pylist() if TIER in labels.column_names else [None] * len(labels)
        names, others = labels.column(column).to_pylist(), labels.column("alternatives").to_pylist()
        for row, (answer, alternatives, tier) in enumerate(zip(names, others, tiers, strict=True)):
            by_words = tier == BY_WORDS
            next_best = [self.place[one["category"]] for one in alternatives or ()]
            if self.many and answer is not None:
                for category in [self.place[name] for name in answer] or next_best[:1]:
                    yield Asked(row, category, None, by_words, tier)
            elif answer is not None:
                yield Asked(row, self.place[answer], next_best[0] if next_best else None, by_words, tier)

    def _explain(self, asked: Asked, value: pa.Array, texts: Composed | None) -> Explanation:
        words = Words(texts.texts[asked.row].as_py() or "") if texts else Words("")
        units = range(len(words.units))
        variants = [words.text, "", *map(words.without, units), *map(words.only, units)]
        said = self._ask(self._with_texts(value, variants), asked)
        effects = Effects.of(said, asked)
        regions = () if asked.by_words or not self.spec.picture else self._regions(asked, value)
        return Explanation(
            category=self.spec.categories[asked.category],
            confidence=effects.confidence,
            runner_up=None if asked.rival is None else self.spec.categories[asked.rival],
            tier=asked.tier,
            words=tuple(self._placed(words, effects, texts, asked.row)) if texts else (),
            regions=regions,
        )

    def _ask(self, values: pa.Array, asked: Asked, encoded: Any = None) -> npt.NDArray[np.float32]:
        """float32 [variants, categories]"""
        at_once = max(1, AT_ONCE // len(self.spec.categories))
        parts = []
        for start in range(0, len(values), at_once):
            some = values.slice(start, at_once)
            ready = None if encoded is None else encoded.slice(start, start + len(some))
            parts.append(self.tiers.probabilities(some, asked.by_words, ready))
        return np.concatenate(parts)

    def _with_texts(self, value: pa.Array, texts: Sequence[str]) -> pa.Array:
        """The value of a row, as it would be with each of these texts."""
        strings = pa.array(texts, pa.large_string())
        if not self.spec.picture:
            return strings
        repeated = value.take(pa.array(np.zeros(len(texts), np.int64)))
        names = [field.name for field in value.type]
        fields = [strings if name == "text" else pc.struct_field(repeated, name) for name in names]
        return pa.StructArray.from_arrays(fields, fields=list(value.type))

    def _composed(self, table: pa.Table) -> Composed:
        columns = [_whole(table.column(name)) for name in self.spec.text_columns]
        return composed(columns, self.spec.max_tokens)

    def _placed(self, words: Words, effects: "Effects", texts: Composed, row: int) -> list[Word]:
        """The words of a row, where they stand in its own columns."""
        first, placed = int(texts.offsets[row]), []
        for unit, effect in zip(words.units, effects.each(), strict=True):
            for stretch in unit.stretches:
                at, last = first + stretch.first, first + stretch.last - 1
                field, start, end = self.spec.text_columns[texts.field[at]], texts.place[at], texts.place[last] + 1
                placed.append(
                    (at, Word(field, int(start), int(end), words.text[stretch.first : stretch.last], *effect))
                )
        return [word for _, word in sorted(placed, key=lambda pair: pair[0])]

    def _regions(self, asked: Asked, value: pa.Array) -> tuple[Region, ...]:
        """Each part of the picture, covered with the mean colour of the whole, and alone; nothing where there is no picture."""
        encoded: Pictured = self.tiers.input.encode(value)
        if encoded.index[0] < 0:
            return ()
        whole = encoded.album.pixels(encoded.index, np.zeros(1, np.int64))[0]
        nothing = np.broadcast_to(whole.mean(axis=(1, 2), keepdims=True).astype(np.uint8), whole.shape)
        edges, size = np.linspace(0, encoded.size, GRID + 1).round().astype(int), encoded.size
        covered, alone, boxes = [], [], []
        for down, across in np.ndindex(GRID, GRID):
            top, bottom, left, right = edges[down], edges[down + 1], edges[across], edges[across + 1]
            inside = np.zeros(whole.shape, bool)
            inside[:, top:bottom, left:right] = True
            covered.append(np.where(inside, nothing, whole))
            alone.append(np.where(inside, whole, nothing))
            boxes.append((left / size, top / size, right / size, bottom / size))
        pixels = np.stack([whole, nothing, *covered, *alone])
        rows: IntArray = np.zeros(len(pixels), np.int64)
        variants = replace(encoded.take(rows), index=np.arange(len(pixels)), album=Decoded(pixels))
        effects = Effects.of(self._ask(value.take(pa.array(rows)), asked, variants), asked)
        places = [tuple(map(float, box)) for box in boxes]
        return tuple(
            Region(left, top, right, bottom, *effect)
            for (left, top, right, bottom), effect in zip(places, effects.each(), strict=True)
        )


@dataclass(frozen=True)
class Effects:
    """What N parts of a product do to its category."""

    confidence: float
    weight: FloatArray
    against_runner_up: FloatArray
    confidence_without: FloatArray

    @classmethod
    def of(cls, said: npt.NDArray[np.float32], asked: Asked) -> "Effects":
        """Of the probabilities [2 + 2 N, categories] of the whole, of nothing, of the whole without each part, and of each part alone."""
        own = np.clip(said[:, asked.category].astype(float), LEAST, 1 - LEAST)
        other = 1 - own if asked.rival is None else np.maximum(said[:, asked.rival].astype(float), LEAST)
        parts = (len(said) - 2) // 2
        without = said[2 : 2 + parts, asked.category].astype(float)
        weight, against = (_mean_effect(np.log(own / rest), parts) for rest in (1 - own, other))
        return cls(float(said[0, asked.category]), weight, against, without)

    def each(self) -> list[tuple[float, float, float]]:
        columns = (self.weight, self.against_runner_up, self.confidence_without)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _mean_effect(odds: FloatArray, parts: int) -> FloatArray:
    lost, given = odds[0] - odds[2 : 2 + parts], odds[2 + parts :] - odds[1]
    return np.asarray((lost + given) / 2)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(column.cast(pa.large_string()).combine_chunks(), "")
