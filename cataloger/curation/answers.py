"""People's answers, and the corrections that they come to.

CORRECTIONS/_answers.parquet       every answer: the product as it was shown, who gave which category, and when
CORRECTIONS/corrections.parquet    one category per product: pins for `label.py`, rows for `train.py`
"""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.curation.formats import Answer
from cataloger.curation.known import Known
from cataloger.curation.queue import Queue
from cataloger.curation.tables import in_utc
from cataloger.data.ids import as_text
from cataloger.errors import CatalogError, ConflictError, StorageError
from cataloger.infra.storage import Location, explain
from cataloger.taxonomy import SEPARATOR, parse_path

ANSWERS, CORRECTIONS = "_answers.parquet", "corrections.parquet"
NOT_OF_PRODUCTS = ("category_path", "who", "when", "note", "queue")


@dataclass(frozen=True)
class Agreement:
    """Of two people on the products that both answered: the share on which they agree, and Cohen's kappa (1960), the share of what
    chance leaves; None where chance leaves nothing."""

    people: tuple[str, str]
    products: int
    agreed: float
    kappa: float | None


@dataclass(frozen=True)
class Imported:
    """What an import came to."""

    output: str
    new: int
    changed: int
    known: int
    """Answers that were there already."""
    products: int
    """All that have a correction now."""
    undecided: tuple[str, ...]
    """Products about which as many people say one thing as another: they have no correction."""
    agreements: tuple[Agreement, ...]


def add(given: Sequence[Answer], queue: Queue, products: pa.Table, output: Location, where: str) -> Imported:
    """Raises CatalogError for answers that are not to these questions, ConflictError where another import was faster."""
    rows = {one: number for number, one in enumerate(as_text(products.column("id")).to_pylist())}
    _check(given, queue, rows, where)
    version, before = (output / ANSWERS).version(), _read(output / ANSWERS)
    if before and isinstance(before[0]["category_path"], list) != queue.lists:
        raise CatalogError(
            f"{output}: has answers of {'one category' if queue.lists else 'lists of categories'} for each product, and these are of "
            f"{'lists' if queue.lists else 'one'}; name another --output"
        )
    own = products.to_pylist()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    answers = {(_text_of(row["id"]), row["who"]): row for row in before}
    new = changed = known = 0
    for answer in sorted((replace(one, when=in_utc(one.when)) for one in given), key=lambda one: one.when):
        key = answer.id, answer.who
        paths: Any = [_plain(path) for path in answer.paths]
        paths = sorted(paths) if queue.lists else paths[0]
        earlier = answers.get(key)
        said = {"category_path": paths, "note": answer.note or None}
        if earlier and all(earlier[name] == value for name, value in said.items()):
            known += 1
            continue
        if earlier and answer.when and earlier["when"] and answer.when < earlier["when"]:
            known += 1
            continue
        new, changed = new + (not earlier), changed + bool(earlier)
        answers[key] = {
            **own[rows[answer.id]],
            **said,
            "who": answer.who,
            "when": answer.when or now,
            "queue": queue.queue,
        }
    kept = list(answers.values())
    corrections, undecided = _agreed(kept)
    schema = _schema(products, before, queue)
    if new or changed:
        try:
            (output / ANSWERS).replace(_parquet(kept, schema), version)
        except ConflictError as error:
            raise ConflictError(
                f"{output}: somebody else imported answers meanwhile; run the same command again"
            ) from error
    # They follow from the answers: whatever became of the last import, these are right.
    (output / CORRECTIONS).write(_parquet(corrections, schema))
    return Imported(
        output=str(output),
        new=new,
        changed=changed,
        known=known,
        products=len(corrections),
        undecided=tuple(undecided),
        agreements=agreements(kept),
    )


def _check(given: Sequence[Answer], queue: Queue, rows: Mapping[str, int], where: str) -> None:
    if not given:
        raise CatalogError(f"{where}: has no answer; people must submit theirs before they are exported")
    strange = [one for one in given if one.id not in rows or one.queue != queue.queue]
    if strange:
        raise CatalogError(
            f"{where}: {len(strange):,} of {len(given):,} answers are not to the questions of queue {queue.queue}, the first is of product "
            f"{strange[0].id}; name their --queue"
        )
    known = Known(queue.categories)
    for answer in given:
        if not queue.lists and len(answer.paths) != 1:
            raise CatalogError(f"{where}: product {answer.id} has {len(answer.paths)} categories, and needs one")
        try:
            paths = [_plain(path) for path in answer.paths]
        except ValueError as problem:
            raise CatalogError(
                f"{where}: product {answer.id}: {answer.paths[0]!r} is no category path: {problem}"
            ) from problem
        known.check(paths, f"{where}: product {answer.id}")


def _plain(path: str) -> str:
    return SEPARATOR.join(parse_path(path))


def _text_of(identity: Any) -> str:
    return str(as_text(pa.array([identity]))[0].as_py())


def _agreed(answers: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """(one answer per product that most people gave, the products for which there is none)"""
    of_product = defaultdict[str, list[Mapping[str, Any]]](list)
    for row in answers:
        of_product[_text_of(row["id"])].append(row)
    found, undecided = [], []
    for identity, rows in of_product.items():
        counts = Counter(_key(row) for row in rows).most_common(2)
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            undecided.append(identity)
            continue
        same = [row for row in rows if _key(row) == counts[0][0]]
        found.append(max(same, key=lambda row: row["when"]))
    return found, undecided


def _key(row: Mapping[str, Any]) -> str:
    path = row["category_path"]
    return "\n".join(path) if isinstance(path, list) else str(path)


def agreements(answers: Sequence[Mapping[str, Any]]) -> tuple[Agreement, ...]:
    """Of each two people who answered the same products, the most products first."""
    from sklearn.metrics import cohen_kappa_score

    said = defaultdict[str, dict[str, str]](dict)
    for row in answers:
        said[row["who"]][_text_of(row["id"])] = _key(row)
    found = []
    for one, other in combinations(sorted(said), 2):
        both = sorted(said[one].keys() & said[other].keys())
        if not both:
            continue
        pairs = [(said[one][product], said[other][product]) for product in both]
        agreed = sum(first == second for first, second in pairs) / len(pairs)
        alone = len({path for pair in pairs for path in pair}) == 1
        kappa = None if alone else float(cohen_kappa_score(*zip(*pairs, strict=True)))
        found.append(Agreement((one, other), len(both), agreed, kappa))
    return tuple(sorted(found, key=lambda pair: -pair.products))


def _read(location: Location) -> list[dict[str, Any]]:
    if not location.exists():
        return []
    try:
        return list(pq.read_table(pa.BufferReader(location.read())).to_pylist())
    except pa.ArrowException as error:
        raise StorageError(f"{location}: cannot be read, to add answers to it: {explain(error)}") from error


def _schema(products: pa.Table, before: Sequence[Mapping[str, Any]], queue: Queue) -> pa.Schema:
    """The products' columns as this queue has them, and as text where only earlier ones do."""
    own = {field.name: field.type for field in products.schema}
    earlier = [name for row in before for name in row if name not in own]
    columns = {**own, **{name: pa.string() for name in earlier if name not in NOT_OF_PRODUCTS}}
    path = pa.list_(pa.string()) if queue.lists else pa.string()
    kinds = [(name, path if name == "category_path" else pa.string()) for name in NOT_OF_PRODUCTS]
    return pa.schema([*columns.items(), *kinds])


def _parquet(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """What another queue had of another type becomes text, for all rows."""
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError):
            columns.append(pa.array([None if value is None else str(value) for value in values], pa.string()))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=schema.names), sink, compression="zstd")
    return sink.getvalue()
