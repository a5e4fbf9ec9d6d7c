"""Pages that stand alone: one HTML file with its pictures in it, for a browser, a mail or an MLflow artifact."""

import base64
import io
import time
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure


def render(template: str, **values: Any) -> str:
    """A page from `templates/`."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "signed_count": lambda value: f"{value:+,}",
        "percent": lambda value: f"{value:.1%}",
        "hundredths": lambda value: f"{100 * value:+.1f}",
        "points": lambda value: f"{100 * value:+.1f} points",
        "jpeg": lambda data: f"data:image/jpeg;base64,{base64.b64encode(data).decode()}",
        "p": lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}",
    }
    return environment.get_template(template).render(now=time.strftime("%Y-%m-%d %H:%M"), **values)


def svg(figure: Figure) -> Markup:
    """A picture for the middle of a page; its text stays text, to be searched and read aloud."""
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return Markup(sink.getvalue()[sink.getvalue().index("<svg") :])
