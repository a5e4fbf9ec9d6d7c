"""Labels of one tree of categories in another: propose a map, and publish the labels by it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.adapting import map_files
from cataloger.adapting.map_files import About, Map
from cataloger.adapting.mapping import Mapped, Old, Targets, propose, tell_apart
from cataloger.adapting.meaning import Meaning
from cataloger.adapting.trees import Tree, read_tree
from cataloger.config import MigrateConfig
from cataloger.curation.known import Known
from cataloger.curation.moves import MAP
from cataloger.curation.run import Run, open_run
from cataloger.curation.tables import ids_of, paths_of, read_table, texts_of
from cataloger.data.ids import Lookup
from cataloger.data.units import Segment, Unit
from cataloger.errors import CatalogError, ConfigError
from cataloger.heads.category_columns import SOURCE, Category
from cataloger.infra import places
from cataloger.infra.storage import Location, check_writable, locate
from cataloger.publishing import delivery, pointer, snapshot
from cataloger.publishing.decided import read_labels
from cataloger.publishing.parts import REJECTS, Part, part_name, read_file, write_part
from cataloger.taxonomy import SEPARATOR

# Part of the run's id: raised when the same map would publish other labels.
LAYOUT = 1
# A label that was trusted stays so where the map, or what tells products apart, is as sure as this.
SURE = 0.9
# Of a split category's targets.
ALTERNATIVES = 3
BY_MAP, BY_MEANING = "map", "meaning"


@dataclass(frozen=True)
class Made:
    """A proposed map, its rows the largest first."""

    output: str
    rows: tuple[Mapped, ...]
    products: int


@dataclass(frozen=True)
class Moved:
    """Labels in the new tree; `apart` of them are of split categories."""

    run: str
    output: str
    labelled: int
    rejects: int
    apart: int
    needs_review: int
    kinds: Counter[str]


def make_map(config: MigrateConfig) -> Made:
    """Raises CatalogerError."""
    if not config.to:
        raise ConfigError("--to: name the new tree, or a map to --apply")
    tree = read_tree(config.to)
    output = locate(places.place(config.output, "--output"))
    if (output / MAP).exists():
        raise ConfigError(
            f"--output {config.output}: has a map already, which people may have edited; name another folder, or remove it"
        )
    run = _open(config)
    columns = run.spec.text_columns
    texts, targets, lookup = _examples(config, tree, columns)
    check_writable(output)
    known = defaultdict[str, Counter[str]](Counter)

    def parts() -> Iterator[tuple[pa.Array, pa.Array]]:
        for labels, products in run.rows():
            categories = labels.column(Category.answer).combine_chunks()
            own, row = lookup.find(labels.column("id"))
            for place, category in zip(own.tolist(), categories.take(pa.array(row)).to_pylist(), strict=True):
                known[category][targets[place]] += 1
            yield categories, texts_of(products, columns)

    old = Old.of(parts())
    meaning = Meaning(config.base_model)
    new = Targets.of(tree, texts, targets, meaning)
    rows = propose(old, tree, new, known, meaning)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    about = About(run.manifest["run"], str(run.catalog.location), config.to, config.base_model, columns, created)
    map_files.write(output, rows, new, about)
    return Made(str(output), tuple(rows), old.counts.total())


def _open(config: MigrateConfig) -> Run:
    run = open_run(config.labels, config.catalog, config.model, config.text_columns)
    if run.spec.head != "one_category" or not run.spec.text_columns:
        raise ConfigError(
            f"--labels {config.labels}: only labels of one category for each product, of texts, can be moved"
        )
    return run


def _examples(config: MigrateConfig, tree: Tree, columns: tuple[str, ...]) -> tuple[list[str], list[str], Lookup]:
    """(texts, their targets, their ids)"""
    if not config.examples:
        return [], [], Lookup.of(pa.array([], pa.large_string()))
    where = f"--examples {config.examples}"
    table = read_table(config.examples, "--examples", (config.label_column, *columns), (config.id_column,))
    targets = paths_of(table, where, config.label_column)
    if pa.types.is_list(targets.type):
        raise CatalogError(f"{where}: column {config.label_column!r} has lists; write one category for each product")
    Known(tree.paths).check(targets.to_pylist(), where, "the new tree")
    inner = sorted(set(targets.to_pylist()).difference(tree.paths))
    if inner:
        raise CatalogError(
            f"{where}: {inner[0]!r} has categories below it, and no row of its own in {config.to}; name one of them"
        )
    own = (
        ids_of(table, where, config.id_column)
        if config.id_column in table.column_names
        else pa.nulls(len(table), pa.large_string())
    )
    return texts_of(table, columns).to_pylist(), targets.to_pylist(), Lookup.of(own)


def apply_map(config: MigrateConfig) -> Moved:
    """Publish the labels by an edited map, as a run of `output`. Raises CatalogerError; readers see all of it or nothing."""
    assert config.apply
    found = map_files.read(locate(config.apply))
    output = locate(places.place(config.output, "--output"))
    if (output / MAP).exists():
        raise ConfigError(f"--output {config.output}: has a map; name another folder for the labels")
    run = _open(replace(config, text_columns=config.text_columns or found.about.columns))
    _check_whole(run, found, config.apply)
    check_writable(output)
    seen = pointer.look(output)
    decisive = [
        LAYOUT,
        "migrated",
        run.manifest["run"],
        sorted(found.to.items()),
        sorted(found.among.items()),
        sorted(found.gone),
        sorted(found.confidence.items()),
        found.about.base_model,
        run.spec.text_columns,
    ]
    inputs = snapshot.run_id(*decisive)
    name = pointer.choose(output, inputs, seen)
    counts = _Counts()
    if not snapshot.is_complete(output, name):
        _write(run, found, output, name, inputs, counts)
    manifest = snapshot.read_manifest(output, name)
    if seen.run != name:
        pointer.publish(output, name, seen)
    delivery.deliver(output)
    about = manifest["migrated"]
    return Moved(
        name,
        str(output),
        manifest["labelled"],
        manifest["rejects"],
        about["apart"],
        about["needs_review"],
        map_files.kinds(found),
    )


def _check_whole(run: Run, found: Map, name: str) -> None:
    """Raises CatalogError for a map that loses products."""
    known = pa.array([*found.to, *found.among, *found.gone], pa.string())
    lost = Counter[str]()
    for labels in read_labels(run.folder, run.manifest["units"], [Category.answer]):
        column = labels.column(0)
        missing = column.filter(pc.invert(pc.is_in(column, known)))
        lost.update({one["values"]: one["counts"] for one in pc.value_counts(missing).to_pylist()})
    if lost:
        (path, count), *_ = lost.most_common(1)
        raise CatalogError(
            f"--apply {name}: has no row for {len(lost):,} categories of {lost.total():,} products, such as {path!r} with {count:,}; add them, or "
            "make the map of these labels"
        )


@dataclass
class _Counts:
    apart: int = 0
    needs_review: int = 0


def _write(run: Run, found: Map, output: Location, name: str, inputs: str, counts: _Counts) -> None:
    folder, meaning = snapshot.run_folder(output, name), None
    units, parts = list[Unit](), dict[int, Part]()
    listed = {file["name"] for file in run.manifest["files"]}
    about = {"run": name, "inputs": inputs}
    for number, (labels, products) in enumerate(run.rows()):
        categories = labels.column(Category.answer).combine_chunks()
        rows = np.flatnonzero(
            pc.is_in(categories, pa.array(list(found.among), pa.string())).to_numpy(zero_copy_only=False)
        )
        vectors = np.empty((0, found.targets.vectors.shape[1]), np.float32)
        if len(rows):
            meaning = meaning or Meaning(found.about.base_model)
            vectors = meaning.of(texts_of(products.take(pa.array(rows)), run.spec.text_columns).to_pylist())
        moved, rejects = _moved(labels, found, vectors)
        lost = f"{REJECTS}/{part_name(number)}"
        if lost in listed:
            rejects = pa.concat_tables(
                [read_file(run.folder, lost)[1].read(columns=["id", "reason"]).cast(rejects.schema), rejects]
            )
        counts.apart += len(rows)
        counts.needs_review += int(pc.sum(moved.column("needs_review")).as_py() or 0)
        units.append(Unit(number, (Segment("", 0, 0, len(moved) + len(rejects)),)))
        parts[number] = write_part(folder, number, moved, rejects, {"forwarded": len(rows)}, about)
    manifest = {key: run.manifest[key] for key in ("catalog", "catalog_fingerprint", "model", "model_digest")}
    manifest |= {
        "inputs": inputs,
        "config": {"id_column": run.manifest["config"]["id_column"], "model": list(run.models)},
    }
    manifest["migrated"] = {
        "from": run.manifest["run"],
        "map": asdict(found.about),
        "kinds": dict(map_files.kinds(found)),
        **vars(counts),
    }
    snapshot.write_manifest(output, name, units, parts, manifest)


def _moved(labels: pa.Table, found: Map, vectors: np.ndarray) -> tuple[pa.Table, pa.Table]:
    """(labels in the new tree, rejects of categories that are gone); `vectors` are what the rows of split categories mean, in their order."""
    old = labels.column(Category.answer).to_pylist()
    sure = labels.column("confidence").to_numpy().astype(np.float64)
    was_trusted = ~labels.column("needs_review").to_numpy(zero_copy_only=False)
    place = {path: number for number, path in enumerate(found.targets.paths)}
    votes = found.targets.each_votes(vectors)
    categories, source, shares, others = (
        list[str | None](),
        list[str](),
        np.ones(len(old)),
        list[list[dict[str, object]]](),
    )
    for row, path in enumerate(old):
        if path in found.among:
            several = found.among[path]
            places = [place[one] for one, _ in several]
            own = tell_apart(next(votes)[None, places], [share for _, share in several])[0]
            order = np.argsort(-own, kind="stable")
            categories.append(several[order[0]][0])
            shares[row] = own[order[0]]
            others.append(
                [
                    {"category": several[number][0], "confidence": float(own[number] * sure[row])}
                    for number in order[1 : 1 + ALTERNATIVES]
                ]
            )
            source.append(BY_MEANING)
        else:
            categories.append(found.to.get(path))
            shares[row] = found.confidence[path]
            others.append([])
            source.append(BY_MAP)
    paths = pa.array(categories, pa.string())
    confidence = (sure * shares).astype(np.float32)
    depths = [0 if path is None else path.count(SEPARATOR) + 1 for path in categories]
    levels = [[one] * depth for one, depth in zip(confidence.tolist(), depths, strict=True)]
    trusted = was_trusted & (shares >= SURE)
    pairs = pa.list_(pa.struct([("category", pa.string()), ("confidence", pa.float32())]))
    moved = pa.table(
        {
            "id": labels.column("id"),
            "category": paths,
            "confidence": pa.array(confidence),
            "level_confidences": pa.array(levels, pa.list_(pa.float32())),
            "alternatives": pa.array(others, pairs),
            "trusted_category": pc.if_else(pa.array(trusted), paths, pa.scalar(None, pa.string())),
            "needs_review": pa.array(~trusted),
            SOURCE: pa.array(source, pa.string()),
            "text_hash": labels.column("text_hash"),
        }
    )
    there = paths.is_valid()
    gone = pa.table(
        {
            "id": labels.column("id"),
            "reason": pa.array([f"its category {path} is gone in the new tree" for path in old], pa.string()),
        }
    )
    return moved.filter(there), gone.filter(pc.invert(there))
