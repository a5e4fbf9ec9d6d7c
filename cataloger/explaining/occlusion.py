"""What a category rests on: the model is asked again without each word and about each word alone, and so about parts of the picture.

What a word does depends on the others: two that say the same are missed only together. The mean of its effect on all others and on
none is the first and the last term of its Shapley value (Shapley 1953), and as faithful to the model as many orders of the words are
(`benchmarks/explaining.py`).
"""

import functools
from collections.abc import Iterator
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
from cataloger.heads.columns import columns_of
from cataloger.heads.ranked import WithRanked
from cataloger.model.tiers import FirstTier, Tiers
from cataloger.spec import MANY_CATEGORIES, Spec

FloatArray = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
BECAUSE_TYPE = pa.list_(pa.struct([("word", pa.string()), ("weight", pa.float32())]))
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
    """Categories of a product that are to be explained; without any, the most probable one is."""

    row: int
    categories: tuple[int, ...]
    rival: int | None
    tier: str | None

    @property
    def by_words(self) -> bool:
        return self.tier == BY_WORDS


def check(spec: Spec) -> None:
    """Raises ConfigError for a model whose answers cannot be explained."""
    if spec.tags:
        raise ConfigError(
            "this model finds tags: they stand in the words themselves, and its categories are not explained; explain a model "
            "that answers categories alone"
        )


@dataclass(frozen=True)
class Explainer:
    """Explains what a model answers, with the model itself: its words, its network, or both."""

    spec: Spec
    input: Any
    first: FirstTier | None
    network: Any
    """A `Predictor`, or None."""

    @classmethod
    def of(cls, tiers: Tiers) -> "Explainer":
        """Of a whole bundle. Raises ConfigError for one that gives tags."""
        check(tiers.spec)
        return cls(tiers.spec, tiers.input, tiers.first, tiers.network)

    def explain(self, table: pa.Table, labels: pa.Table) -> list[list[Explanation]]:
        """For each row of a table with the model's columns, one explanation per category; none where it cannot be read.

        `labels` are what `Tiers.published` has for these rows, with one alternative at least.
        """
        read = self.input.read(table)
        texts = self._composed(read.table) if self.spec.text_columns else None
        found: list[list[Explanation]] = [[] for _ in range(len(table))]
        for asked in self._questions(labels):
            row = self.input.encode(read.values.slice(asked.row, 1)) if self.network and not asked.by_words else None
            words = Words(texts.texts[asked.row].as_py() or "") if texts else Words("")
            said = self._ask_about(words, asked, row)
            seen, boxes = self._look(words, asked, row) if row is not None and self.spec.picture else (None, ())
            for category in asked.categories or (int(said[0].argmax()),):
                effects = Effects.of(said, category, asked.rival)
                regions = Effects.of(seen, category, asked.rival).each() if seen is not None else []
                found[asked.row].append(
                    Explanation(
                        category=self.spec.categories[category],
                        confidence=effects.confidence,
                        runner_up=None if asked.rival is None else self.spec.categories[asked.rival],
                        tier=asked.tier,
                        words=tuple(self._placed(words, effects, texts, asked.row)) if texts else (),
                        regions=tuple(Region(*box, *effect) for box, effect in zip(boxes, regions, strict=True)),
                    )
                )
        return found

    def because(self, texts: pa.Array, answers: pa.Table, count: int, encoded: Any = None) -> pa.Array:
        """For each answer that needs review the `count` words that speak most for its first category; null for others.

        `texts` are what words read of the rows, `encoded` the same rows for the network; nothing where words have answered alone.
        """
        labels = pa.table(self._columns.to_labels(answers))
        found: list[list[dict[str, Any]] | None] = [None] * len(labels)
        doubtful = labels.column("needs_review").to_numpy(zero_copy_only=False)
        for asked in self._questions(labels):
            if doubtful[asked.row]:
                row = encoded.slice(asked.row, asked.row + 1) if encoded is not None else None
                found[asked.row] = self._strongest(Words(texts[asked.row].as_py()), asked, row, count)
        return pa.array(found, BECAUSE_TYPE)

    def _strongest(self, words: Words, asked: Asked, row: Any, count: int) -> list[dict[str, Any]] | None:
        """None where the model fails at what is left of a text: its label is as good as any."""
        try:
            said = self._ask_about(words, replace(asked, tier=asked.tier if row is not None else BY_WORDS), row)
        except (IndexError, ValueError, RuntimeError):
            return None
        weight = Effects.of(said, (asked.categories or (int(said[0].argmax()),))[0], None).weight
        order = np.argsort(-weight, kind="stable")[:count].tolist()
        return [{"word": words.shown(unit), "weight": float(weight[unit])} for unit in order if weight[unit] > 0]

    def probabilities(self, texts: pa.Array, encoded: Any = None, alone: bool = False) -> npt.NDArray[np.float32]:
        """[N, categories] of the first answer, by which its category is chosen: of words `alone`, or of all there is.

        `texts` are what words read of the rows, `encoded` the same rows for the network, where it reads more than those.
        """
        if self.first and (alone or not self.network):
            return self.first.probabilities(texts)
        encoded = self.input.encode(texts) if encoded is None else encoded
        if self.first:
            encoded = WithRanked(encoded, self.first.rank(texts))
        found: npt.NDArray[np.float32] = self.network.probabilities(encoded)
        return found

    @functools.cached_property
    def _columns(self) -> Any:
        return columns_of(self.spec)

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.spec.categories)}

    def _questions(self, labels: pa.Table) -> Iterator[Asked]:
        """Of the rows that have an answer."""
        many = self.spec.head == MANY_CATEGORIES
        tiers = labels.column(TIER).to_pylist() if TIER in labels.column_names else [None] * len(labels)
        names, others = labels.column(self._columns.answer).to_pylist(), labels.column("alternatives").to_pylist()
        for row, (answer, alternatives, tier) in enumerate(zip(names, others, tiers, strict=True)):
            if answer is not None:
                categories = tuple(self._place[name] for name in (answer if many else [answer]))
                rival = None if many or not alternatives else self._place[alternatives[0]["category"]]
                yield Asked(row, categories, rival, tier)

    def _ask_about(self, words: Words, asked: Asked, row: Any) -> npt.NDArray[np.float32]:
        """What `Effects.of` reads, of the words of a row, which is `row` for the network."""
        units = range(len(words.units))
        texts = pa.array([words.text, "", *map(words.without, units), *map(words.only, units)], pa.large_string())
        variants = None
        if row is not None and self.spec.picture:
            tokens = self.input.words.encode(texts) if self.spec.text_columns else None
            variants = replace(row.take(np.zeros(len(texts), np.int64)), tokens=tokens)
        return self._ask(texts, asked, variants)

    def _ask(self, texts: pa.Array, asked: Asked, variants: Any = None) -> npt.NDArray[np.float32]:
        """float32 [variants, categories]"""
        at_once = max(1, AT_ONCE // len(self.spec.categories))
        parts = []
        for start in range(0, len(texts), at_once):
            some = texts.slice(start, at_once)
            ready = None if variants is None else variants.slice(start, start + len(some))
            parts.append(self.probabilities(some, ready, asked.by_words))
        return np.concatenate(parts)

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

    def _look(
        self, words: Words, asked: Asked, encoded: Pictured
    ) -> tuple[npt.NDArray[np.float32] | None, tuple[Box, ...]]:
        """What `Effects.of` reads, of each part of the picture: covered with the mean colour of the whole, and alone; and the parts.

        Nothing where there is no picture.
        """
        if encoded.index[0] < 0:
            return None, ()
        whole = encoded.album.pixels(encoded.index, np.zeros(1, np.int64))[0]
        nothing = np.broadcast_to(whole.mean(axis=(1, 2), keepdims=True).astype(np.uint8), whole.shape)
        edges, size = np.linspace(0, encoded.size, GRID + 1).round().astype(int).tolist(), encoded.size
        covered, alone, boxes = [], [], list[Box]()
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
        return self._ask(pa.array([words.text] * len(rows), pa.large_string()), asked, variants), tuple(boxes)


@dataclass(frozen=True)
class Effects:
    """What N parts of a product do to its category."""

    confidence: float
    weight: FloatArray
    against_runner_up: FloatArray
    confidence_without: FloatArray

    @classmethod
    def of(cls, said: npt.NDArray[np.float32], category: int, rival: int | None) -> "Effects":
        """Of the probabilities [2 + 2 N, categories] of the whole, of nothing, of the whole without each part, and of each part alone."""
        own = np.clip(said[:, category].astype(float), LEAST, 1 - LEAST)
        other = 1 - own if rival is None else np.maximum(said[:, rival].astype(float), LEAST)
        parts = (len(said) - 2) // 2
        without = said[2 : 2 + parts, category].astype(float)
        weight, against = (_mean_effect(np.log(own / rest), parts) for rest in (1 - own, other))
        return cls(float(said[0, category]), weight, against, without)

    def each(self) -> list[tuple[float, float, float]]:
        columns = (self.weight, self.against_runner_up, self.confidence_without)
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _mean_effect(odds: FloatArray, parts: int) -> FloatArray:
    lost, given = odds[0] - odds[2 : 2 + parts], odds[2 + parts :] - odds[1]
    return np.asarray((lost + given) / 2)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(column.cast(pa.large_string()).combine_chunks(), "")
