"""Several models in one night: from the command line, carried over, and scored."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from conftest import make_bundle

pytestmark = pytest.mark.usefixtures("ray_session")
Job = Callable[..., tuple[int, str, str]]


def published(output: Path) -> dict[str, list[object]]:
    path = json.loads((output / "_latest.json").read_text())["path"]
    return dict(pq.read_table(output / path).sort_by("id").to_pydict())


def test_two_models_label_and_are_scored_as_one(
    job: Job, bundle: Path, tiny_model: Path, labelled: Path, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", tiny_model, labelled, "mean")
    weights = load_file(other / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].flip(0).contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    labels = {}
    for name, models in {"first": [bundle], "second": [other], "both": [bundle, other]}.items():
        flags = ("--catalog", labelled, "--output", tmp_path / name, "--precision", "fp32", "--alternatives", 100)
        code, _, err = job("label", *flags, "--model", *models)
        assert code == 0, err
        labels[name] = published(tmp_path / name)
    for row in range(0, 1_500, 100):
        share = {name: found["confidence"][row] for name, found in labels.items()}
        category = labels["both"]["category"][row]

        def of(name: str, row: int = row, category: object = category) -> float:
            found = {labels[name]["category"][row]: labels[name]["confidence"][row]}
            found |= {one["category"]: one["confidence"] for one in labels[name]["alternatives"][row]}  # type: ignore[union-attr]
            return float(found.get(category, 0.0))  # type: ignore[arg-type]

        np.testing.assert_allclose(share["both"], (of("first") + of("second")) / 2, atol=2e-5)
    # The next night carries all labels over: the same models, the same texts.
    more = pq.read_table(labelled).slice(0, 300)
    pq.write_table(more, tmp_path / "less.parquet")
    flags = ("--output", tmp_path / "both", "--precision", "fp32", "--alternatives", 100, "--max-missing-fraction", 1)
    code, out, err = job("label", "--catalog", tmp_path / "less.parquet", *flags, "--model", bundle, other)
    assert code == 0, err
    assert "300" in out
    manifest = json.loads(next((tmp_path / "both").glob("run=*/_manifest.json")).read_text())
    assert manifest["model"] == f"{bundle} + {other}"
    code, out, err = job("evaluate", "--catalog", labelled, "--model", bundle, other)
    assert code == 0, err
    assert f"{bundle} + {other}" in out


def test_models_that_read_in_other_ways_are_refused(job: Job, bundle: Path, labelled: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(bundle, tmp_path / "other")
    about = json.loads((other / "cataloger.json").read_text())
    (other / "cataloger.json").write_text(json.dumps({**about, "max_tokens": 9}))
    code, _, err = job("label", "--catalog", labelled, "--output", tmp_path / "o", "--model", bundle, other)
    assert code == 2
    assert "make one model of both with jobs/compress.py" in err
    assert not (tmp_path / "o").exists()
