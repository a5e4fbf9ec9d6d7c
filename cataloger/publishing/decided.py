"""What pins and rules did in a run: counted for people, and proved from what is published.

OUTPUT/run=<id>/_pins.parquet      the pins that the run was given, one for each id
OUTPUT/run=<id>/_rules.yaml        its rules, as they were written
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.data import ids
from cataloger.data.ids import Lookup
from cataloger.errors import StorageError
from cataloger.heads.category_columns import BY_PIN, SOURCE, by_rule
from cataloger.heads.columns import published_in
from cataloger.infra.storage import Location, explain
from cataloger.publishing import snapshot
from cataloger.publishing.parts import REJECTS, Part, part_name

PINS, RULES = "_pins.parquet", "_rules.yaml"
SHOWN_IDS = 100
# A rule whose category the model gives to so many of its products by itself can go.
LEARNED = 0.99


@dataclass(frozen=True)
class RuleEffect:
    """What a rule did: the products that it matched, those whose label it decided, and of these those of which the model says the same,
    and something else."""

    name: str
    action: str
    matched: int
    decided: int
    agreed: int = 0
    conflicts: int = 0

    @property
    def is_learned(self) -> bool:
        """Whether the model does by itself what the rule is for."""
        return self.action == "category" and self.agreed > 0 and self.agreed >= LEARNED * (self.agreed + self.conflicts)

    @property
    def said(self) -> str:
        """What people should know of it."""
        if not self.matched:
            return "never matched"
        if self.is_learned:
            return "the model says the same by now: the rule can go"
        if not self.decided and self.action != "forbid":
            return "decided nothing: pins and other rules came first"
        return ""


@dataclass(frozen=True)
class Decided:
    """What people's decisions did to a run's labels."""

    pins: int = 0
    """Products that have a pin."""
    repeated: int = 0
    """Further pins of the same products."""
    unknown: int = 0
    """Pins of ids that the catalog has not."""
    unknown_ids: tuple[str, ...] = ()
    """The first of these."""
    pinned: int = 0
    """Labels that a pin decided."""
    pin_conflicts: int = 0
    """Of these, those of which the model says something else."""
    rules: tuple[RuleEffect, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @property
    def figures(self) -> dict[str, str]:
        """For the page and the terminal."""
        found = {}
        if self.pins:
            found["decided by pins"] = f"{self.pinned:,}"
        if self.rules:
            found["decided by rules"] = f"{self._decided:,}"
            if marked := [rule.decided for rule in self.rules if rule.action == "review"]:
                found["marked for review by rules"] = f"{sum(marked):,}"
        return found

    @property
    def _decided(self) -> int:
        """Products that a rule gave, forbade or refused a category."""
        return sum(rule.decided for rule in self.rules if rule.action != "review")

    @property
    def metrics(self) -> dict[str, float]:
        """For MLflow: of all pins, and of all rules."""
        found: dict[str, float] = {}
        if self.pins:
            found = {
                "pins": self.pins,
                "pins_unknown": self.unknown,
                "pinned": self.pinned,
                "pin_conflicts": self.pin_conflicts,
            }
        if self.rules:
            found |= {
                "rules": len(self.rules),
                "rules_decided": self._decided,
                "rules_conflicts": sum(rule.conflicts for rule in self.rules),
                "rules_never_matched": sum(not rule.matched for rule in self.rules),
                "rules_learned": sum(rule.is_learned for rule in self.rules),
            }
        return {name: float(value) for name, value in found.items()}


def rejected_by_rules(parts: Iterable[Part]) -> int:
    """Rows that people want to have no label."""
    return sum(counts.get("rejected", 0) for part in parts for counts in part.decisions.values())


def effects(rules: Sequence[tuple[str, str]], parts: Iterable[Part]) -> tuple[tuple[RuleEffect, ...], Counter[str]]:
    """(what each rule did, by its (name, action), what pins did) in all parts of a run."""
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for by, counts in part.decisions.items():
            total.setdefault(by, Counter()).update(counts)
    found = []
    for name, action in rules:
        own = total.get(by_rule(name), Counter())
        found.append(RuleEffect(name, action, own["matched"], own["decided"], own["agreed"], own["conflicts"]))
    return tuple(found), total.get(BY_PIN, Counter())


def keep(folder: Location, pins: pa.Table | None, rules: str | None) -> None:
    """Put what people decided beside the labels that it decided."""
    if pins is not None:
        sink = io.BytesIO()
        pq.write_table(pins, sink, compression="zstd")
        (folder / PINS).write(sink.getvalue())
    if rules is not None:
        (folder / RULES).write(rules.encode())


def unknown_ids(folder: Location, units: int, pinned: pa.Array) -> list[str]:
    """Of these ids, which are text, those that no label of a complete run has. Raises StorageError."""
    wanted = Lookup.of(pinned)
    there = np.zeros(len(pinned), bool)
    for table in read_labels(folder, units, ["id", SOURCE]):
        own = table.filter(pc.equal(table.column(SOURCE), BY_PIN)).column("id")
        there[wanted.find(own)[0]] = True
    return list(pinned.filter(pa.array(~there)).to_pylist())


def problems(manifest: Mapping[str, Any], folder: Location) -> list[str]:
    """What contradicts that every pin of a run is in its labels, by their (id, category); of ids without a label, that the manifest says so.

    Raises StorageError.
    """
    about = manifest.get("decisions")
    if not about or not about["pins"]:
        return []
    try:
        pins = pq.read_table(pa.BufferReader((folder / PINS).read()), columns=["id", "category_path"])
    except pa.ArrowException as error:
        raise StorageError(f"{folder / PINS}: cannot be read: {explain(error)}") from error
    found, ids_of_pins = [], pins.column("id").combine_chunks()
    if len(pins) != about["pins"]:
        found.append(f"{PINS}: has {len(pins):,} pins, the manifest says {about['pins']:,}")
    wanted, there = Lookup.of(ids_of_pins), np.zeros(len(pins), bool)
    columns = published_in(pq.read_schema((folder / part_name(0)).path, filesystem=folder.filesystem))
    given = pins.column("category_path").combine_chunks()
    for unit, table in enumerate(read_labels(folder, manifest["units"], ["id", SOURCE, columns.answer])):
        pin, row = wanted.find(table.column("id"))
        there[pin] = True
        own = table.take(pa.array(row))
        said = pa.table({columns.answer: given.take(pa.array(pin))})
        pairs = zip(columns.whole(own), columns.whole(said), own.column(SOURCE).to_pylist(), strict=True)
        if wrong := [place for place, (label, pinned, by) in enumerate(pairs) if label != pinned or by != BY_PIN]:
            example = ids_of_pins[int(pin[wrong[0]])].as_py()
            found.append(
                f"{part_name(unit)}: {len(wrong):,} labels are not what is pinned, the first that of product {example}"
            )
    if (~there).sum() != about["unknown"]:
        found.append(f"{int((~there).sum()):,} pins are not in the labels, the manifest says {about['unknown']:,}")
    listed = {file["name"]: file["rows"] for file in manifest["files"]}
    for name in (name for name in listed if name.startswith(REJECTS)):
        rejected = _readable(folder / name)
        if len(wanted.find(rejected.column("id"))[0]):
            found.append(f"{name}: has products that are pinned")
    return found


def _readable(file: Location) -> pa.Table:
    """Rejects, but for those whose id nobody can read: no pin is of these."""
    table = pq.read_table(file.path, filesystem=file.filesystem, columns=["id", "reason"], partitioning=None)
    return table.filter(pc.not_equal(table.column("reason"), ids.ID_NOT_UTF8))


def read_labels(folder: Location, units: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of a complete run, part by part. Raises StorageError."""

    def read(location: Location) -> pa.Table:
        try:
            return pq.read_table(
                location.path, filesystem=location.filesystem, columns=list(columns), partitioning=None
            )
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{location}: its labels cannot be read: {explain(error)}") from error

    yield from snapshot.each(snapshot.label_files(folder, units), read)
