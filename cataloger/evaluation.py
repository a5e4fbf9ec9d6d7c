"""Measure a model on a labelled catalog; metrics, report and pictures go to MLflow."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import precision_recall_fscore_support

from cataloger import metrics, plots, runtime, tracking
from cataloger.bundle import read_spec
from cataloger.catalog import open_catalog
from cataloger.config import EvaluateConfig
from cataloger.errors import CatalogError, ConfigError
from cataloger.labels import count_labels, normalise_labels
from cataloger.metrics import Scores
from cataloger.predicting import predict_labelled
from cataloger.storage import check_writable, locate

log = logging.getLogger(__name__)
CONFUSED_PAIRS = 25


@dataclass(frozen=True)
class Evaluation:
    """Scores on `rows` products; `levels` has the top level first."""

    model: str
    rows: int
    overall: Scores
    levels: tuple[Scores, ...]
    hierarchical_f1: float
    calibration_error: float
    coverage_at_95: float
    mlflow_run: str

    @property
    def mean_weighted_f1(self) -> float:
        """Weighted F1 averaged over the levels, the measure of MWPD2020."""
        return float(np.mean([level.weighted_f1 for level in self.levels]))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Predict every labelled row of the catalog and score it. Raises CatalogerError."""
    tracking_uri = tracking.connect()
    source = tracking.fetch_model(config.model)
    spec = read_spec(source.folder)
    if config.split == "test" and not spec.test_fraction:
        raise ConfigError(f"--split test: model {source.uri} was trained without --test-fraction; leave the flag out")
    text_columns = config.text_columns or spec.text_columns
    catalog = open_catalog(config.catalog, config.id_column, text_columns, config.label_column)
    written = count_labels(catalog, config.label_column)
    names, _ = normalise_labels(written, config.catalog, config.label_column)
    if config.predictions:
        check_writable(locate(config.predictions).parent)
    about = {
        "model": source.uri,
        "catalog": str(catalog.location),
        "catalog_fingerprint": catalog.fingerprint,
        "split": config.split,
    }
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        with tracking.run("evaluate", Path(catalog.location.path).stem, config, about) as run_id:
            labels = predict_labelled(
                "evaluate",
                catalog,
                {"id": config.id_column, "true_category": config.label_column},
                source,
                text_columns=text_columns,
                held_out=config.split == "test",
                alternatives=0,
                precision=config.precision,
                use_gpu=config.use_gpu,
            )
            predictions = _predictions(labels, names, config)
            if config.predictions:
                sink = pa.BufferOutputStream()
                pq.write_table(predictions, sink)
                locate(config.predictions).write(sink.getvalue())
            result = _score(predictions, source.uri, run_id)
            _log(result, predictions)
            tracking.tag_version(source, {"evaluation_run": run_id, "accuracy": f"{result.overall.accuracy:.4f}"})
    return result


def _predictions(labels: pa.Table, names: dict[str, str], config: EvaluateConfig) -> pa.Table:
    """id, true_category, category, confidence of the rows that have both; says how many have not."""
    true = [names.get(path) for path in labels.column("true_category").to_pylist()]
    table = pa.table(
        {
            "id": labels.column("id"),
            "true_category": pa.array(true, pa.string()),
            "category": labels.column("category"),
            "confidence": labels.column("confidence"),
        }
    )
    scored = table.filter(table.column("true_category").is_valid())
    if len(scored) < len(table):
        log.info("%s rows without a category were left out", f"{len(table) - len(scored):,}")
    if not len(scored):
        raise CatalogError(
            f"catalog {config.catalog}: no row with text and a category to score; check --label-column and --split"
        )
    return scored


def _score(predictions: pa.Table, model: str, run_id: str) -> Evaluation:
    true, predicted = predictions.column("true_category").to_pylist(), predictions.column("category").to_pylist()
    confidence = predictions.column("confidence").to_numpy().astype(np.float64)
    correct = np.array(true, object) == np.array(predicted, object)
    levels = tuple(metrics.level_scores(true, predicted))
    return Evaluation(
        model=model,
        rows=len(true),
        overall=levels[-1],
        levels=levels,
        hierarchical_f1=metrics.hierarchical_f1(true, predicted),
        calibration_error=metrics.expected_calibration_error(confidence, correct),
        coverage_at_95=metrics.coverage_at(confidence, correct, 0.95)[0],
        mlflow_run=run_id,
    )


def _log(result: Evaluation, predictions: pa.Table) -> None:
    values = {
        "rows": float(result.rows),
        "accuracy": result.overall.accuracy,
        "weighted_f1": result.overall.weighted_f1,
        "macro_f1": result.overall.macro_f1,
        "mean_weighted_f1": result.mean_weighted_f1,
        "hierarchical_f1": result.hierarchical_f1,
        "calibration_error": result.calibration_error,
        "coverage_at_95": result.coverage_at_95,
    }
    for number, level in enumerate(result.levels, 1):
        values |= {
            f"level_{number}_accuracy": level.accuracy,
            f"level_{number}_weighted_f1": level.weighted_f1,
            f"level_{number}_macro_f1": level.macro_f1,
        }
    tracking.log_metrics(values)
    true, predicted = predictions.column("true_category").to_pylist(), predictions.column("category").to_pylist()
    tracking.log_text(classification_report(true, predicted).to_csv(index=False), "classification_report.csv")
    support = Counter(true)
    pairs = Counter(pair for pair in zip(true, predicted, strict=True) if pair[0] != pair[1]).most_common(
        CONFUSED_PAIRS
    )
    tracking.log_figure(plots.confused_pairs([(*pair, count) for pair, count in pairs], support), "confused_pairs.png")
    confidence = predictions.column("confidence").to_numpy().astype(np.float64)
    correct = np.array(true, object) == np.array(predicted, object)
    tracking.log_figure(plots.coverage(metrics.precision_by_coverage(confidence, correct)), "coverage.png")


def classification_report(true: Sequence[str], predicted: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and number of true rows per category, largest first."""
    categories = sorted({*true, *predicted})
    precision, recall, f1, rows = precision_recall_fscore_support(true, predicted, labels=categories, zero_division=0)
    report = pd.DataFrame({"category": categories, "precision": precision, "recall": recall, "f1": f1, "rows": rows})
    return report.sort_values(["rows", "category"], ascending=[False, True])
