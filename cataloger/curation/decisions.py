"""What pins and rules make of labels: pin before rule before model.

Reading marks the rows that a pin or a rule is about (`Decisions.mark`), where the columns are that rules look at. When a model's labels are
there, `Decisions.decide` changes them, and says of each where it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.curation import pins as pinning
from cataloger.curation import rules as ruling
from cataloger.curation.known import Known
from cataloger.curation.matching import matches
from cataloger.curation.outcome import MATCHED, ORDER, PIN, Counts, Marks, Outcome, deciding, reason
from cataloger.curation.pins import Pins, SharedPins
from cataloger.curation.rules import Rule, Rules
from cataloger.errors import ConfigError
from cataloger.heads.columns import Columns
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, Spec

# A row's number, which is kept where rows are put together again.
NUMBER = "cataloger.number"


@dataclass(frozen=True)
class Given:
    """What people have decided, as it was read and checked against a model."""

    pins: Pins | None
    rules: Rules | None

    @property
    def digests(self) -> tuple[str | None, str | None]:
        return (self.pins.digest if self.pins else None, self.rules.digest if self.rules else None)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the catalog that rules look at, with how to say which flag names each."""
        found = self.rules.columns if self.rules else {}
        return {column: f"rule {name} of --rules" for column, name in found.items()}

    def share(self) -> "Decisions | None":
        """For the tasks of a running Ray; None where nobody has decided anything."""
        if not self.pins and not self.rules:
            return None
        return Decisions(self.rules.rules if self.rules else (), self.pins.share() if self.pins else None)


def read(pins: str | None, rules: str | None, spec: Spec, alternatives: int) -> Given:
    """Raises CatalogerError for pins and rules that are none, or that do not fit the model and how many alternatives it gives."""
    found = Given(pinning.read_pins(pins) if pins else None, ruling.read_rules(rules) if rules else None)
    check(found.pins, found.rules.rules if found.rules else (), spec, f"--pins {pins}", f"--rules {rules}")
    forbids = [rule.name for rule in found.rules.rules if rule.action == "forbid"] if found.rules else []
    if forbids and not alternatives and spec.head == ONE_CATEGORY:
        raise ConfigError(
            f"--alternatives 0: rule {forbids[0]} of --rules {rules} forbids categories, and needs others to choose from"
        )
    return found


def check(
    pins: Pins | SharedPins | None,
    rules: Sequence[Rule],
    spec: Spec,
    of_pins: str = "--pins",
    of_rules: str = "--rules",
) -> None:
    """Raises ConfigError, which says where they are from, for pins and rules that do not fit a model."""
    lists = spec.head == MANY_CATEGORIES
    if pins:
        pinning.check(pins, Known.of(spec, of_pins), of_pins, lists)
    if rules:
        ruling.check(rules, Known.of(spec, of_rules), of_rules, lists)


@dataclass(frozen=True)
class Decisions:
    """Pins and rules as tasks have them."""

    rules: tuple[Rule, ...]
    pins: SharedPins | None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the rules look at."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.when.columns))

    def mark(self, table: pa.Table, ids: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
        """Of N rows with the columns of the rules: ORDER, PIN, the category of a pin, and MATCHED, the numbers of the rules that match."""
        found = {ORDER: pa.array(np.arange(len(table)))}
        if self.pins:
            found[PIN] = self.pins.find(ids)
        row, number = _pairs(matches([rule.when for rule in self.rules], table))
        counts = np.bincount(row, minlength=len(table))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        found[MATCHED] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(number.astype(np.int32)))
        return found

    def refusals(self, marks: Mapping[str, pa.Array]) -> pa.Array:
        """[N] why rules reject the rows that have these marks, null where they do not."""
        who = deciding(self.rules, Marks.of(marks))
        reasons = [reason(rule) if rule.action == "reject" else None for rule in self.rules]
        return pa.array(reasons, pa.string()).take(pa.array(who, mask=who < 0))

    def decide(self, labels: pa.Table, rejects: pa.Table, columns: Columns) -> tuple[pa.Table, pa.Table, Counts]:
        """(labels, rejects, what each pin and rule did), of a model's labels and rejects that were marked."""
        return Outcome(self.rules, labels, rejects, columns).done()

    def apply(
        self, table: pa.Table, ids: pa.Array, labels: pa.Table, reasons: pa.Array, columns: Columns
    ) -> tuple[pa.Table, pa.Array]:
        """(labels, reasons) of N rows in one process: all null where there is no label, and null where there is one."""
        marks = pa.table({**self.mark(table, ids), NUMBER: pa.array(np.arange(len(table)))})
        good = reasons.is_null()
        for name in marks.column_names:
            labels = labels.append_column(name, marks.column(name))
        rejects = marks.append_column("reason", reasons).filter(pc.invert(good))
        decided, refused, _ = self.decide(labels.filter(good), rejects, columns)
        place, why = np.full(len(table), -1), np.full(len(table), None, object)
        place[decided.column(NUMBER).to_numpy()] = np.arange(len(decided))
        why[refused.column(NUMBER).to_numpy()] = refused.column("reason").to_pylist()
        return decided.drop_columns([NUMBER]).take(pa.array(place, mask=place < 0)), pa.array(why, pa.string())


def _pairs(hits: Sequence[npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(row, rule) for every match, by row and then in the order of the rules."""
    row = np.concatenate([np.empty(0, np.int64), *hits])
    number = np.repeat(np.arange(len(hits)), [len(own) for own in hits])
    order = np.argsort(row, kind="stable")
    return row[order], number[order]
