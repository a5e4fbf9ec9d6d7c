"""Groups of products side by side, as a page, as a table, and as metrics."""

from collections.abc import Sequence

import pandas as pd

from cataloger.evaluation.fairness import ACCURACY, LEAST_ROWS, MOST_GROUPS, Fairness
from cataloger.evaluation.predictions import About
from cataloger.infra import plots
from cataloger.infra.pages import render, svg
from cataloger.spec import prefix_of

SHOWN_CATEGORIES, SHOWN_GROUPS = 10, 40


def groups_page(found: Sequence[Fairness], about: About) -> str:
    pictures = []
    for one in found:
        shown = sorted(one.groups[:SHOWN_GROUPS], key=lambda group: group.figures[ACCURACY].value)
        spans = [(group.name, group.figures[ACCURACY]) for group in shown]
        rows = [(name, figure.value, figure.low, figure.high) for name, figure in spans]
        pictures.append(svg(plots.estimates(rows, f"Accuracy by {one.column}")) if rows else "")
    return render(
        "groups.html",
        found=found,
        about=about,
        pictures=pictures,
        least=LEAST_ROWS,
        most=MOST_GROUPS,
        drawn=SHOWN_GROUPS,
        shown=SHOWN_CATEGORIES,
    )


def groups_table(found: Sequence[Fairness]) -> pd.DataFrame:
    """One row for each group and figure."""
    rows = []
    for one in found:
        for group in one.groups:
            figures = dict(group.figures)
            if group.within:
                figures["accuracy within the same categories, less that of others"] = group.within
            for title, figure in figures.items():
                numbers = (figure.value, figure.low, figure.high, figure.others, figure.p_value)
                rows.append((one.column, group.name, group.rows, title, *numbers))
    columns = ["column", "group", "products", "figure", "value", "low", "high", "others", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def groups_metrics(found: Sequence[Fairness]) -> dict[str, float]:
    """By column: the equal-opportunity gap, the worst accuracy, and how many groups are clearly worse than other products."""
    metrics = {}
    for one in found:
        before = f"groups/{prefix_of(one.column)}"
        if one.gap is not None:
            metrics[f"{before}equal_opportunity_gap"] = one.gap
        if one.worst:
            metrics[f"{before}worst_accuracy"] = one.worst.figures[ACCURACY].value
        metrics[f"{before}clearly_worse"] = float(one.clearly_worse)
    return metrics
