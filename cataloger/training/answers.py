"""What a training learns of the label columns of its catalogs: which kind of answer each is, and which labels it has."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cataloger.config import TrainConfig
from cataloger.curation.moves import read_moves
from cataloger.data.catalog import Catalog
from cataloger.data.kinds import label_kind
from cataloger.data.truth import count_labels, normalise_labels, normalise_names
from cataloger.errors import CatalogError, ConfigError, TrainingError
from cataloger.heads.columns import OWN, head_for
from cataloger.spec import TAGS
from cataloger.taxonomy import Taxonomy
from cataloger.training.census import LEARNT, Census
from cataloger.training.corrections import GIVEN
from cataloger.training.examples import TRAINING

log = logging.getLogger(__name__)
# Of the rows. So many are lost where a server is down, and few where some pictures are gone for good.
MOST_UNREACHABLE = 0.1


@dataclass(frozen=True)
class Learnt:
    """One answer: its categories, or the names of its tags, and of each catalog the label id of each as it is written there."""

    column: str
    head: str
    categories: tuple[str, ...]
    ids: tuple[dict[str, int], ...]
    rows: int
    """Of the first catalog, those that have one, about."""


def check_columns(columns: Sequence[str]) -> None:
    """Raises ConfigError."""
    if not columns:
        raise ConfigError("--label-column: name at least one column")
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise ConfigError(f"--label-column {twice}: is named twice; leave one out")
    if taken := next((name for name in columns[1:] if name in OWN), None):
        raise ConfigError(
            f"--label-column {taken}: labels have a column of this name already, where the answer would be published; rename it"
        )


def learn(
    column: str,
    catalogs: Sequence[Catalog],
    config: TrainConfig,
    corrected: Counter[str],
    given: tuple[str, ...] = (),
) -> Learnt:
    """Of a label column in the training catalog, and in the one to validate on where there is one; `corrected` are categories that people
    gave beside the first one. The categories are those of the training catalog, or those that are `given`. Raises CatalogError."""
    uri, kinds = catalogs[0].location, [catalog.schema.field(column) for catalog in catalogs]
    head = head_for(kinds[0])
    for catalog, kind in zip(catalogs[1:], kinds[1:], strict=True):
        if head_for(kind) != head:
            raise CatalogError(
                f"catalog {catalog.location}: column {column!r} has {label_kind(kind.type)}, that of --catalog "
                f"{label_kind(kinds[0].type)}; both need the same"
            )
    tags = head == TAGS
    if tags and column in OWN:
        raise CatalogError(
            f"catalog {uri}: labels have a column {column!r} already, where the tags would be published; rename it"
        )
    counted = [_counted(column, catalog, config, tags) for catalog in catalogs]
    counted = [({**names, **{GIVEN + path: path for path in corrected}}, found) for names, found in counted]
    counted[0] = counted[0][0], Counter(counted[0][1]) + corrected
    rows = counted[0][1]
    if tags and not rows:
        raise CatalogError(f"catalog {uri}: column {column!r} has no tag with a name; name another --label-column")
    if not tags and len(given or rows) < 2:
        found = f"only one category, {next(iter(rows))!r}" if rows else "no category"
        raise CatalogError(f"catalog {uri}: column {column!r} has {found}; a classifier needs at least two")
    if single := sum(count == 1 for count in rows.values()):
        what = ("names", "tag") if tags else ("categories", "product")
        log.info("%s of %s %s have a single %s: kept, but hardly learnable", single, len(rows), *what)
    categories = given or (tuple(sorted(rows)) if tags else Taxonomy.from_paths(rows).categories)
    ids = {name: number for number, name in enumerate(categories)}
    for number, (catalog, (_, found_there)) in enumerate(zip(catalogs, counted, strict=True)):
        if unknown := [name for name in found_there if name not in ids]:
            log.info(
                "%s: %s %s %s",
                catalog.location,
                f"{len(unknown):,}",
                "names" if tags else "categories",
                "do not occur in the training catalog; their rows count as errors"
                if number and not given
                else "are none of the model's: their rows count as errors where they judge, and teach no category",
            )
    written = tuple({one: ids.get(name, -1) for one, name in names.items()} for names, _ in counted)
    # Of lists of categories, or of tags, each is counted; a row is one all the same.
    return Learnt(column, head, categories, written, min(sum(rows.values()), catalogs[0].rows))


def _counted(column: str, catalog: Catalog, config: TrainConfig, tags: bool) -> tuple[dict[str, str], dict[str, int]]:
    """(label as written → as it is learnt, how often each is there)"""
    counts = count_labels(catalog, column, config.id_column)
    if tags:
        return normalise_names(counts)
    names, rows = normalise_labels(counts, str(catalog.location), column)
    if not config.tree_map or column != config.label_column[0]:
        return names, rows
    moves = read_moves(config.tree_map)
    moved: Counter[str] = Counter()
    for path, count in rows.items():
        if path in moves:
            moved[moves[path]] += count
    left = rows.total() - moved.total()
    if left:
        log.info(
            "%s: %s rows of categories that the map splits, lets go or lacks are left out",
            catalog.location,
            f"{left:,}",
        )
    return {written: moves[path] for written, path in names.items() if path in moves}, moved


def check_reached(found: Census) -> None:
    """Raises TrainingError where many rows would be learnt without pictures that are there."""
    rows = sum(found.rows.values())
    if found.unreachable > MOST_UNREACHABLE * rows:
        raise TrainingError(
            f"the pictures of {found.unreachable:,} of {rows:,} rows could not be reached, more than {MOST_UNREACHABLE:.0%}: the model would "
            "not learn to see them; run the same command again when the servers answer that have them, or take out of the catalog what is gone"
        )
    if found.unreachable:
        log.warning(
            "the pictures of %s rows could not be reached: they are learnt from without", f"{found.unreachable:,}"
        )


def check_told(found: Census, columns: Sequence[str]) -> None:
    """Raises ConfigError where nothing can be learnt of an answer, or nothing tells how well it was."""
    for use in LEARNT:
        for number, column in enumerate(columns):
            if not found.told[use, number]:
                side = "training" if use == TRAINING else "validation"
                raise ConfigError(
                    f"--label-column {column}: no usable row on the {side} side has this answer; change --validation-fraction, or leave "
                    "the column out"
                )
