"""Does what is trusted keep its promise? Thresholds from one half of the held-out rows, checked on the other half.

And the thresholds of whole trainings of words alone, which are fitted by cross-fitting: each checked on another fifth of the rows.

python benchmarks/trust.py
"""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
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
            rows.append({"catalog": name, "target": target, "threshold": "as published", **published(name, target)})
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
            model=(trained.model_uri,),
            split="all" if official else "test",
            predictions=f"{name}-predictions.parquet",
        )
    )
    found = pq.read_table(f"{name}-predictions.parquet").to_pandas()
    return found["confidence"].to_numpy(np.float64), _right(found)


def _right(found: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return (found["category"].astype(str) == found["true_category"].astype(str)).to_numpy()


def published(name: str, target: float) -> dict[str, object]:
    """Of trainings whose held-out rows begin elsewhere each time: what is not marked for review, on these rows."""
    official = name == "mwpd2020"
    catalog = str(REAL / name / "train.parquet" if official else REAL / f"{name}.parquet")
    shares, precisions = [], []
    for number in range(SPLITS):
        config = TrainConfig(
            catalog=catalog,
            base_model="none",
            model_name=f"{name}-{number}",
            text_columns=("title",),
            max_tokens=SETTINGS[name]["max_tokens"],
            target_precision=target,
            test_fraction=0.2,
            test_start=number / SPLITS,
        )
        file = f"{name}-{number}.parquet"
        evaluate(EvaluateConfig(catalog=catalog, model=(train(config).model_uri,), split="test", predictions=file))
        found = pq.read_table(file).to_pandas()
        trusted = found[~found["needs_review"]]
        precisions.append(float(_right(trusted).mean()) if len(trusted) else math.nan)
        shares.append(len(trusted) / len(found))
    return _shown(precisions, shares, target)


def check(
    confidence: Array,
    right: npt.NDArray[np.bool_],
    target: float,
    threshold_of: Callable[[Array, npt.NDArray[np.bool_], float], float],
) -> dict[str, object]:
    coverages, precisions = [], []
    for seed in range(SPLITS):
        rows = np.random.default_rng(seed).permutation(len(right))
        known, others = np.array_split(rows, 2)
        trusted = others[confidence[others] >= threshold_of(confidence[known], right[known], target)]
        precisions.append(float(right[trusted].mean()) if len(trusted) else math.nan)
        coverages.append(len(trusted) / len(others))
    return _shown(precisions, coverages, target)


def _shown(precisions: Sequence[float], shares: Sequence[float], target: float) -> dict[str, object]:
    kept = sum(not precision < target for precision in precisions)
    return {
        "splits that keep it": f"{kept} of {len(precisions)}",
        "precision, mean": float(np.nanmean(precisions)),
        "trusted, mean": float(np.mean(shares)),
    }


if __name__ == "__main__":
    main()
