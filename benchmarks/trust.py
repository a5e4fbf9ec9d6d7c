"""Does what is trusted keep its promise? Thresholds from one half of the held-out rows, checked on the other half.

python benchmarks/trust.py
"""

import math
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cataloger.config import EvaluateConfig, TrainConfig
from cataloger.evaluation.evaluate import evaluate
from cataloger.heads.metrics import coverage_at, trusted_from
from cataloger.training.job import train
from quality import REAL, SETTINGS
from yardsticks import report, workroom

SPLITS = 10
# On fashion10k all answers together are right more often than 95%: there a higher precision is asked for.
TARGETS = {"fashion10k": 0.98, "instacart": 0.95, "mwpd2020": 0.95}
Array = npt.NDArray[np.float64]


def main() -> None:
    rows: list[dict[str, object]] = []
    ways: dict[str, Callable[[Array, npt.NDArray[np.bool_], float], float]] = {
        "shown with 90% confidence": trusted_from,
        "as often right on the calibration rows": lambda *found: coverage_at(*found)[1],
    }
    with workroom() as room:
        os.chdir(room)  # for checkpoints and predictions
        for name, target in TARGETS.items():
            confidence, right = answers(name)
            for title, threshold_of in ways.items():
                rows.append(
                    {
                        "catalog": name,
                        "target": target,
                        "threshold": title,
                        **check(confidence, right, target, threshold_of),
                    }
                )
    report("trust", f"Precision of what is trusted on rows that were not looked at, {SPLITS} splits each", rows)


def answers(name: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """(confidence, whether it is right) of the held-out rows, by words alone: a training takes half a minute."""
    official, settings = name == "mwpd2020", {key: SETTINGS[name][key] for key in ("text_columns", "max_tokens")}
    catalog = REAL / name / "train.parquet" if official else REAL / f"{name}.parquet"
    held_out = {} if official else {"test_fraction": 0.2}
    trained = train(TrainConfig(catalog=str(catalog), base_model="none", model_name=name, **settings, **held_out))
    scored = REAL / name / "test.parquet" if official else catalog
    evaluate(
        EvaluateConfig(
            catalog=str(scored),
            model=trained.model_uri,
            split="all" if official else "test",
            predictions=f"{name}-predictions.parquet",
        )
    )
    found = pq.read_table(f"{name}-predictions.parquet").to_pandas()
    return found["confidence"].to_numpy(np.float64), (
        found["category"].astype(str) == found["true_category"].astype(str)
    ).to_numpy()


def check(
    confidence: Array,
    right: npt.NDArray[np.bool_],
    target: float,
    threshold_of: Callable[[Array, npt.NDArray[np.bool_], float], float],
) -> dict[str, object]:
    kept, coverages, precisions = 0, [], []
    for seed in range(SPLITS):
        rows = np.random.default_rng(seed).permutation(len(right))
        known, others = np.array_split(rows, 2)
        trusted = others[confidence[others] >= threshold_of(confidence[known], right[known], target)]
        precision = right[trusted].mean() if len(trusted) else math.nan
        kept += not precision < target
        precisions.append(precision)
        coverages.append(len(trusted) / len(others))
    return {
        "splits that keep it": f"{kept} of {SPLITS}",
        "precision, mean": float(np.nanmean(precisions)),
        "trusted, mean": float(np.mean(coverages)),
    }


if __name__ == "__main__":
    main()
