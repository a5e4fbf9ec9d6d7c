"""Pictures of metrics, drawn without a display."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cataloger.taxonomy import SEPARATOR

# Okabe & Ito (2008): told apart by colour-blind readers.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"

Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def confused_pairs(pairs: Sequence[tuple[str, str, int]], support: dict[str, int]) -> Figure:
    """Bars of the (true category, predicted category, rows) that were confused most, worst on top."""
    figure = Figure(figsize=(11, 1.2 + 0.42 * max(1, len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    counts = [count for *_, count in pairs]
    axes.barh(range(len(pairs)), counts, color=BLUE)
    axes.set_yticks(range(len(pairs)), _arrows(pairs), fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    for place, (true, _, count) in enumerate(pairs):
        axes.text(count, place, f" {count} ({count / support[true]:.0%} of the true category)", va="center", fontsize=8)
    axes.set_xlim(0, 1.45 * max(counts, default=1))
    axes.set_xlabel("products")
    axes.set_title("Most confused: true category → predicted category", loc="left")
    _plain(axes)
    return figure


def scores_by_name(scores: Sequence[tuple[str, float, int]], title: str) -> Figure:
    """(name, F1, how many true ones) as bars, in this order from the top."""
    figure = Figure(figsize=(9, 1.2 + 0.3 * max(1, len(scores))), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(scores)), [score for _, score, _ in scores], color=BLUE)
    axes.set_yticks(range(len(scores)), [_as_it_is(name) for name, *_ in scores], fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    for place, (_, score, count) in enumerate(scores):
        axes.text(score, place, f" {score:.2f} of {count:,}", va="center", fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("F1")
    axes.set_title(title, loc="left")
    _plain(axes)
    return figure


def coverage(curves: Mapping[str, Curve]) -> Figure:
    """Precision of the most confident share of the rows, from `metrics.precision_by_coverage`, of one model or several by name."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    lowest = 0.9
    for (name, (share, precision, _)), color in zip(curves.items(), (BLUE, ORANGE, GREEN), strict=False):
        axes.plot(share, precision, color=color, label=_as_it_is(name))
        lowest = min(lowest, float(precision.min(initial=1.0)))
    axes.axhline(0.95, color="#5b6472", linestyle="--", linewidth=1)
    axes.text(0.0, 0.951, "95% precision", color="#5b6472", fontsize=8, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(lowest - 0.01, 1.005)
    axes.set_xlabel("share of products labelled without review, most confident first")
    axes.set_ylabel("precision")
    axes.set_title("Precision against coverage", loc="left")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(frameon=False, loc="lower left")
    return figure


def intervals(differences: Sequence[tuple[str, float, float, float]], second: str, first: str) -> Figure:
    """(score, difference, low, high) each, as a point with its interval around a line at zero."""
    figure = Figure(figsize=(8, 0.8 + 0.42 * len(differences)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#5b6472", linewidth=1)
    for place, (_, by, low, high) in enumerate(differences):
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axes.plot([by], [place], "o", color=BLUE)
    axes.set_yticks(range(len(differences)), [name for name, *_ in differences])
    axes.invert_yaxis()
    axes.set_xlabel("difference, with its 95% interval")
    # In two lines: names of models are long.
    axes.set_title(_as_it_is(f"{second}\nminus {first}"), loc="left")
    _plain(axes)
    return figure


def estimates(rows: Sequence[tuple[str, float, float, float]], title: str) -> Figure:
    """(name, value, low, high) each, as a point with its interval."""
    figure = Figure(figsize=(8, 1.0 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axes.plot([value], [place], "o", color=BLUE)
    names = short_names([name for name, *_ in rows])
    axes.set_yticks(range(len(rows)), [names[name] for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("with its 95% interval")
    axes.set_title(_as_it_is(title), loc="left")
    _plain(axes)
    return figure


def gains(categories: Sequence[tuple[str, int]], axis: str, title: str) -> Figure:
    """(category, products more or fewer) as bars to either side."""
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(categories)), layout="constrained")
    axes = figure.add_subplot()
    values = [by for _, by in categories]
    drawn = axes.barh(range(len(values)), values, color=[BLUE if by > 0 else ORANGE for by in values])
    axes.bar_label(drawn, [f"{by:+,}" for by in values], padding=3, fontsize=8)
    axes.axvline(0, color="#5b6472", linewidth=1)
    names = short_names([name for name, _ in categories])
    axes.set_yticks(range(len(values)), [names[name] for name, _ in categories], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left")
    _plain(axes)
    return figure


def flows(found: Sequence[tuple[str, str, int]]) -> Figure:
    """(category before, category after, products) as bars."""
    figure = Figure(figsize=(11, 1.2 + 0.36 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(range(len(found)), [products for *_, products in found], color=BLUE)
    axes.bar_label(drawn, [f"{products:,}" for *_, products in found], padding=3, fontsize=8)
    axes.set_yticks(range(len(found)), _arrows(found), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("products")
    axes.set_title("Largest moves: category before → category after", loc="left")
    _plain(axes)
    return figure


def confidences(now: npt.NDArray[np.int64], before: npt.NDArray[np.int64] | None) -> Figure:
    """Shares of the labels by confidence, in equal bins from 0 to 1; those of an earlier run as a line."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    edges = np.linspace(0, 1, len(now) + 1)
    axes.stairs(now / max(1, now.sum()), edges, fill=True, color=BLUE, alpha=0.7, label="now")
    if before is not None:
        axes.stairs(before / max(1, before.sum()), edges, color=ORANGE, linewidth=2, label="before")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.set_xlim(0, 1)
    axes.set_xlabel("confidence of the label")
    axes.set_ylabel("share of the labels")
    axes.set_title("Labels by confidence", loc="left")
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _arrows(pairs: Sequence[tuple[str, str, int]]) -> list[str]:
    names = short_names([path for pair in pairs for path in pair[:2]])
    return [f"{names[one]}  →  {names[other]}" for one, other, _ in pairs]


def short_names(paths: Iterable[str], limit: int = 46) -> dict[str, str]:
    """The last two levels of each category, and the first one too where others end alike, cut to a readable length."""
    levels = {path: path.split(SEPARATOR) for path in paths}
    ends = Counter(tuple(names[-2:]) for names in levels.values())

    def name(names: list[str]) -> str:
        kept = names[-2:]
        if ends[tuple(kept)] > 1 and len(names) > 2:
            kept = [names[0], *(["…"] if len(names) > 3 else []), *kept]
        text = SEPARATOR.join(kept)
        return _as_it_is(text if len(text) <= limit else text[: limit - 1] + "…")

    return {path: name(names) for path, names in levels.items()}


def _as_it_is(name: str) -> str:
    """Matplotlib takes what is between two dollar signs for a formula."""
    return name.replace("$", r"\$")
