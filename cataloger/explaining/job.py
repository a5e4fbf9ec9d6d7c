"""The explanation job: look products up, ask the model why, and write a page for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cataloger.bundle import read_spec
from cataloger.config import ExplainConfig
from cataloger.data.catalog import open_catalog
from cataloger.data.images import as_jpeg
from cataloger.data.kinds import is_tags
from cataloger.data.texts import TextInput
from cataloger.errors import ConfigError
from cataloger.explaining import lookup
from cataloger.explaining.lookup import Neighbour
from cataloger.explaining.occlusion import Explainer, Explanation, Word, check
from cataloger.infra import places, tracking
from cataloger.infra.pages import render
from cataloger.infra.storage import check_writable, locate
from cataloger.model import registry
from cataloger.model.tiers import Tiers
from cataloger.spec import Spec

# Each is asked about up to 130 times.
MOST_IDS = 1_000
NEIGHBOURS = 5


@dataclass(frozen=True)
class Explained:
    """A product: the texts of its columns, one explanation for each of its categories, and the products that are like it."""

    id: str
    fields: dict[str, str]
    explanations: tuple[Explanation, ...]
    reason: str | None
    """Why there is none."""
    picture: bytes | None = None
    """The square that the model sees, as a small JPEG."""
    neighbours: tuple[Neighbour, ...] = ()

    def marked(self, explanation: Explanation) -> dict[str, list[tuple[str, Word | None]]]:
        """The text of each column in pieces, with the word that a piece is."""
        found: dict[str, list[tuple[str, Word | None]]] = {}
        for name, text in self.fields.items():
            pieces, last = list[tuple[str, Word | None]](), 0
            for word in explanation.words:
                if word.field == name:
                    pieces += [(text[last : word.start], None), (text[word.start : word.end], word)]
                    last = word.end
            found[name] = [(piece, word) for piece, word in [*pieces, (text[last:], None)] if piece]
        return found


def explain(config: ExplainConfig) -> list[Explained]:
    """In the order of --ids. Raises CatalogerError before a page is written."""
    _check(config)
    tracking.connect()
    source = registry.fetch_model(config.model)
    spec = read_spec(source.folder).reading(config.text_columns, config.image_column)
    check(spec)
    spec = spec if config.tiers == "auto" else spec.without_tiers()
    output = locate(places.place(config.output, "--output"))
    check_writable(output.parent)
    if config.text is None:
        catalog = open_catalog(str(config.catalog), config.id_column, spec.text_columns, picture=spec.picture)
        table, ids, base = lookup.products(catalog, config.id_column, config.ids), list(config.ids), catalog.base
    else:
        table, ids, base = _row(config.text, spec), [""], ""
    tiers = Tiers(source.folder, precision="auto", spec=spec, base=base)
    near = _neighbours(config, tiers, source.folder, table, ids)
    # With nothing in the place of what is not UTF-8.
    table = tiers.input.read(table).table
    labelled = tiers.published(table, 1)
    found = [
        Explained(
            name, _fields(table, spec, row), tuple(own), reason, _picture(tiers, table.slice(row, 1)), tuple(like)
        )
        for row, (name, own, reason, like) in enumerate(
            zip(
                ids,
                Explainer.of(tiers).explain(table, labelled.labels),
                labelled.reasons.to_pylist(),
                near,
                strict=True,
            )
        )
    ]
    output.write(render("explanation.html", products=found, model=source.uri).encode())
    return found


def _check(config: ExplainConfig) -> None:
    if (config.text is None) == (config.catalog is None):
        raise ConfigError("name either --catalog with --ids, or a --text")
    if config.catalog and not config.ids:
        raise ConfigError("--ids: name the products of --catalog to explain")
    if config.text is not None and config.ids:
        raise ConfigError("--ids: names products of --catalog; leave it out beside --text")
    if len(config.ids) > MOST_IDS:
        raise ConfigError(f"--ids: {len(config.ids):,} are too many for one page; name at most {MOST_IDS:,}")


def _row(text: str, spec: Spec) -> pa.Table:
    """A product with this text alone. Raises ConfigError."""
    if not spec.text_columns:
        raise ConfigError("--text: this model reads pictures alone; name products with --catalog and --ids")
    nothing = dict.fromkeys((*spec.text_columns, *([spec.picture.column] if spec.picture else [])), pa.nulls(1))
    return pa.table(nothing | {spec.text_columns[0]: [text]})


def _neighbours(
    config: ExplainConfig, tiers: Tiers, folder: Path, table: pa.Table, ids: Sequence[str]
) -> list[list[Neighbour]]:
    """Of each row. Raises CatalogerError."""
    if not config.neighbours:
        return [[] for _ in ids]
    spec = tiers.spec
    if not spec.text_columns:
        raise ConfigError(
            "--neighbours: finds products by their words, and this model reads pictures alone; leave the option out"
        )
    catalog = open_catalog(config.neighbours, config.id_column, spec.text_columns, (config.label_column,))
    if is_tags(catalog.schema.field(config.label_column).type):
        raise ConfigError(f"--label-column {config.label_column}: has tags; name a column of category paths")
    given = TextInput(folder, spec.text_columns, spec.max_tokens)
    texts = [text or "" for text in given.read(table.select(list(spec.text_columns))).values.to_pylist()]
    words = tiers.first.model.vocabulary if tiers.first else None
    return lookup.nearest(catalog, config.id_column, config.label_column, given, texts, ids, words, NEIGHBOURS)


def _fields(table: pa.Table, spec: Spec, row: int) -> dict[str, str]:
    """The texts of a row's columns that have one."""
    texts = {name: table.column(name).cast(pa.large_string())[row].as_py() for name in spec.text_columns}
    return {name: text for name, text in texts.items() if text}


def _picture(tiers: Tiers, row: pa.Table) -> bytes | None:
    if not tiers.spec.picture:
        return None
    values = tiers.input.read(row).values
    seen: Any = tiers.input.encode(values) if values.null_count == 0 else None
    if seen is None or seen.index[0] < 0:
        return None
    return as_jpeg(seen.album.pixels(seen.index, seen.index)[0])
