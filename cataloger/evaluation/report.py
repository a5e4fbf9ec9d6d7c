"""The scores of one answer of a model, and what an evaluation leaves of them in MLflow."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from cataloger.evaluation.fairness import Fairness
from cataloger.evaluation.predictions import BY_PICTURE, DECIDED, SLICE, Predictions, sides
from cataloger.evaluation.tagging import counts_by_name, value_f1
from cataloger.heads import metrics
from cataloger.heads.metrics import Scores
from cataloger.heads.sets import Sets, exact
from cataloger.infra import plots, tracking

CONFUSED_PAIRS, SHOWN_NAMES = 25, 60


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
    value_f1: float = 0.0
    """Of tags, as WDC-PAVE counts: a product's attribute is right where its most confident value is one of the true ones."""
    others: tuple["Evaluation", ...] = ()
    """Of the model's further answers."""
    groups: tuple[Fairness, ...] = ()
    """Of each of the columns by which products are grouped."""

    @property
    def title(self) -> str:
        """The model, and which of its answers where that is not its category."""
        return self.model if self.answer in ("category", "categories") else f"{self.answer} of {self.model}"

    @property
    def mean_weighted_f1(self) -> float:
        """Weighted F1 averaged over the levels, the measure of MWPD2020."""
        return float(np.mean([level.weighted_f1 for level in self.levels]))


def score(predictions: Predictions, run_id: str) -> Evaluation:
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
        value_f1=value_f1(predictions.pairs) if predictions.places else 0.0,
    )


def log_scores(result: Evaluation, predictions: Predictions, before: str) -> None:
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
        values |= {"value_f1": result.value_f1, "span_f1": result.places.micro_f1}
        for what, (theirs, mine) in (("values", (true, given)), ("spans", predictions.places)):
            report = counts_by_name(theirs, mine)
            values[f"{what.rstrip('s')}_macro_f1"] = float(report["f1"].mean()) if len(report) else 0.0
            tracking.log_text(report.to_csv(index=False), f"{before}{what}_by_name.csv")
            shown = report.head(SHOWN_NAMES)
            rows = list(zip(shown["name"], shown["f1"], shown["true"], strict=True))
            tracking.log_figure(plots.scores_by_name(rows, f"F1 of {what} by name"), f"{before}{what}_by_name.png")
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
