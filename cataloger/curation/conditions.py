"""What the `when` of a rule says of a product, checked as it is read and asked of a whole table at a time.

Texts are compared without regard to case and to white space around them; a regex says `(?i)` itself. Regular expressions are those of RE2,
whose time is linear in the text (https://github.com/google/re2/wiki/Syntax). A field that is null, or no number where one is
asked for, fulfils nothing, and so fulfils every `not`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.text import undecodable

NUMBER = r"^\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*$"
OPERATORS = ("equals", "in", "contains", "regex", "min", "max")


class Rows:
    """A table whose columns are made ready for conditions once, however many rules ask."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._ready: dict[tuple[str, str], pa.Array] = {}

    def __len__(self) -> int:
        return len(self.table)

    def texts(self, name: str) -> pa.Array:
        """As they stand there; null where they are no valid UTF-8."""
        return self._once("texts", name, lambda: _texts(self.table.column(name)))

    def plain(self, name: str) -> pa.Array:
        """Without capitals, and without white space around them."""
        return self._once("plain", name, lambda: plain(self.texts(name)))

    def numbers(self, name: str) -> pa.Array:
        """float64, of texts too."""
        return self._once("numbers", name, lambda: self._numbers(name))

    def _numbers(self, name: str) -> pa.Array:
        column = self.table.column(name)
        if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
            # By the shortest decimal that means it: 3.2 is 3.2 in a narrow column, too.
            column = column.cast(pa.float32()).cast(pa.large_string())
            return column.cast(pa.float64()).combine_chunks()
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            return column.cast(pa.float64(), safe=False).combine_chunks()
        texts = self.texts(name)
        good = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, pa.scalar(None, texts.type))
        # Arrow reads no number that begins with a plus.
        return pc.replace_substring_regex(pc.utf8_trim_whitespace(good), r"^\+", "").cast(pa.float64())

    def _once(self, kind: str, name: str, make: Callable[[], pa.Array]) -> pa.Array:
        if (kind, name) not in self._ready:
            self._ready[kind, name] = make()
        return self._ready[kind, name]


def plain(texts: pa.Array) -> pa.Array:
    """See `Rows.plain`."""
    return pc.utf8_lower(pc.utf8_trim_whitespace(texts))


def _texts(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    bad = undecodable(values)
    if bad.any():
        values = pc.if_else(pa.array(bad), pa.scalar(None, values.type), values)
    return values.cast(pa.large_string())


class Condition(Protocol):
    """Asked of N products."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that it looks at."""

    def holds(self, rows: Rows) -> pa.Array:
        """[N] without nulls."""


@dataclass(frozen=True)
class All:
    """Of nothing, always."""

    of: tuple[Condition, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for one in self.of for name in one.columns)

    def holds(self, rows: Rows) -> pa.Array:
        found = pa.repeat(pa.scalar(True), len(rows))
        for one in self.of:
            found = pc.and_(found, one.holds(rows))
        return found


@dataclass(frozen=True)
class Some:
    """At least one of these."""

    of: tuple[Condition, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for one in self.of for name in one.columns)

    def holds(self, rows: Rows) -> pa.Array:
        found = pa.repeat(pa.scalar(False), len(rows))
        for one in self.of:
            found = pc.or_(found, one.holds(rows))
        return found


@dataclass(frozen=True)
class Not:
    of: Condition

    @property
    def columns(self) -> tuple[str, ...]:
        return self.of.columns

    def holds(self, rows: Rows) -> pa.Array:
        return pc.invert(self.of.holds(rows))


@dataclass(frozen=True)
class OneOf:
    """The field is one of these: texts as `Rows.plain` has them, or numbers."""

    column: str
    texts: tuple[str, ...]
    numbers: tuple[float, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def values(self) -> tuple[str | float, ...]:
        return (*self.texts, *self.numbers)

    @cached_property
    def _sets(self) -> tuple[pa.Array, pa.Array]:
        return pa.array(self.texts, pa.large_string()), pa.array(self.numbers, pa.float64())

    def holds(self, rows: Rows) -> pa.Array:
        texts, numbers = self._sets
        found = pa.repeat(pa.scalar(False), len(rows))
        if len(texts):
            found = pc.or_(found, pc.is_in(rows.plain(self.column), texts))
        if len(numbers):
            found = pc.or_(found, pc.is_in(rows.numbers(self.column), numbers))
        return found


@dataclass(frozen=True)
class Contains:
    column: str
    text: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def holds(self, rows: Rows) -> pa.Array:
        return pc.fill_null(pc.match_substring(rows.plain(self.column), self.text), False)


@dataclass(frozen=True)
class Matches:
    """A part of the field matches the regular expression."""

    column: str
    pattern: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def holds(self, rows: Rows) -> pa.Array:
        return pc.fill_null(pc.match_substring_regex(rows.texts(self.column), self.pattern), False)


@dataclass(frozen=True)
class Between:
    """Both ends belong to it."""

    column: str
    least: float = -math.inf
    most: float = math.inf

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def holds(self, rows: Rows) -> pa.Array:
        numbers = rows.numbers(self.column)
        return pc.fill_null(pc.and_(pc.greater_equal(numbers, self.least), pc.less_equal(numbers, self.most)), False)


def parse(when: Any, where: str = "when") -> Condition:
    """What YAML has of a condition. Raises ValueError that says where it is wrong, and why."""
    if not isinstance(when, dict) or not when:
        raise ValueError(f"{where}: must be columns and what holds of them, such as brand: Lego")
    found: list[Condition] = []
    for name, said in when.items():
        inside = f"{where}.{name}"
        if not isinstance(name, str):
            raise ValueError(f"{where}: {name!r} is no name of a column; write it in quotes")
        if name in ("all", "any"):
            if not isinstance(said, list) or not said:
                raise ValueError(f"{inside}: must be a list of conditions")
            each = tuple(parse(one, f"{inside}[{number}]") for number, one in enumerate(said, 1))
            found.append(All(each) if name == "all" else Some(each))
        elif name == "not":
            found.append(Not(parse(said, inside)))
        else:
            found += _of_column(name, said, inside)
    return found[0] if len(found) == 1 else All(tuple(found))


def _of_column(column: str, said: Any, where: str) -> Iterator[Condition]:
    if not isinstance(said, dict):
        said = {"in" if isinstance(said, list) else "equals": said}
    if unknown := next((name for name in said if name not in OPERATORS), None):
        raise ValueError(f"{where}: {unknown!r} is none of {', '.join(OPERATORS)}")
    if not said:
        raise ValueError(f"{where}: says nothing; write one of {', '.join(OPERATORS)}")
    if {"equals", "in"} & said.keys():
        values = said.get("in", [said.get("equals")])
        if {"equals", "in"} <= said.keys():
            raise ValueError(f"{where}: says both equals and in; write one of them")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}.in: must be a list of values")
        yield _one_of(column, values, where)
    if "contains" in said:
        # White space at its ends is meant, as in " set".
        text = pc.utf8_lower(pa.scalar(_text(said["contains"], f"{where}.contains"))).as_py()
        if not text.strip():
            raise ValueError(f"{where}.contains: every text contains it")
        yield Contains(column, text)
    if "regex" in said:
        pattern = _text(said["regex"], f"{where}.regex")
        try:
            pc.match_substring_regex(pa.array([""]), pattern)
        except pa.ArrowInvalid as error:
            why = str(error).removeprefix("Invalid regular expression: ")
            raise ValueError(
                f"{where}.regex: {pattern!r} is no regular expression of RE2, which knows no backreferences and looks neither ahead "
                f"nor behind: {why}"
            ) from error
        yield Matches(column, pattern)
    if {"min", "max"} & said.keys():
        ends = {name: _number(said[name], f"{where}.{name}") for name in ("min", "max") if name in said}
        yield Between(column, ends.get("min", -math.inf), ends.get("max", math.inf))


def _one_of(column: str, values: Sequence[Any], where: str) -> OneOf:
    texts = [value for value in values if not _is_number(value)]
    written = plain(pa.array([_text(value, where) for value in texts], pa.large_string()))
    return OneOf(column, tuple(written.to_pylist()), tuple(float(value) for value in values if _is_number(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r} is no text in YAML; write it in quotes")
    return value


def _number(value: Any, where: str) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{where}: {value!r} is no number")
    return float(value)
