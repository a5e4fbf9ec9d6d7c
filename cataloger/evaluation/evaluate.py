"""Measure a model on a labelled catalog; metrics, report and pictures go to MLflow."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from cataloger.bundle import Spec, digest, read_spec
from cataloger.config import EvaluateConfig
from cataloger.data.catalog import Catalog, grouped, is_list, open_catalog
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError, ConfigError
from cataloger.evaluation.predictions import BY_PICTURE, DECIDED, FILE, SLICE, About, Predictions, decided, sides
from cataloger.heads import metrics
from cataloger.heads.columns import columns_of
from cataloger.heads.metrics import Scores
from cataloger.heads.sets import Sets, exact
from cataloger.infra import places, plots, runtime, tracking, vitals
from cataloger.infra.storage import check_writable, locate
from cataloger.labeling.predict import predict_rows
from cataloger.labeling.reading import TEXT
from cataloger.model import registry

log = logging.getLogger(__name__)
CONFUSED_PAIRS = 25


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
    """The column of the labels that was scored: `category`, or `categories` where a product has any number."""
    mlflow_run: str

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
    catalog = _open(config, spec)
    label = catalog.schema.field(config.label_column)
    if not columns_of(spec).fits(label):
        given, answered = ("lists of paths", "one") if is_list(label.type) else ("one path per row", "any number")
        raise CatalogError(
            f"catalog {config.catalog}: column {config.label_column!r} has {given}, but model {source.uri} gives a product {answered}; "
            "name another --label-column"
        )
    written = count_labels(catalog, config.label_column, config.id_column)
    names, _ = normalise_labels(written, config.catalog, config.label_column)
    if config.predictions:
        check_writable(locate(places.place(config.predictions, "--predictions")).parent)
    about = {"model": source.uri, "model_digest": digest(source.folder), "split": config.split}
    kept = {"id": config.id_column, "text": TEXT, "written": config.label_column}
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
                label_column=config.label_column,
                split=config.split,
                categories=spec.categories,
                texts_per_second=found.cost.answered_per_second,
            )
            predictions = Predictions.of(labels, names, described)
            if predictions.about.knows_the_answers:
                log.warning(
                    "%s was trained on %.0f%% of these rows: its scores are too good",
                    source.uri,
                    100 * (predictions.about.seen or 0),
                )
            data = predictions.to_parquet()
            if config.predictions:
                locate(config.predictions).write(data)
            tracking.log_file(data, FILE)
            result = _score(predictions, run_id)
            _log(result, predictions)
            registry.tag_version(source, {"evaluation_run": run_id, "accuracy": f"{result.overall.accuracy:.4f}"})
    return result


def _open(config: EvaluateConfig, spec: Spec) -> Catalog:
    """The catalog with the column that the model's split went by: needed for the rows it left out, else welcome."""
    own = dict.fromkeys(config.slice_columns, "--slice-columns")
    group = grouped(spec.group_column)
    needed = group if config.split == "test" else {}
    texts, picture = spec.text_columns, spec.picture
    catalog = open_catalog(config.catalog, config.id_column, texts, config.label_column, needed | own, picture)
    if group and not needed and all(spec.group_column in file.schema.names for file in catalog.files):
        catalog = open_catalog(config.catalog, config.id_column, texts, config.label_column, group | own, picture)
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
    )


def _log(result: Evaluation, predictions: Predictions) -> None:
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
    tracking.log_metrics(values)
    true, given = sides(predictions)
    tracking.log_text(classification_report(true, given).to_csv(index=False), "classification_report.csv")
    support = dict(zip(true.names, true.counts.tolist(), strict=True))
    tracking.log_figure(plots.confused_pairs(_confused(true, given), support), "confused_pairs.png")
    curve = metrics.precision_by_coverage(predictions.confidence, exact(true, given))
    tracking.log_figure(plots.coverage({"": curve}), "coverage.png")


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
