"""What a night came to: counts and cost, for the page, for MLflow, and for who called the job."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cataloger.data.images import OK, STATUSES, UNREAD
from cataloger.labeling.cost import Cost
from cataloger.publishing.decided import Decided


@dataclass(frozen=True)
class LabelResult:
    """A published snapshot and what it took."""

    run: str
    output: str
    rows: int
    labelled: int
    rejects: int
    cost: Cost
    seconds: float
    mlflow_run: str | None
    images: Mapping[str, int] = field(default_factory=dict)
    """Labels by what became of the row's picture, where the model sees."""
    decided: Decided | None = None
    """What pins and rules did, where there were any."""

    def figures(self) -> dict[str, str]:
        """For the page."""
        figures = {"labelled": f"{self.labelled:,}", "rejected": f"{self.rejects:,}"}
        if self.images:
            lost = {status: count for status, count in self.images.items() if status not in (OK, UNREAD) and count}
            figures |= {f"picture {status}": f"{count:,}" for status, count in sorted(lost.items())}
        figures |= self.decided.figures if self.decided else {}
        if self.cost.rows:
            figures["carried over"] = f"{self.cost.carried / self.cost.rows:.1%}"
            if self.cost.alone:
                figures["of the others by words alone"] = f"{self.cost.alone / self.cost.asked:.1%}"
            if self.cost.checked:
                figures["of these the network says the same"] = f"{self.cost.agreed / self.cost.checked:.1%}"
            figures["rows/s"] = f"{self.cost.rows / self.seconds:,.0f}"
        return figures

    def metrics(self) -> dict[str, float]:
        """For MLflow."""
        return {
            "rows": self.rows,
            "rejects": self.rejects,
            # Also those that there are none of: a chart of many nights has no gaps.
            **{f"images_{of.replace(' ', '_')}": float(self.images.get(of, 0)) for of in STATUSES if self.images},
            **(self.decided.metrics if self.decided else {}),
            **self.cost.metrics(self.seconds),
            "seconds": self.seconds,
            "rows_per_second": self.rows / self.seconds,
        }
