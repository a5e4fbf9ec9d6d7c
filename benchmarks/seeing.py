"""What text, pictures and both are worth: models of each on magento's products, and of both where half of the pictures are gone.

python benchmarks/seeing.py
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import tyro

from cataloger.bundle import read_spec
from cataloger.config import EvaluateConfig, TrainConfig
from cataloger.data.inputs import input_of
from cataloger.evaluation.evaluate import evaluate
from cataloger.evaluation.significance import Difference, accuracy_difference, mcnemar
from cataloger.model.predictor import Predictor
from cataloger.model.registry import fetch_model
from cataloger.training.job import train
from yardsticks import report, workroom

REAL = Path(__file__).parents[2] / "shared" / "data" / "magento.parquet"
# One entry per seed: a session may be too short for all of them, and the table is made of what is there.
SCORES = Path(__file__).parent / "results" / "seeing_scores.json"
TEXT, PICTURES, BOTH = "text", "pictures", "both"
READ: dict[str, dict[str, Any]] = {
    TEXT: {"text_columns": ("title", "description")},
    PICTURES: {"text_columns": (), "image_column": "image"},
    BOTH: {"text_columns": ("title", "description"), "image_column": "image"},
}
# Rows that are scored: a fifth, whose products training never saw in any variant.
TEST = 0.2


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is trained once, those with figures in results/seeing_scores.json not again."""


def main() -> None:
    config = tyro.cli(Config)
    scores: dict[str, Any] = json.loads(SCORES.read_text()) if SCORES.exists() else {}
    with workroom() as room:
        for seed in config.seeds:
            if str(seed) not in scores:
                scores[str(seed)] = measure(seed, room)
                SCORES.write_text(json.dumps(scores, indent=1))
    report("seeing", "Magento's products by text, by picture and by both", [{"seed": s, **scores[s]} for s in scores])


def measure(seed: int, room: Path) -> dict[str, Any]:
    """Accuracies on the test rows, and exact McNemar tests on the same rows."""
    bundles = {what: learn(what, seed, room) for what in READ}
    blind = room / "half.parquet"
    pq.write_table(half_blind(pq.read_table(REAL)), blind)
    said = {what: answers(bundle, REAL, room) for what, bundle in bundles.items()}
    without = answers(bundles[BOTH], blind, room)
    true = said[TEXT]["true_category"]
    right = {what: (table["category"] == true).to_numpy() for what, table in said.items()}
    better = max((TEXT, PICTURES), key=lambda what: right[what].mean())
    gone = pc.is_null(pq.read_table(blind, columns=["image"])["image"]).to_numpy()[said[TEXT]["row"]]
    left = (without["category"] == true).to_numpy()
    gain = accuracy_difference("accuracy", right[better], right[BOTH])
    loss = accuracy_difference("accuracy", right[TEXT][gone], left[gone])
    networks = {what: network_answers(bundles[what], said[TEXT]["row"].to_numpy()) for what in READ}
    networks["mean of two"] = (networks[TEXT] + networks[PICTURES]) / 2
    names = np.array(read_spec(bundles[BOTH]).categories)
    return {
        "rows": len(true),
        **{what: float(found.mean()) for what, found in right.items()},
        f"{BOTH} - better one": shown(gain),
        "p": mcnemar(right[better], right[BOTH]).p_value,
        "rows without picture": int(gone.sum()),
        f"{TEXT} there": float(right[TEXT][gone].mean()),
        f"{BOTH} there": float(left[gone].mean()),
        f"{BOTH} - {TEXT} there": shown(loss),
        "p there": mcnemar(right[TEXT][gone], left[gone]).p_value,
        **{f"{what}, network": float((names[odds.argmax(axis=1)] == true).mean()) for what, odds in networks.items()},
    }


def shown(apart: Difference) -> str:
    """With its 95% interval."""
    return f"{apart.by:+.3f} ({apart.low:+.3f} to {apart.high:+.3f})"


def learn(what: str, seed: int, room: Path) -> Path:
    """The bundle of a training with its defaults."""
    about = {"catalog": str(REAL), "group_column": "group_id", "test_fraction": TEST, "seed": seed, **READ[what]}
    result = train(TrainConfig(**about, storage=str(room / "checkpoints"), model_name=what))
    return fetch_model(result.model_uri).folder


def half_blind(table: pa.Table) -> pa.Table:
    """Every other row without its picture."""
    images = table["image"].combine_chunks()
    seen = pa.array(np.arange(len(table)) % 2 == 0)
    return table.set_column(
        table.column_names.index("image"), "image", pc.if_else(seen, images, pa.scalar(None, images.type))
    )


def answers(bundle: Path, catalog: Path, room: Path) -> Any:
    """What a model says of the test rows, in the order of the catalog."""
    said = str(room / "said.parquet")
    evaluate(EvaluateConfig(catalog=str(catalog), model=(str(bundle),), split="test", predictions=said))
    return (
        pq.read_table(said, columns=["row", "true_category", "category"])
        .to_pandas()
        .astype({"category": str, "true_category": str})
    )


def network_answers(bundle: Path, rows: Any) -> np.ndarray:
    """[rows, categories] probabilities of the network alone."""
    predictor = Predictor(bundle, "cpu", "auto")
    given = input_of(predictor.spec, bundle)
    encoded = given.encode(given.read(pq.read_table(REAL, columns=list(given.columns)).take(pa.array(rows))).values)
    words = predictor.spec.words
    temperature = words.network_temperature if words else predictor.spec.temperature
    odds = np.empty((len(rows), len(predictor.spec.categories)), np.float32)
    for chosen, logits in predictor.logits(encoded):
        odds[chosen] = torch.softmax(logits / temperature, dim=1).cpu().numpy()
    return odds


if __name__ == "__main__":
    main()
