import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModel, AutoTokenizer

from cataloger.config import LabelConfig
from cataloger.data import units
from cataloger.data.text import compose
from cataloger.data.texts import NO_TEXT
from cataloger.infra.storage import locate
from cataloger.labeling.job import label
from cataloger.model.predictor import Predictor
from cataloger.publishing import snapshot
from cataloger.taxonomy import prefix
from conftest import free_of_ray, make_bundle, published

UNIT = 600
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def catalog(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files, 900 rows, two units; some rows without text, many repeats."""
    monkeypatch.setattr(units, "MIN_UNIT_ROWS", UNIT)
    folder = working_folder / "catalog"
    folder.mkdir()
    for part in range(3):
        ids = np.arange(part * 300, (part + 1) * 300)
        title = [None if i % 150 == 0 else f"product {i % 400} of brand {i % 13}" for i in ids]
        brand = [None if i % 3 == 0 or i % 150 == 0 else f"brand {i % 13}" for i in ids]
        table = pa.table({"sku": ids, "title": title, "brand": brand, "description": pa.nulls(len(ids))})
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=100)
    return folder


def test_every_row_is_labelled_once_as_a_plain_loop_would(catalog: Path, bundle: Path) -> None:
    result = label(
        LabelConfig(catalog=str(catalog), output="labels", model=(str(bundle),), id_column="sku", precision="fp32")
    )
    assert (result.rows, result.labelled, result.rejects) == (900, 894, 6)
    labels = published()
    source = pq.read_table(catalog)
    texts = compose(source, ("title", "brand", "description"), 32)
    readable = np.array(texts.is_valid())
    assert labels.column("id").to_pylist() == source.column("sku").to_numpy()[readable].tolist(), (
        "ids as they came, in order"
    )
    loaded = Predictor(bundle)
    found = loaded.answer(loaded.input.encode(texts.drop_null()), alternatives=3).to_pydict()
    expected = [loaded.spec.categories[i] for i in found["label"]]
    assert labels.column("category").to_pylist() == expected
    np.testing.assert_allclose(labels.column("confidence").to_numpy(), found["confidence"], rtol=1e-3)
    row = labels.slice(77, 1).to_pylist()[0]
    assert [a["category"] for a in row["alternatives"]] == [
        loaded.spec.categories[i] for i in found["alternatives"][77]
    ]
    assert len(row["level_confidences"]) == row["category"].count(" > ") + 1
    assert row["level_confidences"][-1] == pytest.approx(row["confidence"], rel=1e-5)
    for row in labels.to_pylist():
        levels = row["level_confidences"]
        passed = [depth for depth, sure in enumerate(levels, 1) if sure >= (0.5 if depth == len(levels) else 0.8)]
        expected = prefix(row["category"], passed[-1]) if passed else None
        assert row["trusted_category"] == expected
        assert row["needs_review"] == (row["confidence"] < 0.5) == (expected != row["category"])
    trusted = set(labels.column("trusted_category").to_pylist())
    assert None in trusted, "some rows are trusted at no level"
    assert trusted - set(labels.column("category").to_pylist()) - {None}, "some rows back off"
    assert len(row["text_hash"]) == 32
    distinct = texts.slice(0, UNIT).drop_null().unique(), texts.slice(UNIT).drop_null().unique()
    assert result.cost.forwarded <= sum(map(len, distinct)), "repeats within a unit go through the model once"


def test_rejects_are_listed_with_their_reason(catalog: Path, bundle: Path) -> None:
    result = label(LabelConfig(catalog=str(catalog), output="labels", model=(str(bundle),), id_column="sku"))
    rejects = pq.read_table(f"labels/run={result.run}/_rejects")
    assert rejects.column("id").to_pylist() == list(range(0, 900, 150))
    assert set(rejects.column("reason").to_pylist()) == {NO_TEXT}
    manifest = json.loads(Path(f"labels/run={result.run}/_manifest.json").read_text())
    assert manifest["rows"] == manifest["labelled"] + manifest["rejects"] == 900
    assert sum(file["rows"] for file in manifest["files"]) == manifest["rows"]


def test_the_same_command_again_costs_nothing_and_another_setting_is_another_run(catalog: Path, bundle: Path) -> None:
    config = LabelConfig(catalog=str(catalog), output="labels", model=(str(bundle),), id_column="sku")
    first = label(config)
    again = label(config)
    assert (again.run, again.cost.forwarded, again.mlflow_run) == (first.run, 0, None)
    other = label(LabelConfig(**{**vars(config), "alternatives": 1}))
    assert other.run != first.run
    assert json.loads(Path("labels/_latest.json").read_text())["run"] == other.run
    assert snapshot.is_complete(locate("labels"), first.run), "yesterday's run is still whole"


def test_a_resumed_run_keeps_finished_parts(catalog: Path, bundle: Path) -> None:
    config = LabelConfig(catalog=str(catalog), output="labels", model=(str(bundle),), id_column="sku")
    first = label(config)
    folder = Path("labels") / f"run={first.run}"
    kept = folder / "part-00000.parquet"
    before, stamp = published(), kept.stat().st_mtime_ns
    for name in ("_manifest.json", "part-00001.parquet"):
        (folder / name).unlink()
    Path("labels/_latest.json").unlink()
    again = label(config)
    assert again.run == first.run
    assert kept.stat().st_mtime_ns == stamp
    assert published().equals(before)


def test_numeric_and_null_columns_are_text_too(working_folder: Path, bundle: Path) -> None:
    pq.write_table(
        pa.table({"id": ["a", "b"], "title": [1.5, None], "brand": pa.nulls(2), "description": [True, None]}),
        "c.parquet",
    )
    result = label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), max_reject_fraction=1.0))
    assert (result.labelled, result.rejects) == (1, 1)
    assert published().column("id").to_pylist() == ["a"]


def test_a_catalog_without_any_text_gives_rejects_only(working_folder: Path, bundle: Path) -> None:
    pq.write_table(pa.table({"id": [1], "title": [""], "brand": [" "], "description": ["\n"]}), "c.parquet")
    result = label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), max_reject_fraction=1.0))
    assert (result.labelled, result.rejects) == (0, 1)
    assert "category" in published().column_names


PIPELINE = """
import json, sys
sys.modules["cataloger"] = None  # not importable
from transformers import pipeline
folder, texts = sys.argv[1], json.load(open(sys.argv[2]))
classify = pipeline("text-classification", folder, trust_remote_code=True)
json.dump([answer["label"] for answer in classify(texts, truncation=True)], open(sys.argv[3], "w"))
"""


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_transformers_alone_gives_the_labels_that_were_published(
    tiny_model: Path, labelled: Path, working_folder: Path, job: Callable[..., tuple[int, str, str]], pooling: str
) -> None:
    """200 rows, in a process where cataloger cannot be imported."""
    base = AutoModel.from_pretrained(tiny_model)
    for weight in base.parameters():
        # So untrained, the first token's vector would be the same for all texts.
        weight.data *= 10 if weight.ndim > 1 else 1
    base.save_pretrained(working_folder / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(working_folder / "base")
    folder = make_bundle(working_folder / "bundle", working_folder / "base", labelled, pooling)
    rows = pq.read_table(labelled).slice(0, 200)
    pq.write_table(rows, "some.parquet")
    code, _, err = job(
        "label", "--catalog", "some.parquet", "--output", "labels", "--model", folder, "--precision", "fp32"
    )
    assert code == 0, err
    Path("texts.json").write_text(json.dumps(compose(rows, ("title", "brand", "description"), 32).to_pylist()))
    environment = {**free_of_ray(), "HF_MODULES_CACHE": str(working_folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PIPELINE, str(folder), "texts.json", "answers.json"]
    subprocess.run(command, env=environment, check=True, timeout=300)
    answers = json.loads(Path("answers.json").read_text())
    assert answers == published().column("category").to_pylist()
    assert len(set(answers)) > 3, "a model that always says the same would prove nothing"
