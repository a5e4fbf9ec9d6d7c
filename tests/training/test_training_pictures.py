"""Trainings of models that see: with any number of workers, and with any number of categories per product."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import EvaluateConfig, LabelConfig, TrainConfig
from cataloger.evaluation.evaluate import evaluate
from cataloger.labeling.job import label
from cataloger.model.pyfunc import Categorizer
from cataloger.model.registry import fetch_model
from cataloger.spec import MANY_CATEGORIES
from cataloger.training.job import train
from conftest import losses, published
from drawn import shop


def settings(tiny_model: Path, tiny_sight: Path, **changes: Any) -> TrainConfig:
    found = {
        "catalog": "labelled.parquet",
        "text_columns": ("title",),
        "image_column": "image",
        "base_model": str(tiny_model),
        "image_model": str(tiny_sight),
        "epochs": 2,
        "batch_size": 16,
        "max_tokens": 12,
        "learning_rate": 2e-3,
        "precision": "fp32",
        "model_name": "seeing",
    }
    return TrainConfig(**{**found, **changes})


@pytest.mark.slow
def test_two_workers_see_what_one_sees(
    ray_session: None, tiny_model: Path, tiny_sight: Path, working_folder: Path
) -> None:
    """The same pictures, altered alike, and the same rows without one. Without dropout, which differs by worker."""
    pq.write_table(pa.table(shop(300, 0)), "labelled.parquet")
    calm = {"dropout": 0.0, "image_augmentation": "strong"}
    one, two = (
        train(settings(tiny_model, tiny_sight, **calm, num_workers=workers, storage=f"with-{workers}"))
        for workers in ("1", "2")
    )
    curve = losses(one.run_id)
    assert len(curve) > 20
    assert curve[-5:].mean() < 0.9 * curve[:5].mean(), "it learns"
    np.testing.assert_allclose(losses(two.run_id), curve, rtol=2e-3)


@pytest.mark.slow
def test_any_number_of_categories(ray_session: None, tiny_model: Path, tiny_sight: Path, working_folder: Path) -> None:
    """The thing, which the title says, and the colour, which the picture shows."""
    rows = shop(600, 0)
    rows["category_path"] = [path.split(" > ") for path in rows["category_path"]]
    pq.write_table(pa.table(rows), "labelled.parquet")
    result = train(settings(tiny_model, tiny_sight, epochs=8, patience=8, storage="many"))
    bundle = fetch_model(result.model_uri).folder
    assert read_spec(bundle).head == MANY_CATEGORIES
    fresh = shop(60, 1)
    fresh["category_path"] = [path.split(" > ") for path in fresh["category_path"]]
    fresh["image"][0] = None
    pq.write_table(pa.table(fresh), "shop.parquet")
    asked = {"catalog": "shop.parquet", "model": (str(bundle),), "precision": "fp32"}
    label(LabelConfig(**asked, output="labels"))  # type: ignore[arg-type]
    labels = {row["id"]: row for row in published().to_pylist()}
    right = [
        set(labels[name]["categories"]) == set(paths)
        for name, paths in zip(fresh["id"], fresh["category_path"], strict=True)
    ]
    assert np.mean(right) > 0.7
    assert labels["P1-0"]["image_status"] == "missing"
    found = evaluate(EvaluateConfig(**asked, predictions="said.parquet"))  # type: ignore[arg-type]
    assert found.overall.accuracy == pytest.approx(np.mean(right))
    said = pq.read_table("said.parquet").to_pylist()
    assert {row["id"]: sorted(row["categories"]) for row in said} == {
        name: sorted(row["categories"]) for name, row in labels.items()
    }
    assert {row["slice.decided_by"] for row in said if row["id"] != "P1-0"} >= {"picture"}
    served = Categorizer(bundle).predict(pa.table(fresh).to_pandas().set_index("id"))
    assert [sorted(row) for row in served["categories"]] == [sorted(labels[name]["categories"]) for name in fresh["id"]]
