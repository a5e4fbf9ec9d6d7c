"""A text as the words that may be left out of it, each with its places there."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cataloger.data.fields import of_marks, of_words

# Of a longer text, several words that follow one another are left out together: what an explanation costs is bounded.
MOST_UNITS = 64


@dataclass(frozen=True)
class Stretch:
    """Characters of a text: `start` to `end` are left out; `first` to `last` are those of them that are shown, without punctuation."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Unit:
    """What is left out at once: a word wherever it stands, or a few words of a long text."""

    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Words:
    """A text, and the units that it is made of, in the order in which they begin."""

    text: str

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """At most MOST_UNITS; white space and punctuation are of none."""
        places: dict[str, list[Stretch]] = {}
        for stretch in stretches(self.text):
            key = unicodedata.normalize("NFKC", self.text[stretch.first : stretch.last]).casefold()
            places.setdefault(key, []).append(stretch)
        words = list(places.values())
        together = -(-len(words) // MOST_UNITS) or 1
        groups = [words[start : start + together] for start in range(0, len(words), together)]
        return tuple(Unit(tuple(stretch for word in group for stretch in word)) for group in groups)

    def shown(self, unit: int) -> str:
        """The words of a unit, each as it is first written."""
        words = [self.text[one.first : one.last] for one in self.units[unit].stretches]
        return " ".join(
            {word.casefold(): word for word in reversed(words)}[one] for one in dict.fromkeys(map(str.casefold, words))
        )

    def without(self, *units: int) -> str:
        """The text without these units."""
        return self._kept({number for number in range(len(self.units)) if number not in units})

    def only(self, *units: int) -> str:
        """The text of these units alone."""
        return self._kept(set(units))

    def _kept(self, units: set[int]) -> str:
        pieces, place = [], 0
        for stretch in self._all:
            pieces.append(self.text[place : stretch[0].start])
            if stretch[1] in units:
                pieces.append(self.text[stretch[0].start : stretch[0].end])
            place = stretch[0].end
        return re.sub(r"\s+", " ", "".join([*pieces, self.text[place:]])).strip()

    @cached_property
    def _all(self) -> list[tuple[Stretch, int]]:
        """Each stretch with the number of its unit, in the order of the text."""
        found = [(stretch, number) for number, unit in enumerate(self.units) for stretch in unit.stretches]
        return sorted(found, key=lambda pair: pair[0].start)


def stretches(text: str) -> list[Stretch]:
    """The words of a text. White space parts them; in scripts without spaces each character is one."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    spaced, marks = of_words(characters), of_marks(characters, formats=True)
    found = []
    for run in re.finditer(r"\S+", text):
        start = run.start()
        for place in range(run.start(), run.end()):
            # A character of such a script ends the word before it, and its own marks end with it.
            alone = text[place].isalnum() and not spaced[place]
            after_one = place > start and _unspaced(text, spaced, place - 1, marks)
            if place > start and (alone or (after_one and not marks[place])):
                found.append((start, place))
                start = place
        found.append((start, run.end()))
    shown = [(start, end, *_inner(text, start, end)) for start, end in found]
    return [Stretch(*one) for one in shown if one[2] < one[3]]


def _unspaced(text: str, spaced: np.typing.NDArray[np.bool_], place: int, marks: np.typing.NDArray[np.bool_]) -> bool:
    while place and marks[place]:
        place -= 1
    return text[place].isalnum() and not bool(spaced[place])


def _inner(text: str, start: int, end: int) -> tuple[int, int]:
    """From the first letter or digit to the last one, and its marks; nothing where there is none."""
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not (text[end - 1].isalnum() or unicodedata.category(text[end - 1]).startswith("M")):
        end -= 1
    return start, end
