import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import pyarrow as pa
import pytest

from cataloger.config import EvaluateConfig
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.infra import lineage, tracking
from cataloger.infra.storage import locate


def test_a_run_tells_its_catalog_and_its_code(write: Callable[..., Path], tracking_store: str) -> None:
    path = write("shop.parquet", id=[1, 2], title=["a", "b"], price=[1.5, 2.5], in_stock=[True, False])
    catalog = open_catalog(str(path), "id", ("title", "price", "in_stock"))
    tracking.connect()
    config = EvaluateConfig(catalog=str(path), experiment="lineage")
    with tracking.run("evaluate", "shop", config, catalog, {"split": "all"}) as run_id:
        pass
    run = mlflow.get_run(run_id)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("shop", catalog.fingerprint)
    assert '"rows": 2' in used.dataset.profile
    columns = {column["name"]: column["type"] for column in json.loads(used.dataset.schema)["mlflow_colspec"]}
    assert columns == {"id": "long", "title": "string", "price": "double", "in_stock": "boolean"}
    assert str(path) in used.dataset.source
    assert run.data.tags["catalog_fingerprint"] == catalog.fingerprint
    assert len(run.data.tags["code_digest"]) == 12


def test_a_catalog_on_s3_needs_no_server_to_be_named() -> None:
    schema = pa.schema([("id", pa.int64())])
    found = lineage.CatalogDataset(Catalog(locate("s3://shop/catalog"), (), schema, "0123"))
    assert found.to_dict()["source"] == '{"uri": "s3://shop/catalog"}'


def test_the_commit_is_that_of_the_working_tree_and_absent_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "cataloger"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(lineage, "PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    alone = lineage.code_version()
    assert set(alone) == {"code_digest"}
    (package / "a.py").write_text("2")
    assert lineage.code_version() != alone
    alone = lineage.code_version()
    (package / "below").mkdir()
    (package / "below" / "b.py").write_text("")
    assert lineage.code_version() != alone, "packages within the package count"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    found = lineage.code_version()
    assert (found["mlflow.source.git.commit"], found["git_dirty"]) == (commit, "false")
    (package / "a.py").write_text("3")
    assert lineage.code_version()["git_dirty"] == "true"
