"""A unit's labels as a model gave them, and what pins and rules make of them."""

import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.curation.rules import Rule
from cataloger.curation.verdicts import Mask, verdicts_of
from cataloger.data import ids
from cataloger.heads.category_columns import BY_PIN, MODELS, SOURCE, by_rule
from cataloger.heads.columns import Columns

# Columns of rows that a pin or rules may be about: the place of a row in its unit, its pin, and the numbers of the rules that match it.
ORDER, PIN, MATCHED = "cataloger.order", "cataloger.pin", "cataloger.rules"
MARKS = (ORDER, PIN, MATCHED)
Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Marks:
    """Marks of N rows: (`row`, `number` of a rule) for every match, by row and then in the order of the rules; [N] which are `pinned`."""

    row: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    pinned: Mask

    @classmethod
    def of(cls, marks: Mapping[str, pa.Array]) -> "Marks":
        lists = marks[MATCHED]
        pinned = marks[PIN].is_valid().to_numpy(zero_copy_only=False) if PIN in marks else np.zeros(len(lists), bool)
        row, number = pc.list_parent_indices(lists), lists.flatten()
        return cls(row.to_numpy().astype(np.int64), number.to_numpy().astype(np.int64), pinned)

    def matched(self, number: int) -> Mask:
        """[N] whether a rule matches."""
        found = np.zeros(len(self.pinned), bool)
        found[self.row[self.number == number]] = True
        return found


def deciding(rules: Sequence[Rule], marks: Marks) -> npt.NDArray[np.int64]:
    """[N] the number of the rule that gives each row its category, or rejects it; -1 where none does."""
    decides = np.array([rule.decides for rule in rules], bool)
    chosen = (decides[marks.number] if len(marks.number) else np.zeros(0, bool)) & ~marks.pinned[marks.row]
    forbids = [number for number, rule in enumerate(rules) if rule.action == "forbid"]
    for number, rule in enumerate(rules):
        others = [other for other in forbids if any(map(rules[other].covers, rule.paths))]
        if rule.action == "category" and others:
            blocked = np.any([marks.matched(other) for other in others], axis=0)
            chosen &= ~((marks.number == number) & blocked[marks.row])
    who = np.full(len(marks.pinned), len(rules))
    np.minimum.at(who, marks.row[chosen], marks.number[chosen])
    return np.where(who == len(rules), -1, who)


def reason(rule: Rule) -> str:
    """Of what a rule rejects, for people."""
    return f"rule {rule.name}: {rule.reason}"


def _covers(rules: Sequence[Rule], path: str) -> bool:
    return any(rule.covers(path) for rule in rules)


class Outcome:
    """The marked labels and rejects of a unit on their way to be decided."""

    def __init__(self, rules: Sequence[Rule], labels: pa.Table, rejects: pa.Table, columns: Columns) -> None:
        self.rules = rules
        self.columns, self.verdicts = columns, verdicts_of(columns)
        self.names = [name for name in labels.column_names if name not in MARKS]
        self.names_of_rejects = [name for name in rejects.column_names if name not in (*MARKS, "reason")]
        order = pa.concat_arrays([labels.column(ORDER).combine_chunks(), rejects.column(ORDER).combine_chunks()])
        # Rejects have no label: their columns are null.
        rows = pa.concat_tables([labels, rejects], promote_options="default")
        self.rows = rows.take(pc.sort_indices(order)).combine_chunks()
        self.labelled = self.rows.column("reason").is_null().to_numpy()
        self.pins: pa.Array | None = self.rows.column(PIN).combine_chunks() if PIN in self.rows.column_names else None
        self.marks = Marks.of(
            {name: self.rows.column(name).combine_chunks() for name in MARKS if name in self.rows.column_names}
        )
        # An id that nobody can read stays rejected, whatever a pin or rule would make of what is left of it.
        unreadable = pc.fill_null(pc.equal(self.rows.column("reason"), ids.ID_NOT_UTF8), False)
        readable = ~unreadable.to_numpy(zero_copy_only=False)
        self.who = np.where(readable, deciding(rules, self.marks), -1)
        self.pinned = self.marks.pinned & readable
        self.counts: dict[str, Counter[str]] = {by_rule(rule.name): Counter() for rule in self.rules}
        for number, count in enumerate(np.bincount(self.marks.number, minlength=len(self.rules))):
            self.counts[by_rule(self.rules[number].name)]["matched"] = int(count)

    def done(self) -> tuple[pa.Table, pa.Table, Counts]:
        own = self.rows.select(self.verdicts.names)
        source = np.full(len(self.rows), "model", object)
        places, others = np.arange(len(self.rows)), [own]
        why = self.rows.column("reason").to_numpy(zero_copy_only=False).astype(object)
        has_label = self.labelled.copy()

        def put(rows: npt.NDArray[np.int64], table: pa.Table, by: str) -> None:
            places[rows] = sum(map(len, others)) + np.arange(len(rows))
            others.append(table.cast(own.schema))
            source[rows], has_label[rows], why[rows] = by, True, None

        if self.pins is not None:
            rows = np.flatnonzero(self.pinned)
            given = self.verdicts.given(self.pins.take(pa.array(rows)))
            self._count(BY_PIN, rows, given)
            put(rows, given, BY_PIN)
        for number, rule in enumerate(self.rules):
            by, rows = by_rule(rule.name), np.flatnonzero(self.who == number)
            if not len(rows):
                continue
            if rule.action == "category":
                given = self.verdicts.given(self.verdicts.repeated(rule.paths, len(rows)))
                self._count(by, rows, given)
                put(rows, given, by)
            else:  # it rejects: no other kind decides
                self.counts[by].update(decided=len(rows), rejected=len(rows))
                source[rows], has_label[rows], why[rows] = by, False, reason(rule)
        for forbids, rows in self._forbidden(self.labelled & ~self.pinned & (self.who < 0)).items():
            instead, there = self.verdicts.instead(self.rows.take(pa.array(rows)), functools.partial(_covers, forbids))
            by = by_rule(forbids[0].name)
            self.counts[by].update(decided=len(rows), conflicts=len(rows))
            put(rows[there], instead, by)
            left = rows[~there]
            self.counts[by]["rejected"] += len(left)
            source[left], has_label[left] = by, False
            why[left] = f"rule {forbids[0].name}: forbids all that the model has for this product"
        decided = pa.concat_tables(others).take(pa.array(places)).combine_chunks()
        decided = self._reviewed(decided, source, has_label)
        return self._tables(decided, source, has_label, why)

    def _forbidden(self, undecided: Mask) -> dict[tuple[Rule, ...], npt.NDArray[np.int64]]:
        """The rows whose model gave what rules forbid, by all rules that forbid anything there; first is one that it came against."""
        numbers = [number for number, rule in enumerate(self.rules) if rule.action == "forbid"]
        matches = [self.marks.matched(number) for number in numbers]
        bites = [
            matched & undecided & self.verdicts.lies_in(self.rows, self.rules[number].covers)
            for number, matched in zip(numbers, matches, strict=True)
        ]
        groups = defaultdict[tuple[int, ...], list[int]](list)
        for row in np.flatnonzero(np.any(bites, axis=0)).tolist() if bites else ():
            first = next(number for number, bitten in zip(numbers, bites, strict=True) if bitten[row])
            others = (
                number for number, matched in zip(numbers, matches, strict=True) if matched[row] and number != first
            )
            groups[first, *others].append(row)
        return {tuple(self.rules[number] for number in group): np.array(rows) for group, rows in groups.items()}

    def _reviewed(self, decided: pa.Table, source: npt.NDArray[Any], has_label: Mask) -> pa.Table:
        """With the marks of the rules that ask for a person."""
        marked = np.zeros(len(self.rows), bool)
        for number, rule in enumerate(self.rules):
            if rule.action != "review":
                continue
            rows = np.flatnonzero(self.marks.matched(number) & has_label & ~self.pinned)
            marked[rows] = True
            self.counts[by_rule(rule.name)]["decided"] = len(rows)
            source[rows[source[rows] == "model"]] = by_rule(rule.name)
        place = decided.column_names.index("needs_review")
        review = pc.or_(pc.fill_null(decided.column("needs_review"), False), pa.array(marked))
        return decided.set_column(place, "needs_review", review)

    def _count(self, by: str, rows: npt.NDArray[np.int64], given: pa.Table) -> None:
        asked = self.labelled[rows]
        own, others = self.rows.take(pa.array(rows[asked])), given.filter(pa.array(asked))
        pairs = zip(self.columns.whole(own), self.columns.whole(others), strict=True)
        agreed = sum(one == other for one, other in pairs)
        self.counts.setdefault(by, Counter()).update(
            decided=len(rows), agreed=agreed, conflicts=int(asked.sum()) - agreed
        )

    def _tables(
        self, decided: pa.Table, source: npt.NDArray[Any], has_label: Mask, why: npt.NDArray[Any]
    ) -> tuple[pa.Table, pa.Table, Counts]:
        own = self.rows.select(self.verdicts.names)
        # What the model says by itself, where anybody else has spoken.
        silent = pa.array((source == "model") | ~self.labelled)
        models = pa.StructArray.from_arrays(
            [column.combine_chunks() for column in own.columns], own.column_names, mask=silent
        )
        labels = self.rows.select([name for name in self.names if name != "text_hash"])
        for name in decided.column_names:
            labels = labels.set_column(labels.column_names.index(name), name, decided.column(name))
        labels = labels.append_column(SOURCE, pa.array(source, pa.string())).append_column(MODELS, models)
        labels = labels.append_column("text_hash", self.rows.column("text_hash")).filter(pa.array(has_label))
        rejects = self.rows.select(self.names_of_rejects).append_column("reason", pa.array(why, pa.string()))
        counts = {by: dict(found) for by, found in self.counts.items()}
        return labels, rejects.filter(pa.array(~has_label)), counts
