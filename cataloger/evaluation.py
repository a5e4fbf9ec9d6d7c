"""Measure a model on a labelled catalog; metrics, report and pictures go to MLflow."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger import metrics, plots, runtime, tracking
from cataloger.bundle import read_spec
from cataloger.catalog import is_list, open_catalog
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
    multi_label: bool
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
    group_column = spec.group_column if config.split == "test" else None
    catalog = open_catalog(config.catalog, config.id_column, text_columns, config.label_column, group_column)
    if is_list(catalog.schema.field(config.label_column).type) != spec.multi_label:
        given, answered = ("lists of paths", "one") if not spec.multi_label else ("one path per row", "any number")
        raise CatalogError(
            f"catalog {config.catalog}: column {config.label_column!r} has {given}, but model {source.uri} gives a product {answered}; "
            "name another --label-column"
        )
    written = count_labels(catalog, config.label_column)
    names, _ = normalise_labels(written, config.catalog, config.label_column)
    if config.predictions:
        check_writable(locate(config.predictions).parent)
    about = {"model": source.uri, "split": config.split}
    with runtime.session():
        tracking.check_nodes(tracking_uri)
        with tracking.run("evaluate", Path(catalog.location.path).stem, config, catalog, about) as run_id:
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
    """id, the true category, or categories, and the model's, and its confidence, of the rows that have both."""
    answer = "categories" if "categories" in labels.column_names else "category"
    true = [_normalised(written, names) for written in labels.column("true_category").to_pylist()]
    table = pa.table(
        {
            "id": labels.column("id"),
            f"true_{answer}": pa.array(true, labels.schema.field(answer).type),
            answer: labels.column(answer),
            "confidence": labels.column("confidence"),
        }
    )
    scored = table.filter(pa.array([bool(value) for value in true]))
    if len(scored) < len(table):
        log.info("%s rows without a category were left out", f"{len(table) - len(scored):,}")
    if not len(scored):
        raise CatalogError(
            f"catalog {config.catalog}: no row with text and a category to score; check --label-column and --split"
        )
    return scored


def _normalised(written: str | list[str | None] | None, names: dict[str, str]) -> str | list[str] | None:
    if isinstance(written, list):
        return sorted({names[path] for path in written if path in names})
    return None if written is None else names.get(written)


def _sets(predictions: pa.Table) -> tuple[list[list[str]], list[list[str]]]:
    """The true categories of each row, and those that the model gave it."""
    if "categories" in predictions.column_names:
        true, given = (predictions.column(name).to_pylist() for name in ("true_categories", "categories"))
        return true, given
    true, given = ([[path] for path in predictions.column(name).to_pylist()] for name in ("true_category", "category"))
    return true, given


def _exact(true: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> npt.NDArray[np.bool_]:
    """[rows] whether the model gave a row just its true categories."""
    return np.array([set(left) == set(right) for left, right in zip(true, given, strict=True)])


def _score(predictions: pa.Table, model: str, run_id: str) -> Evaluation:
    true, given = _sets(predictions)
    confidence = predictions.column("confidence").to_numpy().astype(np.float64)
    correct = _exact(true, given)
    levels = tuple(metrics.level_scores(true, given))
    return Evaluation(
        model=model,
        rows=len(true),
        overall=levels[-1],
        levels=levels,
        hierarchical_f1=metrics.hierarchical_f1(true, given),
        calibration_error=metrics.expected_calibration_error(confidence, correct),
        coverage_at_95=metrics.coverage_at(confidence, correct, 0.95)[0],
        multi_label="categories" in predictions.column_names,
        mlflow_run=run_id,
    )


def _log(result: Evaluation, predictions: pa.Table) -> None:
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
    }
    for number, level in enumerate(result.levels, 1):
        values |= {
            f"level_{number}_accuracy": level.accuracy,
            f"level_{number}_weighted_f1": level.weighted_f1,
            f"level_{number}_macro_f1": level.macro_f1,
        }
    tracking.log_metrics(values)
    true, given = _sets(predictions)
    tracking.log_text(classification_report(true, given).to_csv(index=False), "classification_report.csv")
    support = Counter(path for row in true for path in row)
    tracking.log_figure(plots.confused_pairs(_confused(true, given), support), "confused_pairs.png")
    confidence = predictions.column("confidence").to_numpy().astype(np.float64)
    curve = metrics.precision_by_coverage(confidence, _exact(true, given))
    tracking.log_figure(plots.coverage(curve), "coverage.png")


def _confused(true: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> list[tuple[str, str, int]]:
    """(true category that was missed, category given in its place, rows), the commonest first."""
    pairs = Counter(
        (missed, wrong)
        for left, right in zip(true, given, strict=True)
        for missed in set(left) - set(right)
        for wrong in set(right) - set(left)
    )
    return [(*pair, count) for pair, count in pairs.most_common(CONFUSED_PAIRS)]


def classification_report(true: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> pd.DataFrame:
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
