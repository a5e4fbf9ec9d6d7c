"""A map from one tree to another as a folder: a table that people edit, a page, and what it takes to tell products apart.

MAP/map.parquet        a row for each old category; edit `target`, or `targets` of a split
MAP/map.html           the same for people
MAP/_targets.parquet   the new categories, and what each means
MAP/_map.json          what the map was made from
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger import strict
from cataloger.adapting.mapping import KINDS, Mapped, Targets, kind_of
from cataloger.curation.moves import MAP
from cataloger.errors import CatalogError, StorageError
from cataloger.infra.pages import render
from cataloger.infra.storage import Location, explain

PAGE, TARGETS, ABOUT = "map.html", "_targets.parquet", "_map.json"
PAIRS = pa.list_(pa.struct([("category", pa.string()), ("share", pa.float32())]))
SHOWN_ROWS = 2_000


@dataclass(frozen=True)
class About:
    run: str
    catalog: str
    tree: str
    base_model: str
    columns: tuple[str, ...]
    created: str


def write(folder: Location, rows: Sequence[Mapped], targets: Targets, about: About) -> None:
    """The table comes last."""
    counts = Counter({kind: sum(row.kind == kind for row in rows) for kind in KINDS})
    products = Counter[str]()
    for row in rows:
        products[row.kind] += row.products
    page = render(
        "map.html",
        rows=rows[:SHOWN_ROWS],
        left_out=len(rows) - SHOWN_ROWS,
        counts=counts,
        products=products,
        about=about,
        total=products.total(),
    )
    (folder / PAGE).write(page.encode())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(targets.vectors.ravel()), targets.vectors.shape[1])
    (folder / TARGETS).write(_parquet(pa.table({"category": pa.array(targets.paths, pa.string()), "vector": vectors})))
    (folder / ABOUT).write(json.dumps(asdict(about), ensure_ascii=False, indent=1).encode())
    table = pa.table(
        {
            "old": pa.array([row.old for row in rows], pa.string()),
            "products": pa.array([row.products for row in rows], pa.int64()),
            "kind": pa.array([row.kind for row in rows], pa.string()),
            "target": pa.array([row.target for row in rows], pa.string()),
            "targets": pa.array(
                [[{"category": path, "share": share} for path, share in row.targets] for row in rows], PAIRS
            ),
            "confidence": pa.array([row.confidence for row in rows], pa.float32()),
            "evidence": pa.array([row.evidence for row in rows], pa.string()),
            "examples": pa.array([list(row.examples) for row in rows], pa.list_(pa.string())),
        }
    )
    (folder / MAP).write(_parquet(table))


@dataclass(frozen=True)
class Map:
    """`to` is the target of each old category that goes somewhere as a whole, `among` the (target, share) of a split one; the rest is gone."""

    about: About
    targets: Targets
    to: dict[str, str]
    among: dict[str, tuple[tuple[str, float], ...]]
    gone: frozenset[str]
    confidence: dict[str, float]


def read(folder: Location) -> Map:
    """Raises CatalogError for what people cannot have meant, StorageError for what is no map."""
    if not (folder / MAP).exists():
        raise CatalogError(f"--apply {folder}: is no map; name the --output of jobs/migrate.py")
    try:
        about = strict.parse(About, (folder / ABOUT).read())
        table = pq.read_table(pa.BufferReader((folder / MAP).read())).select(
            ["old", "kind", "target", "targets", "confidence"]
        )
        found = pq.read_table(pa.BufferReader((folder / TARGETS).read()))
        width = found.schema.field("vector").type.list_size
        vectors = found.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, width)
    except (pa.ArrowException, ValueError, KeyError, AttributeError) as error:
        raise StorageError(f"--apply {folder}: is damaged ({explain(error)}); make the map again") from error
    targets = Targets(tuple(found.column("category").to_pylist()), np.asarray(vectors, np.float32))
    known, to, among, gone, sure = (
        set(targets.paths),
        dict[str, str](),
        dict[str, tuple[tuple[str, float], ...]](),
        set[str](),
        dict[str, float](),
    )
    for row in table.to_pylist():
        old, target = row["old"], row["target"]
        several = tuple(
            (pair["category"], 1.0 if pair["share"] is None else pair["share"]) for pair in row["targets"] or ()
        )
        if old in to or old in among or old in gone:
            raise CatalogError(f"--apply {folder}: {MAP} has two rows for {old!r}; leave one out")
        if unknown := next(
            (path for path in ([target] if target else [one for one, _ in several]) if path not in known), None
        ):
            raise CatalogError(
                f"--apply {folder}: {MAP}: the new tree has no category {unknown!r}, the target of {old!r}"
            )
        sure[old] = row["confidence"] if row["confidence"] is not None else 1.0
        if target:
            to[old] = target
        elif several:
            among[old] = several
        elif row["kind"] == "gone":
            gone.add(old)
        else:
            raise CatalogError(f"--apply {folder}: {MAP}: {old!r} has no target; give it one, or the kind gone")
    return Map(about, targets, to, among, frozenset(gone), sure)


def kinds(found: Map) -> Counter[str]:
    """How many old categories there are of each kind, as the map is now."""
    to = Counter(found.to.values())
    counts = Counter[str](kind_of(old, target, to) for old, target in found.to.items())
    return counts + Counter({"split": len(found.among), "gone": len(found.gone)})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
