"""Measure a model on a labelled catalog; metrics, report and pictures go to MLflow."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.bundle import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec, digest, read_spec
from cataloger.config import EvaluateConfig
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.data.kinds import label_kind
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError, ConfigError
from cataloger.evaluation.predictions import (
    BY_PICTURE,
    DECIDED,
    SLICE,
    WRITTEN,
    About,
    Predictions,
    decided,
    file_of,
    sides,
)
from cataloger.evaluation.tagging import OWN, counts_by_name
from cataloger.heads import metrics
from cataloger.heads.columns import answer_in, columns_of
from cataloger.heads.metrics import Scores
from cataloger.heads.sets import Sets, exact
from cataloger.infra import places, plots, runtime, tracking, vitals
from cataloger.infra.storage import check_writable, locate
from cataloger.labeling.predict import predict_rows
from cataloger.labeling.reading import TEXT
from cataloger.model import registry

log = logging.getLogger(__name__)
CONFUSED_PAIRS = 25
ANSWERS = {ONE_CATEGORY: "one category", MANY_CATEGORIES: "any number of categories", TAGS: "tags"}


@dataclass(frozen=True)
class Evaluation:
    """Scores on `rows` products; `levels` has the top level first. `texts_per_second` is that of one model actor."""

    model: str
    rows: int
    overall: Scores
    levels: tuple[Scores, ...]
    hierarchical_f1: float
    calibration_error: float
    coverage_at_95: float
    needs_review: float
    texts_per_second: float
    answer: str
    """The column of the labels that was scored: `category`, `categories` where a product has any number, or that of tags."""
    mlflow_run: str
    places: Scores | None = None
    """Of tags, whether they are where the true ones are; `overall` is of their values, and the first level of their names."""
    others: tuple["Evaluation", ...] = ()
    """Of the model's further answers."""

    @property
    def title(self) -> str:
        """The model, and which of its answers where that is not its category."""
        return self.model if self.answer in ("category", "categories") else f"{self.answer} of {self.model}"

    @property
    def mean_weighted_f1(self) -> float:
        """Weighted F1 averaged over the levels, the measure of MWPD2020."""
        return float(np.mean([level.weighted_f1 for level in self.levels]))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Predict every labelled row of the catalog and score it. Raises CatalogerError."""
    tracking_uri = tracking.connect()
    source = registry.fetch_model(config.model)
    spec = read_spec(source.folder).reading(config.text_columns, config.image_column)
    if config.split == "test" and not spec.test_fraction:
        raise ConfigError(f"--split test: model {source.uri} was trained without --test-fraction; leave the flag out")
    catalog = _open(config, spec, config.label_column)
    columns = _label_columns(config, spec, catalog)
    catalog = _open(config, spec, columns)
    questions = [
        _question(number, answer, column, catalog, config)
        for number, (answer, column) in enumerate(zip(spec.answers, columns, strict=False))
        if column
    ]
    if config.predictions:
        check_writable(locate(places.place(config.predictions, "--predictions")).parent)
    about = {"model": source.uri, "model_digest": digest(source.folder), "split": config.split}
    kept = {"id": config.id_column, "text": TEXT} | {one.written: one.column for one in questions}
    if spec.tags:
        kept |= {f"{OWN}{number}": name for number, name in enumerate(spec.text_columns)}
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        with (
            tracking.run("evaluate", Path(catalog.location.path).stem, config, catalog, about) as run_id,
            vitals.watch(run_id),
        ):
            ask = functools.partial(
                predict_rows,
                catalog=catalog,
                source=source,
                spec=spec,
                held_out=config.split == "test",
                tiers=config.tiers == "auto",
                precision=config.precision,
                use_gpu=config.use_gpu,
            )
            found = ask("evaluate", kept=kept | {SLICE + name: name for name in config.slice_columns})
            labels = found.labels
            # A row that is split by its picture is another one without it.
            if spec.picture and spec.text_columns and spec.group_column != spec.picture.column:
                blind = ask("evaluate without pictures", kept={}, blind=True).labels
                labels = labels.append_column(SLICE + DECIDED, decided(labels, blind))
            described = About(
                model=source.uri,
                catalog=config.catalog,
                catalog_fingerprint=catalog.fingerprint,
                id_column=config.id_column,
                label_column=config.label_column[0],
                split=config.split,
                categories=spec.categories,
                texts_per_second=found.cost.answered_per_second,
                text_columns=spec.text_columns,
                further=tuple(one.spec.label_column for one in questions[1:]),
            )
            results = [_told(one, labels, described, config, run_id) for one in questions]
            result = replace(results[0], others=tuple(results[1:]))
            registry.tag_version(source, {"evaluation_run": run_id, "accuracy": f"{result.overall.accuracy:.4f}"})
    return result


@dataclass(frozen=True)
class _Question:
    """An answer of the model, and the column of the catalog with the true one."""

    number: int
    spec: Spec
    column: str
    kind: str
    names: dict[str, str]

    @property
    def written(self) -> str:
        """The name of that column among the labels."""
        return f"{WRITTEN}.{self.number}" if self.number else WRITTEN

    @property
    def before(self) -> str:
        """What the names of metrics begin with."""
        return f"{self.spec.label_column}_" if self.number else ""


def _label_columns(config: EvaluateConfig, spec: Spec, catalog: Catalog) -> list[str]:
    """The column for each answer: as they are named, and then, where the catalog has it, the one that the answer was learnt from."""
    if len(config.label_column) > len(spec.answers):
        raise ConfigError(
            f"--label-column: has {len(config.label_column)} names, but the model has {len(spec.answers)} answers; leave some out"
        )
    columns = list(config.label_column)
    for answer in spec.answers[len(columns) :]:
        there = all(answer.label_column in file.schema.names for file in catalog.files)
        columns.append(answer.label_column if there else "")
        if not there:
            log.info("no column %r in %s: that answer is not scored", answer.label_column, config.catalog)
    return columns


def _question(number: int, spec: Spec, column: str, catalog: Catalog, config: EvaluateConfig) -> _Question:
    kind = catalog.schema.field(column)
    if not columns_of(spec).fits(kind):
        raise CatalogError(
            f"catalog {config.catalog}: column {column!r} has {label_kind(kind.type)}, but model {config.model} gives a product "
            f"{ANSWERS[spec.head]}; name another --label-column"
        )
    counts = count_labels(catalog, column, config.id_column)
    names = {} if spec.head == TAGS else normalise_labels(counts, config.catalog, column)[0]
    return _Question(number, spec, column, str(label_kind(kind.type)), names)


def _told(question: _Question, labels: pa.Table, about: About, config: EvaluateConfig, run_id: str) -> Evaluation:
    """The scores of one answer; what the model said goes to MLflow."""
    about = replace(about, categories=question.spec.categories, label_kind=question.kind)
    if question.number:
        about = replace(about, label_column=question.column, further=())
        own = answer_in(labels, question.spec.label_column)
        for name in labels.column_names:
            if name in ("row", "id", "text", "seen", question.written) or name.startswith((SLICE, OWN)):
                own = own.append_column(WRITTEN if name == question.written else name, labels.column(name))
        labels = own
    predictions = Predictions.of(labels, question.names, about)
    if not question.number and predictions.about.knows_the_answers:
        log.warning(
            "%s was trained on %.0f%% of these rows: its scores are too good",
            about.model,
            100 * (predictions.about.seen or 0),
        )
    data = predictions.to_parquet()
    if config.predictions and not question.number:
        locate(config.predictions).write(data)
    tracking.log_file(data, file_of(question.spec.label_column if question.number else ""))
    result = _score(predictions, run_id)
    result = replace(result, answer=question.spec.label_column) if question.number else result
    _log(result, predictions, question.before)
    return result


def _open(config: EvaluateConfig, spec: Spec, label_columns: Sequence[str]) -> Catalog:
    """The catalog with the column that the model's split went by: needed for the rows it left out, else welcome."""
    own = dict.fromkeys(config.slice_columns, "--slice-columns")
    group = grouped(spec.group_column)
    needed = group if config.split == "test" else {}
    texts, picture = spec.text_columns, spec.picture
    labels = [name for name in label_columns if name]
    catalog = open_catalog(config.catalog, config.id_column, texts, labels, needed | own, picture)
    if group and not needed and all(spec.group_column in file.schema.names for file in catalog.files):
        catalog = open_catalog(config.catalog, config.id_column, texts, labels, group | own, picture)
    return catalog


def _score(predictions: Predictions, run_id: str) -> Evaluation:
    (true, given), confidence = sides(predictions), predictions.confidence
    correct = exact(true, given)
    levels = tuple(metrics.level_scores(true, given))
    return Evaluation(
        model=predictions.about.model,
        rows=len(true),
        overall=levels[-1],
        levels=levels,
        hierarchical_f1=metrics.hierarchical_f1(true, given),
        calibration_error=metrics.expected_calibration_error(confidence, correct),
        coverage_at_95=metrics.coverage_at(confidence, correct, 0.95)[0],
        needs_review=float(pc.mean(predictions.table.column("needs_review")).as_py()),
        texts_per_second=predictions.about.texts_per_second,
        answer=predictions.answer,
        mlflow_run=run_id,
        places=metrics.set_scores(*predictions.places) if predictions.places else None,
    )


def _log(result: Evaluation, predictions: Predictions, before: str) -> None:
    """Metrics, tables and pictures, with `before` before their names."""
    values = {
        "rows": float(result.rows),
        "accuracy": result.overall.accuracy,
        "weighted_f1": result.overall.weighted_f1,
        "macro_f1": result.overall.macro_f1,
        "micro_f1": result.overall.micro_f1,
        "example_f1": result.overall.example_f1,
        "mean_weighted_f1": result.mean_weighted_f1,
        "hierarchical_f1": result.hierarchical_f1,
        "calibration_error": result.calibration_error,
        "coverage_at_95": result.coverage_at_95,
        "needs_review_share": result.needs_review,
        "texts_per_second": result.texts_per_second,
    }
    if predictions.about.seen is not None:
        values["seen_share"] = predictions.about.seen
    if SLICE + DECIDED in predictions.slices:
        by_picture = pc.equal(predictions.table.column(SLICE + DECIDED), BY_PICTURE)
        values["decided_by_picture_share"] = float(pc.mean(by_picture.cast("float64")).as_py())
    for number, level in enumerate(result.levels, 1):
        values |= {
            f"level_{number}_accuracy": level.accuracy,
            f"level_{number}_weighted_f1": level.weighted_f1,
            f"level_{number}_macro_f1": level.macro_f1,
        }
    true, given = sides(predictions)
    if result.places:
        values |= {"value_f1": result.overall.micro_f1, "span_f1": result.places.micro_f1}
        for what, (theirs, mine) in (("values", (true, given)), ("spans", predictions.places)):
            report = counts_by_name(theirs, mine)
            values[f"{what.rstrip('s')}_macro_f1"] = float(report["f1"].mean()) if len(report) else 0.0
            tracking.log_text(report.to_csv(index=False), f"{before}{what}_by_name.csv")
    tracking.log_metrics({before + name: value for name, value in values.items()})
    tracking.log_text(classification_report(true, given).to_csv(index=False), f"{before}classification_report.csv")
    support = dict(zip(true.names, true.counts.tolist(), strict=True))
    tracking.log_figure(plots.confused_pairs(_confused(true, given), support), f"{before}confused_pairs.png")
    curve = metrics.precision_by_coverage(predictions.confidence, exact(true, given))
    tracking.log_figure(plots.coverage({"": curve}), f"{before}coverage.png")


def _confused(true: Sets, given: Sets) -> list[tuple[str, str, int]]:
    """(true category that was missed, category given in its place, rows), the commonest first."""
    both = true.rows.multiply(given.rows)
    pairs = ((true.rows - both).T @ (given.rows - both)).tocoo()
    worst = np.lexsort((pairs.col, pairs.row, -pairs.data))[:CONFUSED_PAIRS]
    return [(true.names[pairs.row[i]], true.names[pairs.col[i]], int(pairs.data[i])) for i in worst]


def classification_report(true: Sets, given: Sets) -> pd.DataFrame:
    """Precision, recall, F1 and number of true rows per category, largest first."""
    found = metrics.count_sets(true, given)
    report = pd.DataFrame(
        {
            "category": found.categories,
            "precision": found.both / np.maximum(found.given, 1),
            "recall": found.both / np.maximum(found.true, 1),
            "f1": found.f1,
            "rows": found.true.astype(int),
        }
    )
    return report.sort_values(["rows", "category"], ascending=[False, True])
