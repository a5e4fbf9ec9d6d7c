"""What can be told of conditions from how they are written: whether one takes all that another one takes, or none at all."""

import re
from collections.abc import Iterator

from cataloger.curation.conditions import NUMBER, All, Between, Condition, Contains, Not, OneOf, Some


def implies(one: Condition, other: Condition) -> bool:
    """Whether whatever fulfils the one fulfils the other, as far as that can be told from how they are written."""
    if one == other:
        return True
    if isinstance(other, All):
        return all(implies(one, part) for part in other.of)
    if isinstance(one, Some):
        return all(implies(part, other) for part in one.of)
    if isinstance(other, Some) and any(implies(one, part) for part in other.of):
        return True
    if isinstance(one, All):
        return any(implies(part, other) for part in one.of)
    if isinstance(one, Not) and isinstance(other, Not):
        return implies(other.of, one.of)
    if one.columns != other.columns:
        return False
    match one, other:
        case OneOf(), OneOf() | Contains() | Between():
            return all(_fulfils(value, other) for value in one.values)
        case Contains(), Contains():
            return other.text in one.text
        case Between(), Between():
            return other.least <= one.least and one.most <= other.most
    return False


def is_possible(condition: Condition) -> bool:
    """Whether any product can fulfil it, as far as that can be told from how it is written."""
    parts = list(_parts(condition))
    for part in parts:
        if isinstance(part, Some) and not any(map(is_possible, part.of)):
            return False
        if isinstance(part, Not) and any(implies(one, part.of) for one in parts):
            return False
        same = [one for one in parts if one.columns == part.columns]
        if isinstance(part, Between):
            ranges = [one for one in same if isinstance(one, Between)]
            if max(one.least for one in ranges) > min(one.most for one in ranges):
                return False
        # What is said of a field alone can be asked of each of its values.
        values = part.values if isinstance(part, OneOf) else ()
        if values and not any(all(_may_fulfil(value, one) for one in same) for value in values):
            return False
    return True


def _parts(condition: Condition) -> Iterator[Condition]:
    """All that must hold of a product."""
    if isinstance(condition, All):
        for one in condition.of:
            yield from _parts(one)
    else:
        yield condition


def _fulfils(value: str | float, condition: OneOf | Contains | Between) -> bool:
    """Whether a field that is this value does, however it is written: 5 may stand there as "5.0"."""
    if isinstance(condition, Contains):
        return isinstance(value, str) and condition.text in value
    number = _number(value)
    if isinstance(condition, Between):
        return number is not None and condition.least <= number <= condition.most
    return value in condition.values or number in condition.numbers


def _number(value: str | float) -> float | None:
    """What a text says, where it is a number."""
    if not isinstance(value, str):
        return value
    return float(value) if re.fullmatch(NUMBER, value) else None


def _may_fulfil(value: str | float, condition: Condition) -> bool:
    """The same, true where it depends on how the value is written."""
    if isinstance(value, str):
        return not isinstance(condition, OneOf | Contains | Between) or _fulfils(value, condition)
    if isinstance(condition, OneOf) and condition.texts:
        return True
    return not isinstance(condition, OneOf | Between) or _fulfils(value, condition)
