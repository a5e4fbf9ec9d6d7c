"""Pages that stand alone: one HTML file with its pictures in it, for a browser, a mail or an MLflow artifact."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cataloger import metrics, plots
from cataloger.comparison import Comparison
from cataloger.predictions import Predictions, exact

SHOWN_CATEGORIES = 10


def comparison_page(result: Comparison, said: Sequence[Predictions]) -> str:
    """`said` is what each contender said about the rows."""
    curves = {
        name: metrics.precision_by_coverage(one.confidence, exact(one.true, one.given))
        for name, one in zip(result.names, said, strict=True)
    }
    pictures = []
    for pair in result.pairs:
        ends = [*pair.winners[:SHOWN_CATEGORIES], *reversed(pair.losers[:SHOWN_CATEGORIES])]
        own = {
            "differences": plots.intervals(
                [(d.name, d.by, d.low, d.high) for d in pair.differences], pair.second, pair.first
            ),
            "categories": plots.gains([(change.category, change.by) for change in ends]) if ends else None,
            "coverage": plots.coverage({name: curves[name] for name in (pair.first, pair.second)}),
        }
        if pair.effect:
            flows = [(flow.before, flow.after, flow.products) for flow in pair.effect.flows]
            own["flows"] = plots.flows(flows) if flows else None
        pictures.append({name: svg(figure) if figure else "" for name, figure in own.items()})
    return render("comparison.html", result=result, about=said[0].about, pictures=pictures, shown=SHOWN_CATEGORIES)


def render(template: str, **values: Any) -> str:
    """A page from `templates/`."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "signed_count": lambda value: f"{value:+,}",
        "percent": lambda value: f"{value:.1%}",
        "points": lambda value: f"{100 * value:+.1f} points",
        "p": lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}",
    }
    return environment.get_template(template).render(now=time.strftime("%Y-%m-%d %H:%M"), **values)


def svg(figure: Figure) -> Markup:
    """A picture for the middle of a page; its text stays text, to be searched and read aloud."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return Markup(sink.getvalue()[sink.getvalue().index("<svg") :])
