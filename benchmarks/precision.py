"""How often bf16 gives the label of fp32, on a trained model and its real catalog.

python jobs/train.py --catalog ../shared/data/instacart.parquet --text-columns title --max-tokens 32 --epochs 1 --model-name instacart
python benchmarks/precision.py --model models:/instacart@challenger --catalog ../shared/data/instacart.parquet
"""

from dataclasses import dataclass

import pyarrow.parquet as pq
import tyro

from cataloger.data.text import compose
from cataloger.infra import tracking
from cataloger.model import registry
from cataloger.model.predictor import Bundle
from yardsticks import report, tokens_of


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
    exact, fast = Bundle(folder, "cpu", "fp32"), Bundle(folder, "cpu", "bf16")
    spec = exact.spec
    texts = compose(pq.read_table(config.catalog, columns=list(spec.text_columns)), spec.text_columns, spec.max_tokens)
    tokens = tokens_of(folder, texts.drop_null(), spec.max_tokens)
    left, right = exact.predict(tokens), fast.predict(tokens)
    same, sure = left.labels == right.labels, left.confidence > 0.9
    rows: list[dict[str, object]] = [
        {"rows": "all", "count": float(len(same)), "same label, %": 100 * float(same.mean())},
        {"rows": "fp32 confidence > 0.9", "count": float(sure.sum()), "same label, %": 100 * float(same[sure].mean())},
    ]
    report("precision", f"{fast.engine.name} against {exact.engine.name}", rows)


if __name__ == "__main__":
    main()
