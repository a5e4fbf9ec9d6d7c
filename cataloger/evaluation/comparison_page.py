"""The comparison of models as a page."""

from collections.abc import Sequence

from cataloger.evaluation.comparison import Comparison
from cataloger.evaluation.predictions import Predictions, sides
from cataloger.heads import metrics
from cataloger.heads.sets import exact
from cataloger.infra import plots
from cataloger.infra.pages import render, svg

SHOWN_CATEGORIES = 10


def comparison_page(result: Comparison, said: Sequence[Predictions]) -> str:
    """`said` is what each contender said about the rows."""
    curves = {
        name: metrics.precision_by_coverage(one.confidence, exact(*sides(one)))
        for name, one in zip(result.names, said, strict=True)
    }
    pictures = []
    for pair in result.pairs:
        ends = [*pair.winners[:SHOWN_CATEGORIES], *reversed(pair.losers[:SHOWN_CATEGORIES])]
        own = {
            "differences": plots.intervals(
                [(d.title, d.by, d.low, d.high) for d in pair.differences], pair.second, pair.first
            ),
            "categories": plots.gains(
                [(change.category, change.by) for change in ends],
                "products won (right) or lost (left)",
                "Categories that changed most",
            )
            if ends
            else None,
            "coverage": plots.coverage({name: curves[name] for name in (pair.first, pair.second)}),
        }
        if pair.effect:
            flows = [(flow.before, flow.after, flow.products) for flow in pair.effect.flows]
            own["flows"] = plots.flows(flows) if flows else None
        pictures.append({name: svg(figure) if figure else "" for name, figure in own.items()})
    return render("comparison.html", result=result, about=said[0].about, pictures=pictures, shown=SHOWN_CATEGORIES)
