"""How often bf16 gives the label of fp32, on a trained model and its real catalog.

python jobs/train.py --catalog ../shared/data/instacart.parquet --text-columns title --max-tokens 32 --epochs 1 --model-name instacart
python benchmarks/precision.py --model models:/instacart@challenger --catalog ../shared/data/instacart.parquet
"""

from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from cataloger.infra import tracking
from cataloger.model import registry
from cataloger.model.tiers import Tiers
from yardsticks import report


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str
    """As in jobs/label.py."""
    catalog: str
    """A Parquet file with the model's text columns."""


def main() -> None:
    config = tyro.cli(Config)
    tracking.connect()
    folder = registry.fetch_model(config.model).folder
    exact, fast = Tiers(folder, "cpu", "fp32"), Tiers(folder, "cpu", "bf16")
    table = pq.read_table(config.catalog, columns=list(exact.spec.text_columns))
    labels = (predictor.label(table) for predictor in (exact, fast))
    left, right = (one.filter(one.column("category").is_valid()) for one in labels)
    same = pc.equal(left.column("category"), right.column("category")).to_numpy()
    sure = left.column("confidence").to_numpy() > 0.9
    rows: list[dict[str, object]] = [
        {"rows": "all", "count": float(len(same)), "same label, %": 100 * float(same.mean())},
        {"rows": "fp32 confidence > 0.9", "count": float(sure.sum()), "same label, %": 100 * float(same[sure].mean())},
    ]
    report("precision", f"{fast.engine.name} against {exact.engine.name}", rows)


if __name__ == "__main__":
    main()
