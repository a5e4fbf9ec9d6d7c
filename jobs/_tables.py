"""Results as terminal tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cataloger.evaluation import Evaluation


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> None:
    """A table; rows whose mark is true are bold. Text columns left, the others as they come."""
    table = Table(header_style="")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number < len(marked) and marked[number] else "")
    console = Console()
    # A pipe or a log file has no width of its own: leave room for long paths.
    console = console if console.is_terminal else Console(width=160)
    console.print(f"\n{title}", style="bold", highlight=False)
    console.print(table)


def show_evaluation(result: "Evaluation") -> None:
    """Scores by level, then those of the whole path."""
    rows = [
        (f"level {number}", f"{level.accuracy:.4f}", f"{level.weighted_f1:.4f}", f"{level.macro_f1:.4f}")
        for number, level in enumerate(result.levels, 1)
    ]
    rows.append(("mean over levels", "", f"{result.mean_weighted_f1:.4f}", ""))
    rows.append(("hierarchical F1", "", f"{result.hierarchical_f1:.4f}", ""))
    if result.multi_label:
        rows.append(("micro F1", "", f"{result.overall.micro_f1:.4f}", ""))
        rows.append(("F1 by product, mean", "", f"{result.overall.example_f1:.4f}", ""))
    rows.append(("calibration error", f"{result.calibration_error:.4f}", "", ""))
    rows.append(("coverage at 95% precision", f"{result.coverage_at_95:.4f}", "", ""))
    accuracy = "all right" if result.multi_label else "accuracy"
    show(f"{result.model} on {result.rows:,} products", ("", accuracy, "weighted F1", "macro F1"), rows)
