"""Rules as they are written: what they take, and what is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cataloger.curation.conditions import Rows, parse
from cataloger.curation.known import Known
from cataloger.curation.logic import implies, is_possible
from cataloger.curation.matching import matches
from cataloger.curation.rules import check, read_rules
from cataloger.errors import ConfigError

KNOWN = Known(("Baby > Nappies", "Food > Drink > Wine", "Food > Tea", "Toys"))
TABLE = pa.table(
    {
        "brand": pa.array(["PAMPERS ", "lego", None, "Straße", ""]).dictionary_encode(),
        "title": ["Best Nappies, 24", "a BRICK", "Gift card", "x" * 9, None],
        "price": ["1", "2.50", None, " 3e1 ", "cheap"],
        "stock": pa.array([5, 0, None, 7, 2], pa.int32()),
        "weight": pa.array([1, 3.2, None, 3.3, 9], pa.float32()),
        "maker": ["ΟΔΟΣ", "İstikbal", None, "", "x"],
        "strength": ["+2.5", " +0 ", "-1.25", None, "++1"],
    }
)


def holding(**when: object) -> list[int]:
    """The rows of TABLE that fulfil it."""
    found = parse(when).holds(Rows(TABLE))
    assert not found.null_count
    return [row for row, holds in enumerate(found.to_pylist()) if holds]


@pytest.mark.parametrize(
    ("when", "rows"),
    [
        ({"brand": "Pampers"}, [0]),
        ({"brand": ["LEGO", "strasse", "straße"]}, [1, 3]),
        ({"title": {"contains": "NAPPIES"}}, [0]),
        ({"title": {"regex": r"\d+$"}}, [0]),
        ({"title": {"regex": "brick"}}, []),
        ({"title": {"regex": "(?i)brick"}}, [1]),
        ({"price": {"min": 2, "max": 30}}, [1, 3]),
        ({"price": 2.5}, [1]),
        ({"strength": {"min": 0}}, [0, 1]),
        ({"stock": {"max": 2}}, [1, 4]),
        ({"stock": 5}, [0]),
        ({"stock": "7"}, [3]),
        ({"brand": "Lego", "stock": 0}, [1]),
        ({"brand": "Lego", "stock": 1}, []),
        ({"any": [{"brand": "lego"}, {"stock": {"min": 7}}]}, [1, 3]),
        ({"all": [{"stock": {"min": 1}}, {"stock": {"max": 5}}]}, [0, 4]),
        ({"not": {"brand": "lego"}}, [0, 2, 3, 4]),
        ({"weight": {"max": 3.2}}, [0, 1]),
        ({"weight": 3.2}, [1]),
        ({"maker": "ΟΔΟΣ"}, [0]),
        ({"maker": {"contains": "İstik"}}, [1]),
        ({"not": {"any": [{"brand": "lego"}, {"stock": {"min": 0}}]}}, [2]),
    ],
)
def test_what_holds_of_a_product(when: dict[str, object], rows: list[int]) -> None:
    assert holding(**when) == rows


def test_a_text_that_is_not_utf8_fulfils_nothing() -> None:
    raw = pa.array([b"\xfflego", b"lego"])
    bad = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    assert parse({"brand": {"contains": "lego"}}).holds(Rows(pa.table({"brand": bad}))).to_pylist() == [False, True]


def test_a_regular_expression_takes_time_that_is_linear_in_the_text() -> None:
    text = pa.table({"title": ["a" * 200_000]})
    assert parse({"title": {"regex": "(a+)+$b"}}).holds(Rows(text)).to_pylist() == [False]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"brand": "Lego"}, {"brand": ["LEGO", "x"]}),
        ({"brand": "Lego bricks"}, {"brand": {"contains": "brick"}}),
        ({"title": {"contains": "gift card"}}, {"title": {"contains": "Gift"}}),
        ({"brand": "a", "title": {"contains": "b"}}, {"title": {"contains": "b"}}),
        ({"price": {"min": 2, "max": 3}}, {"price": {"min": 1}}),
        ({"price": 2}, {"price": {"min": 1}}),
        ({"price": "2"}, {"price": {"min": 1}}),
        ({"brand": "a"}, {"any": [{"brand": "a"}, {"title": "b"}]}),
        ({"any": [{"brand": "a"}, {"brand": "b"}]}, {"brand": ["a", "b"]}),
        ({"not": {"brand": ["a", "b"]}}, {"not": {"brand": "a"}}),
    ],
)
def test_one_condition_takes_all_that_another_takes(one: dict[str, object], other: dict[str, object]) -> None:
    assert implies(parse(one), parse(other))
    assert not implies(parse(other), parse(one))


@pytest.mark.parametrize(
    "when",
    [
        {"all": [{"brand": "a"}, {"brand": "b"}]},
        {"all": [{"price": {"min": 2}}, {"price": {"max": 1}}]},
        {"price": {"min": 2, "max": 1}},
        {"all": [{"price": 5}, {"price": {"max": 1}}]},
        {"all": [{"brand": "lego"}, {"brand": {"contains": "pampers"}}]},
        {"brand": "a", "not": {"brand": ["a", "b"]}},
        {"any": [{"price": {"min": 2, "max": 1}}]},
    ],
)
def test_a_condition_that_nothing_fulfils(when: dict[str, object]) -> None:
    assert not is_possible(parse(when))


@pytest.mark.parametrize(
    "when",
    [
        {"brand": "Lego", "title": "Lego"},
        # However they are written there: case and white space, and 5 as "5.0".
        {"all": [{"brand": "lego"}, {"brand": {"regex": "^LEGO $"}}]},
        {"all": [{"price": 5}, {"price": "5.0"}]},
        {"all": [{"price": 5}, {"price": {"contains": "5."}}]},
    ],
)
def test_a_condition_that_something_fulfils(when: dict[str, object]) -> None:
    assert is_possible(parse(when))


GOOD = "rules:\n  - {name: nappies, when: {brand: Pampers}, category: Baby > Nappies}\n"


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("rules: [", "is no YAML"),
        ("- a", "must have a list `rules`"),
        ("rules: []\nmore: 1", "must have a list `rules`"),
        ("rules: [3]", "rule 1: must have a name"),
        (GOOD + "  - {name: nappies, when: {brand: x}, review: true}", "two rules have the name nappies"),
        ("rules: [{when: {brand: x}, review: true}]", "rule 1: needs a name"),
        (
            "rules: [{name: a, when: {brand: x}}]",
            "rule a: must have one of category, forbid, review, reject, and has none",
        ),
        ("rules: [{name: a, when: {brand: x}, review: true, reject: no}]", "has review and reject"),
        ("rules: [{name: a, when: {brand: x}, review: false}]", "review: must be true"),
        ("rules: [{name: a, when: {brand: x}, reject: 3}]", "reject: must be the reason"),
        ("rules: [{name: a, when: {brand: x}, categroy: Toys}]", "'categroy' is none of name"),
        (
            "rules: [{name: a, when: {brand: x}, category: Toys >}]",
            "is no category path: begins or ends with a separator",
        ),
        ("rules: [{name: a, when: {x: 1}, category: []}]", "rule a: category: names no category"),
        ("rules: [{name: a, when: {}, category: Toys}]", "rule a: when: must be columns"),
        ("rules: [{name: a, category: Toys}]", "rule a: when: must be columns"),
        ("rules: [{name: a, when: {brand: {is: x}}, category: Toys}]", "when.brand: 'is' is none of equals"),
        ("rules: [{name: a, when: {brand: {}}, category: Toys}]", "when.brand: says nothing"),
        ("rules: [{name: a, when: {brand: {in: x}}, category: Toys}]", "when.brand.in: must be a list"),
        ("rules: [{name: a, when: {brand: {in: [x], equals: y}}, category: Toys}]", "says both equals and in"),
        ("rules: [{name: a, when: {brand: no}, category: Toys}]", "False is no text in YAML; write it in quotes"),
        ("rules: [{name: a, when: {brand: 2024-01-01}, category: Toys}]", "is no text in YAML; write it in quotes"),
        ("rules: [{name: a, when: {price: {min: x}}, category: Toys}]", "when.price.min: 'x' is no number"),
        ("rules: [{name: a, when: {title: {regex: '(?<=a)b'}}, category: Toys}]", "is no regular expression of RE2"),
        ("rules: [{name: a, when: {title: {contains: ' '}}, category: Toys}]", "every text contains it"),
        ("rules: [{name: a, when: {any: {}}, category: Toys}]", "when.any: must be a list"),
        ("rules: [{name: a, when: {any: [{x: 1}, 3]}, category: Toys}]", "when.any[2]: must be columns"),
        ("rules: [{name: a, when: {brand: x, brand: y}, category: Toys}]", "'brand' stands here twice"),
        ("rules: [{name: a, when: {3: x}, category: Toys}]", "3 is no name of a column"),
        ("rules: [{name: a, when: {price: {min: 2, max: 1}}, category: Toys}]", "rule a contradicts itself"),
        (
            GOOD + "  - {name: b, when: {brand: pampers, title: x}, category: Toys}",
            "rule b is never reached: rule nappies",
        ),
        (GOOD + "  - {name: b, when: {brand: pampers}, forbid: Baby}", "rule nappies contradicts rule b"),
        (
            "rules: [{name: a, when: {x: 1}, review: true}, {name: b, when: {x: 1, y: 1}, review: true}]",
            "rule b is never reached: rule a",
        ),
        (
            "rules: [{name: a, when: {x: 1}, forbid: Food}, {name: b, when: {x: 1}, forbid: Food > Tea}]",
            "rule b is never reached: rule a",
        ),
    ],
)
def test_rules_that_are_refused(rules: str, sentence: str, working_folder: Path) -> None:
    Path("rules.yaml").write_text(rules)
    with pytest.raises(ConfigError) as problem:
        read_rules("rules.yaml")
    assert str(problem.value).startswith("--rules rules.yaml: ")
    assert sentence in str(problem.value)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (
            "rules: [{name: a, when: {x: 1}, category: Baby > Napies}]",
            "no category 'Baby > Napies'; the nearest is 'Baby > Nappies'",
        ),
        ("rules: [{name: a, when: {x: 1}, forbid: Drinks}]", "rule a: the model knows no category 'Drinks'"),
        ("rules: [{name: a, when: {x: 1}, category: [Toys, Food]}]", "one category; name one"),
    ],
)
def test_rules_that_do_not_fit_the_model(rules: str, sentence: str, working_folder: Path) -> None:
    Path("rules.yaml").write_text(rules)
    with pytest.raises(ConfigError) as problem:
        check(read_rules("rules.yaml").rules, KNOWN, "--rules rules.yaml", lists=False)
    assert sentence in str(problem.value)


def test_rules_that_stand(working_folder: Path) -> None:
    """What may have an effect after all, and inner categories."""
    rules = [
        "{name: wine, when: {brand: x}, category: Food > Drink > Wine}",
        "{name: dry, when: {title: {contains: tea}}, forbid: Food > Drink}",
        # Where the title has tea, the rule above gives nothing.
        "{name: tea, when: {brand: x, title: {contains: tea}}, category: Food > Tea}",
        "{name: drinks, when: {brand: y}, category: Food > Drink}",
        "{name: look, when: {brand: x}, review: true}",
    ]
    Path("rules.yaml").write_text("rules:\n" + "".join(f"  - {rule}\n" for rule in rules))
    check(read_rules("rules.yaml").rules, KNOWN, "--rules rules.yaml", lists=False)


def test_a_digest_is_of_what_rules_say(write: Callable[..., Path], working_folder: Path) -> None:
    Path("one.yaml").write_text(GOOD)
    Path("same.yaml").write_text(
        "# of baby things\nrules:\n- name: nappies\n  category: Baby  >  Nappies\n  when:\n    brand: 'PAMPERS'\n"
    )
    Path("other.yaml").write_text(GOOD.replace("Pampers", "Huggies"))
    one, same, other = (read_rules(f"{name}.yaml").digest for name in ("one", "same", "other"))
    assert one == same != other


values = st.sampled_from(["a", "A ", "b", "ab", "5", "5.0"])
atoms = st.one_of(
    st.tuples(st.sampled_from(["brand", "title"]), values).map(lambda pair: {pair[0]: pair[1]}),
    st.tuples(st.sampled_from(["brand", "title"]), st.lists(values, min_size=1, max_size=3)).map(
        lambda pair: {pair[0]: pair[1]}
    ),
    st.tuples(st.sampled_from(["brand", "title"]), st.sampled_from(["a", "b"])).map(
        lambda pair: {pair[0]: {"contains": pair[1]}}
    ),
    st.just({"brand": 5}),
    st.just({"brand": {"min": 4, "max": 6}}),
)
conditions = st.one_of(
    atoms,
    st.lists(atoms, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
    st.lists(atoms, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
    atoms.map(lambda one: {"not": one}),
)
fields = st.one_of(st.none(), values)


@settings(max_examples=200)
@given(st.lists(conditions, max_size=6), st.lists(st.tuples(fields, fields), max_size=8))
def test_many_rules_at_once_match_what_each_matches_alone(
    said: list[dict[str, object]], rows: list[tuple[str | None, str | None]]
) -> None:
    columns = list(zip(*rows, strict=True)) or [(), ()]
    table = pa.table({"brand": pa.array(columns[0], pa.string()), "title": pa.array(columns[1], pa.string())})
    every = [parse(one) for one in said]
    alone = [np.flatnonzero(one.holds(Rows(table)).to_numpy(zero_copy_only=False)).tolist() for one in every]
    assert [hits.tolist() for hits in matches(every, table)] == alone


@settings(max_examples=200)
@given(conditions, conditions, st.lists(st.tuples(fields, fields), min_size=1, max_size=8))
def test_what_is_told_of_rules_before_they_run_is_true(
    one: Any, other: Any, rows: list[tuple[str | None, str | None]]
) -> None:
    columns = list(zip(*rows, strict=True))
    table = Rows(pa.table({"brand": pa.array(columns[0], pa.string()), "title": pa.array(columns[1], pa.string())}))
    first, second = parse(one), parse(other)
    holds = first.holds(table)
    if implies(first, second):
        assert pc.all(pc.or_(pc.invert(holds), second.holds(table))).as_py()
    if not is_possible(first):
        assert not pc.any(holds).as_py()
