"""Labels that are probably wrong, by confident learning (Northcutt et al. 2021) from the answers of models that never saw them.

Only the most probable categories of a row are looked at, so that thousands of categories cost no more than twenty: those
below are never confident. cleanlab, which wants all of them at once, needs rows × categories numbers in memory.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cataloger.bundle import read_spec
from cataloger.config import AuditConfig
from cataloger.curation.pins import read_pins
from cataloger.data import seen
from cataloger.data.catalog import grouped, open_catalog
from cataloger.data.ids import Lookup
from cataloger.data.kinds import is_list, label_kind
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError, ConfigError
from cataloger.evaluation.questions import ANSWERS
from cataloger.infra import places, runtime, tracking
from cataloger.infra.storage import check_writable, locate
from cataloger.labeling.predict import predict_rows
from cataloger.labeling.reading import TEXT
from cataloger.model import registry
from cataloger.model.registry import ModelSource
from cataloger.spec import ONE_CATEGORY, Spec

log = logging.getLogger(__name__)
CANDIDATES = 20
ANSWERED = ("category", "confidence", "alternatives")

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Audit:
    """What was found: `suspects` of `rows` looked at, written to `output`; the worst ones as (text, category, suggestion)."""

    rows: int
    suspects: int
    output: str
    worst: list[tuple[str, str, str]]
    mlflow_run: str


def audit(config: AuditConfig) -> Audit:
    """Ask each model about the rows its training left out, and write the suspects. Raises CatalogerError."""
    tracking_uri = tracking.connect()
    sources = [registry.fetch_model(uri) for uri in config.models]
    specs = [read_spec(source.folder).reading(config.text_columns, config.image_column) for source in sources]
    asked = [_asked(source, spec, config.label_column) for source, spec in zip(sources, specs, strict=True)]
    others = grouped(specs[0].group_column)
    catalog = open_catalog(
        config.catalog, config.id_column, specs[0].text_columns, (config.label_column,), others, specs[0].picture
    )
    kind = catalog.schema.field(config.label_column).type
    if is_list(kind):
        raise CatalogError(
            f"catalog {config.catalog}: column {config.label_column!r} has {label_kind(kind)}; audit is for one path per row"
        )
    _check(sources, asked, catalog.fingerprint)
    names, _ = normalise_labels(
        count_labels(catalog, config.label_column, config.id_column), config.catalog, config.label_column
    )
    corrected = read_pins(config.corrections, "--corrections").table.column("id") if config.corrections else None
    output = locate(places.place(config.output, "--output"))
    check_writable(output.parent)
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        with tracking.run("audit", Path(catalog.location.path).stem, config, catalog, {}) as run_id:
            kept = {
                "id": config.id_column,
                "text": (*specs[0].text_columns, TEXT)[0],
                "true_category": config.label_column,
            }
            found = [
                predict_rows(
                    f"audit, model {number} of {len(sources)}",
                    catalog,
                    kept,
                    source,
                    spec=spec,
                    held_out=bool(spec.test_fraction),
                    alternatives=CANDIDATES - 1,
                    precision=config.precision,
                    use_gpu=config.use_gpu,
                )
                for number, (source, spec) in enumerate(zip(sources, specs, strict=True), 1)
            ]
            for source, spec, one in zip(sources, specs, found, strict=True):
                _check_seen(source, spec, one.labels, names)
            labels = [_answer(one.labels, spec, config.label_column) for one, spec in zip(found, specs, strict=True)]
            looked_at = _unanswered(pa.concat_tables(labels), corrected)
            rows, given = _known(looked_at, names, asked[0])
            log.info("%s of %s rows are looked at", f"{len(rows):,}", f"{catalog.rows:,}")
            suspects = _suspects(rows, given, asked[0])
            sink = pa.BufferOutputStream()
            pq.write_table(suspects, sink)
            output.write(sink.getvalue())
            share = len(suspects) / len(rows)
            tracking.log_metrics({"rows": len(rows), "suspects": len(suspects), "suspect_share": share})
            tracking.log_text(suspects.slice(0, 1_000).to_pandas().to_csv(index=False), "worst_suspects.csv")
    columns = ("text", "category", "suggested_category")
    worst = [tuple(str(row[name]) for name in columns) for row in suspects.slice(0, 15).to_pylist()]
    return Audit(len(rows), len(suspects), config.output, worst, run_id)  # type: ignore[arg-type]


def find_suspects(given: IntArray, labels: IntArray, probabilities: FloatArray) -> tuple[IntArray, IntArray]:
    """(rows, suggested label ids): rows whose given label is likely wrong, the worst first.

    `given` [N] are the labels as they stand; `labels` and `probabilities` [N, K] are the model's best categories, most
    probable first. A category is confident for a row where its probability reaches the mean that rows of that label have
    (Northcutt et al. 2021, equation 2). A row is suspect where the most probable confident category is another one than
    the given, which isn't the model's first choice either. The worst have the largest lead of the suggestion over the given.
    """
    own = np.where(labels == given[:, None], probabilities, 0).max(axis=1)
    size = int(max(given.max(initial=0), labels.max(initial=0))) + 1
    rows = np.bincount(given, minlength=size)
    thresholds = np.where(rows, np.bincount(given, own, size) / np.maximum(rows, 1), np.inf)
    confident = probabilities >= np.maximum(thresholds, 2e-6)[labels]
    first = confident.argmax(axis=1)
    every = np.arange(len(given))
    suggested = labels[every, first]
    suspect = confident.any(axis=1) & (suggested != given) & (labels[:, 0] != given)
    lead = probabilities[every, first] - own
    order = np.flatnonzero(suspect)
    order = order[np.argsort(-lead[order], kind="stable")]
    return order, suggested[order]


def _asked(source: ModelSource, spec: Spec, column: str) -> Spec:
    """As if the answer of that label column were the model's only one. Raises ConfigError where that is not one category."""
    first, *others = spec.answers
    asked = next((other for other in others if other.label_column == column), first)
    if asked.head != ONE_CATEGORY:
        raise ConfigError(f"model {source.uri} gives a product {ANSWERS[asked.head]}; audit is for one category")
    return asked


def _answer(labels: pa.Table, spec: Spec, column: str) -> pa.Table:
    """With the answer of that label column where the first one stands."""
    own = labels.select(["id", "text", "true_category", "seen"])
    further = column in {other.column for other in spec.others}
    answer = labels.column(column).combine_chunks() if further else None
    for name in ANSWERED:
        own = own.append_column(name, labels.column(name) if answer is None else answer.field(name))
    return own


def _check(sources: list[ModelSource], specs: list[Spec], fingerprint: str) -> None:
    for number, (source, spec) in enumerate(zip(sources, specs, strict=True)):
        if not spec.test_fraction and spec.catalog_fingerprint == fingerprint:
            raise _saw(source, 1.0)
        for name, what in (
            ("categories", "know"),
            ("text_columns", "read"),
            ("picture", "see"),
            ("group_column", "were split by"),
        ):
            if getattr(spec, name) != getattr(specs[0], name):
                raise ConfigError(
                    f"models {sources[0].uri} and {source.uri} {what} different {name.replace('_', ' ')}; audit with one of them"
                )
        for earlier, other in zip(sources[:number], specs[:number], strict=True):
            if _overlap(spec, other) or _overlap(other, spec):
                raise ConfigError(
                    f"models {earlier.uri} and {source.uri} were trained without some of the same rows, which would be listed twice; "
                    "name one of them, or train them with --test-start as far apart as --test-fraction"
                )


def _check_seen(source: ModelSource, spec: Spec, labels: pa.Table, names: dict[str, str]) -> None:
    """Raises ConfigError where a model saw the rows that it was asked about, by those that have a category."""
    with_category = pc.is_in(
        labels.column("true_category").cast(pa.large_string()), pa.array(list(names), pa.large_string())
    )
    share = seen.share(labels.column("seen").filter(with_category))
    if share is None:
        if not spec.test_fraction:
            log.warning(
                "model %s may have seen these rows: of those that it has, it takes wrong labels for right", source.uri
            )
    elif share > seen.TOLERATED:
        raise _saw(source, share)


def _saw(source: ModelSource, share: float) -> ConfigError:
    return ConfigError(
        f"model {source.uri} was trained on {share:.0%} of these rows and would call their labels right; train one with "
        "--test-fraction 0.2, or five with --test-start 0, 0.2, 0.4, 0.6, 0.8, and name them all"
    )


def _overlap(spec: Spec, other: Spec) -> bool:
    """Whether the rows that `other` left out begin among those that `spec` did; without a test part that is all rows."""
    return (other.test_start - spec.test_start) % 1.0 < (spec.test_fraction or 1.0) - 1e-9


def _unanswered(rows: pa.Table, corrected: pa.ChunkedArray | None) -> pa.Table:
    """Without those that people have answered."""
    if corrected is None:
        return rows
    answered = np.zeros(len(rows), bool)
    answered[Lookup.of(corrected.combine_chunks()).find(rows.column("id"))[1]] = True
    log.info("%s rows have a correction and are left out", f"{answered.sum():,}")
    return rows.filter(pa.array(~answered))


def _known(rows: pa.Table, names: dict[str, str], spec: Spec) -> tuple[pa.Table, IntArray]:
    """The rows whose category the models know, and its label ids; says how many have another one or none."""
    written = rows.column("true_category").cast(pa.large_string())
    labels = pc.index_in(pa.array(list(names.values()), pa.string()), pa.array(spec.categories))
    given = labels.take(pc.index_in(written, pa.array(list(names), pa.large_string())).combine_chunks())
    known = given.is_valid()
    if not pc.any(known).as_py():
        raise CatalogError("no row to audit: none with text and a category that the models know; check --label-column")
    if unknown := len(rows) - pc.sum(known).as_py():
        log.info("%s rows have no category, or one that the models do not know, and are left out", f"{unknown:,}")
    return rows.filter(known).combine_chunks(), given.filter(known).to_numpy().astype(np.int64)


def _suspects(rows: pa.Table, given: IntArray, spec: Spec) -> pa.Table:
    """id, text, category, suggested_category, the probability of each; worst first. `given` are the rows' label ids."""
    categories = pa.array(spec.categories)
    others = rows.column("alternatives").combine_chunks().flatten()
    first = pc.index_in(rows.column("category").combine_chunks().cast(pa.string()), categories).to_numpy()
    labels = pc.index_in(others.field("category"), categories).to_numpy().reshape(len(rows), -1)
    labels = np.column_stack([first, labels]).astype(np.int64)
    best = rows.column("confidence").to_numpy()
    probabilities = np.column_stack([best, others.field("confidence").to_numpy().reshape(len(rows), -1)])
    order, suggested = find_suspects(given, labels, probabilities)

    def probability(wanted: IntArray) -> FloatArray:
        return np.asarray(np.where(labels[order] == wanted[:, None], probabilities[order], 0).max(axis=1, initial=0))

    chosen = rows.take(pa.array(order))
    return pa.table(
        {
            "id": chosen.column("id"),
            "text": chosen.column("text"),
            "category": categories.take(pa.array(given[order])),
            "suggested_category": categories.take(pa.array(suggested)),
            "category_probability": pa.array(probability(given[order])),
            "suggested_probability": pa.array(probability(suggested)),
        }
    )
