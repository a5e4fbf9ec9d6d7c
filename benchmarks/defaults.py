"""What training would choose if a catalog had not been among those that its rules were drawn through, and what that one loses by it.

On validation rows; what was trained once is kept in results/defaults_scores.json: remove the file where trainings have changed.

python benchmarks/defaults.py --sets instacart
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from cataloger.training import defaults
from cataloger.training.job import train
from cataloger.training.plan import plan
from quality import training
from yardsticks import report, workroom

SCORES = Path(__file__).parent / "results" / "defaults_scores.json"
# What the validation rows of each catalog preferred: training rows, epochs, rows of a batch, weight of the adversary (docs/quality.md).
PREFERRED = {
    "magento": (1_300, 10, 32, 0.0),
    "fashion10k": (7_200, 8, 32, 0.0),
    "mwpd2020": (12_000, 5, 32, 1.0),
    "instacart": (37_000, 6, 128, 2.0),
}
# The best settings known beside what is chosen: they won on instacart.
ELSE = {"label_smoothing": 0.1, "layer_decay": 0.85}
CHOSEN, WITHOUT = "training's own choice", "rules without this catalog"
FIGURES = {
    "val_accuracy": "words and network: accuracy",
    "val_macro_f1": "macro F1",
    "val_network_accuracy": "network: accuracy",
}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[Literal["fashion10k", "mwpd2020", "instacart"], ...] = ("fashion10k", "instacart")
    """Catalogs."""
    seed: int = 0
    """Of each training."""


def main() -> None:
    config = tyro.cli(Config)
    scores: dict[str, dict[str, Any]] = json.loads(SCORES.read_text()) if SCORES.exists() else {}
    rows: list[dict[str, object]] = []
    with workroom() as room:
        for name in config.sets:
            own = plan(training(name, config.seed, room)).config
            assert own.epochs
            assert own.batch_size
            chosen = {key: getattr(own, key) for key in ("epochs", "batch_size", "adversarial")}
            shown = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in ELSE.items())
            for way, settings in ((CHOSEN, chosen), (WITHOUT, without(name)), (f"chosen, and {shown}", chosen | ELSE)):
                key = f"{name} {config.seed} {json.dumps(settings, sort_keys=True)}"
                if key not in scores:
                    found = train(training(name, config.seed, room, **settings)).metrics
                    scores[key] = {figure: found[figure] for figure in FIGURES}
                    SCORES.write_text(json.dumps(scores, indent=1))
                own_figures = {title: scores[key][figure] for figure, title in FIGURES.items()}
                rows.append({"catalog": name, "": way, **{of: float(settings[of]) for of in chosen}, **own_figures})
    report("defaults", "The defaults, and those of rules that never saw the catalog: on validation rows", rows)


def without(left_out: str) -> dict[str, Any]:
    """What the rules would choose for a catalog, drawn through the others."""
    others = {name: preferred for name, preferred in PREFERRED.items() if name != left_out}
    rows = PREFERRED[left_out][0]
    decades = [6 - math.log10(size) for size, *_ in others.values()]
    slope, at_a_million = np.polyfit(decades, [epochs for _, epochs, *_ in others.values()], 1)
    # Beyond the least batch there is one catalog to go by, and without it nothing.
    per_batch_row = [size / batch for size, _, batch, _ in others.values() if batch > defaults.LEAST_BATCH]
    batch = defaults.LEAST_BATCH
    if per_batch_row:
        batch = min(defaults.MOST_BATCH, max(batch, 1 << round(math.log2(rows / np.mean(per_batch_row)))))
    # The least that any catalog preferred to none.
    adversarial = min(weight for *_, weight in others.values() if weight)
    epochs = max(1, min(defaults.MOST_EPOCHS, round(at_a_million + slope * (6 - math.log10(rows)))))
    return {"epochs": epochs, "batch_size": batch, "adversarial": adversarial}


if __name__ == "__main__":
    main()
