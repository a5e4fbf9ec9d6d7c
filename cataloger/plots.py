"""Pictures of metrics, drawn without a display."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from cataloger.taxonomy import SEPARATOR

# Okabe & Ito (2008): told apart by colour-blind readers.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def confused_pairs(pairs: Sequence[tuple[str, str, int]], support: dict[str, int]) -> Figure:
    """Bars of the (true category, predicted category, rows) that were confused most, worst on top."""
    figure = Figure(figsize=(11, 1.2 + 0.42 * max(1, len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    counts = [count for *_, count in pairs]
    axes.barh(range(len(pairs)), counts, color=BLUE)
    axes.set_yticks(
        range(len(pairs)), [f"{_short(true)}  →  {_short(predicted)}" for true, predicted, _ in pairs], fontsize=9
    )
    axes.invert_yaxis()
    for place, (true, _, count) in enumerate(pairs):
        axes.text(count, place, f" {count} ({count / support[true]:.0%} of the true category)", va="center", fontsize=8)
    axes.set_xlim(0, 1.45 * max(counts, default=1))
    axes.set_xlabel("products")
    axes.set_title("Most confused: true category → predicted category", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def coverage(curve: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]) -> Figure:
    """Precision of the most confident share of the rows, from `metrics.precision_by_coverage`."""
    share, precision, _ = curve
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(share, precision, color=BLUE)
    axes.axhline(0.95, color=ORANGE, linestyle="--", linewidth=1)
    axes.text(0.0, 0.951, "95% precision", color=ORANGE, fontsize=8, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(min(0.9, float(precision.min(initial=1.0))) - 0.01, 1.005)
    axes.set_xlabel("share of products labelled without review, most confident first")
    axes.set_ylabel("precision")
    axes.set_title("Precision against coverage", loc="left")
    axes.grid(alpha=0.3)
    return figure


def _short(path: str, limit: int = 46) -> str:
    """The last two levels, cut to a readable length."""
    name = SEPARATOR.join(path.split(SEPARATOR)[-2:])
    return name if len(name) <= limit else name[: limit - 1] + "…"
