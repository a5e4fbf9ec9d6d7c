"""Rules that people write: what holds of a product, and what then becomes of its label.

    rules:
      - name: nappies
        when: {brand: Pampers, title: {contains: nappies}}
        category: Baby > Nappies

Each has one of `category`, `forbid`, `review: true` and `reject`. All that match a product count: it gets no category that one of
them forbids; the first that gives a category, or rejects it, decides; `review` adds its mark.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import yaml

from cataloger.curation.conditions import Condition, parse
from cataloger.curation.known import Known
from cataloger.curation.logic import implies, is_possible
from cataloger.errors import ConfigError
from cataloger.infra.storage import locate
from cataloger.taxonomy import SEPARATOR, parse_path

Action = Literal["category", "forbid", "review", "reject"]
ACTIONS: tuple[Action, ...] = ("category", "forbid", "review", "reject")
NAMED_PROBLEMS = 3


@dataclass(frozen=True)
class Rule:
    """`paths` are the categories that it gives, or those that it forbids with all that is below; `reason` is why it rejects."""

    name: str
    when: Condition
    action: Action
    paths: tuple[str, ...] = ()
    reason: str = ""

    @property
    def decides(self) -> bool:
        """Whether no rule after it is asked for a category."""
        return self.action in ("category", "reject")

    def covers(self, path: str) -> bool:
        """Whether a category is one of `paths`, or below one."""
        return any(path == one or path.startswith(one + SEPARATOR) for one in self.paths)


@dataclass(frozen=True)
class Rules:
    """In the order of their file, whose text is `written`."""

    rules: tuple[Rule, ...]
    written: str

    @cached_property
    def digest(self) -> str:
        """The same for rules that say the same, however they are commented and indented."""
        return hashlib.sha256(repr(self.rules).encode()).hexdigest()[:16]

    @property
    def columns(self) -> dict[str, str]:
        """The columns that they look at, with the name of the first rule that does."""
        found: dict[str, str] = {}
        for rule in self.rules:
            for column in rule.when.columns:
                found.setdefault(column, rule.name)
        return found


def read_rules(uri: str) -> Rules:
    """The rules of a YAML file. Raises ConfigError for whatever cannot be a rule, StorageError for a file that cannot be read."""
    where = f"--rules {uri}"
    try:
        written = locate(uri).read().decode()
        found = yaml.load(written, _Loader)  # a SafeLoader
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8; write it anew") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or set(found) != {"rules"} or not isinstance(found["rules"], list):
        raise ConfigError(f"{where}: must have a list `rules`, and nothing else")
    rules = []
    for number, one in enumerate(found["rules"], 1):
        try:
            rules.append(_rule(one))
        except ValueError as error:
            name = one.get("name") if isinstance(one, dict) else None
            raise ConfigError(f"{where}: rule {name or number}: {error}") from error
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{where}: two rules have the name {twice}; give each its own")
    _check_effect(rules, where)
    return Rules(tuple(rules), written)


def check(rules: Sequence[Rule], known: Known, where: str, lists: bool) -> None:
    """Raises ConfigError for rules that a model with these categories, or lists of them, cannot follow."""
    for rule in rules:
        known.check(rule.paths, f"{where}: rule {rule.name}")
        if rule.action == "category" and len(rule.paths) > 1 and not lists:
            raise ConfigError(f"{where}: rule {rule.name}: the model gives each product one category; name one")


def _check_effect(rules: Sequence[Rule], where: str) -> None:
    """Raises ConfigError for rules that can never have an effect."""
    problems = [problem for place in range(len(rules)) if (problem := _in_vain(rules, place))]
    if problems:
        more = f" ({len(problems) - NAMED_PROBLEMS} more rules are in vain)" if len(problems) > NAMED_PROBLEMS else ""
        raise ConfigError(f"{where}: {'; '.join(problems[:NAMED_PROBLEMS])}{more}")


def _in_vain(rules: Sequence[Rule], place: int) -> str | None:
    """Why the rule at this place can have no effect."""
    rule, earlier = rules[place], rules[:place]
    if not is_possible(rule.when):
        return f"rule {rule.name} contradicts itself: no product can fulfil it"
    forbids = [one for one in rules if one.action == "forbid"]
    if rule.action == "category":
        for one in forbids:
            if any(map(one.covers, rule.paths)) and implies(rule.when, one.when):
                return f"rule {rule.name} contradicts rule {one.name}, which forbids its category for all its products"
    for one in earlier:
        # One whose category may be forbidden leaves some products to those after it.
        open_to_others = one.action == "category" and any(f.covers(path) for f in forbids for path in one.paths)
        same = one.decides and rule.decides and not open_to_others
        same |= one.action == rule.action == "review"
        same |= one.action == rule.action == "forbid" and all(map(one.covers, rule.paths))
        if same and implies(rule.when, one.when):
            return f"rule {rule.name} is never reached: rule {one.name} before it takes all its products"
    return None


def _rule(said: Any) -> Rule:
    if not isinstance(said, dict):
        raise ValueError("must have a name, `when`, and what then becomes of the product")
    if unknown := next((key for key in said if key not in ("name", "when", *ACTIONS)), None):
        raise ValueError(f"{unknown!r} is none of name, when, {', '.join(ACTIONS)}")
    name = said.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("needs a name; numbers in quotes")
    chosen = [action for action in ACTIONS if action in said]
    if len(chosen) != 1:
        raise ValueError(f"must have one of {', '.join(ACTIONS)}, and has {' and '.join(chosen) or 'none'}")
    (action,) = chosen
    value, when = said[action], parse(said.get("when"))
    if action == "review":
        if value is not True:
            raise ValueError("review: must be true")
        return Rule(name.strip(), when, action)
    if action == "reject":
        if not isinstance(value, str) or not value.strip():
            raise ValueError("reject: must be the reason, in words")
        return Rule(name.strip(), when, action, reason=" ".join(value.split()))
    paths = value if isinstance(value, list) else [value]
    if not paths:
        raise ValueError(f"{action}: names no category")
    return Rule(name.strip(), when, action, tuple(dict.fromkeys(_path(path, action) for path in paths)))


def _path(path: Any, action: Action) -> str:
    if not isinstance(path, str):
        raise ValueError(f"{action}: {path!r} is no category path")
    try:
        return SEPARATOR.join(parse_path(path))
    except ValueError as problem:
        raise ValueError(f"{action}: {path!r} is no category path: {problem}; write levels as 'A > B > C'") from problem


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one place, of which YAML would silently take the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Mapping[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands here twice", node.start_mark)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
