import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cataloger.bundle import digest, read_spec, write_spec
from cataloger.errors import ConfigError
from cataloger.model.ensemble import fetch_models
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES
from conftest import make_bundle

TEXTS = pa.table(
    {
        "title": ["Leather belt", "Garden hose 20 m", None, "Ledergürtel"],
        "brand": [None, "Gardena", None, "x"],
        "description": pa.nulls(4, pa.string()),
    }
)


@pytest.fixture
def two(bundle: Path, tiny_model: Path, labelled: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Bundles of the same categories and different heads, one with another temperature."""
    other = make_bundle(tmp_path / "other", tiny_model, labelled, "mean")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    torch.manual_seed(5)
    weights["classifier.weight"] = torch.randn_like(weights["classifier.weight"]) * 3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    write_spec(other, replace(read_spec(other), temperature=2.0))
    return bundle, other


@pytest.mark.parametrize("head", ["one_category", MANY_CATEGORIES])
def test_it_says_the_mean_of_what_each_says(two: tuple[Path, Path], tmp_path: Path, head: str) -> None:
    folders = []
    for number, folder in enumerate(two):
        own = shutil.copytree(folder, tmp_path / f"{head}-{number}")
        spec = read_spec(own)
        several = (
            {"thresholds": (), "category_thresholds": (0.0,) * len(spec.categories)} if head == MANY_CATEGORIES else {}
        )
        write_spec(own, replace(spec, head=head, **several))
        folders.append(own)
    ensemble = fetch_models([str(folder) for folder in folders])
    assert ensemble.uri == f"{folders[0]} + {folders[1]}"
    size = len(read_spec(folders[0]).categories)
    names, shares = ("category", "confidence") if head == "one_category" else ("categories", "confidences")

    def probabilities(folder: Path) -> np.ndarray:
        found = Tiers(folder).label(TEXTS, alternatives=size - 1)
        rows = []
        for row in found.filter(found.column("confidence").is_valid()).to_pylist():
            given = (
                dict(zip(row[names], row[shares], strict=True))
                if head == MANY_CATEGORIES
                else {row[names]: row[shares]}
            )
            given |= {one["category"]: one["confidence"] for one in row["alternatives"]}
            rows.append([given[path] for path in sorted(given)])
        return np.array(rows)

    np.testing.assert_allclose(
        probabilities(ensemble.folder), (probabilities(folders[0]) + probabilities(folders[1])) / 2, atol=2e-6
    )


def test_one_is_that_one(bundle: Path) -> None:
    assert fetch_models([str(bundle)]).folder == bundle


def test_each_member_decides_the_digest(two: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(str, two)
    found = {
        digest(fetch_models(names).folder) for names in ([first], [first, second], [second, first], [first, first])
    }
    assert len(found) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_tokens": 16}, "reads a row in another way than"),
        ({"text_columns": ("title",)}, "reads a row in another way than"),
        ({"head": MANY_CATEGORIES, "thresholds": ()}, "has another kind of answer than"),
    ],
)
def test_those_that_cannot_answer_together_are_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    other = shutil.copytree(bundle, tmp_path / "other")
    spec = read_spec(other)
    if "head" in changes:
        changes = {**changes, "category_thresholds": (0.5,) * len(spec.categories)}
    write_spec(other, replace(spec, **changes))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=sentence):
        fetch_models([str(bundle), str(other)])


def test_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--model: name at least one model"):
        fetch_models([])
