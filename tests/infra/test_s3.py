"""Catalog, checkpoints, model folder and labels on S3."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cataloger.infra.storage import locate
from conftest import upload

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("ray_session")]


def test_train_and_label_from_and_to_s3(
    s3: str, job: Callable[..., tuple[int, str, str]], labelled: Path, tiny_model: Path
) -> None:
    upload(labelled, f"{s3}/labelled")
    flags = ("--base-model", tiny_model, "--epochs", 1, "--max-tokens", 16, "--model-name", "on-s3")
    code, _, err = job("train", "--catalog", f"{s3}/labelled", "--storage", f"{s3}/checkpoints", *flags)
    assert code == 0, err
    checkpoints = [info.base_name for info in locate(f"{s3}/checkpoints").files()]
    assert {"model.safetensors", "state.pt"} <= set(checkpoints)
    output = f"{s3}/labels"
    code, out, err = job(
        "label", "--catalog", f"{s3}/labelled", "--output", output, "--model", "models:/on-s3@champion"
    )
    assert code == 0, err
    pointer = json.loads((locate(output) / "_latest.json").read())
    run = locate(output) / pointer["path"]
    labels = pq.read_table(run.path, filesystem=run.filesystem)
    assert sorted(labels.column("id").to_pylist()) == sorted(pq.read_table(labelled).column("id").to_pylist())
    names = [info.base_name for info in locate(output).files()]
    assert not [name for name in names if name.startswith(("_writing", "_probe"))]
    assert "must-not-leak" not in out + err + (run / "_manifest.json").read().decode()


def test_a_model_folder_on_s3(s3: str, job: Callable[..., tuple[int, str, str]], bundle: Path, labelled: Path) -> None:
    upload(bundle, f"{s3}/bundle")
    code, out, err = job("label", "--catalog", labelled, "--output", "labels", "--model", f"{s3}/bundle")
    assert code == 0, err
    assert "1,500" in out


def test_a_bucket_that_is_not_there_is_named(s3: str, job: Callable[..., tuple[int, str, str]], bundle: Path) -> None:
    code, _, err = job("label", "--catalog", "s3://nowhere/catalog", "--output", "labels", "--model", bundle)
    assert code == 2
    assert "s3://nowhere/catalog" in err
    assert "Traceback" not in err
    code, _, err = job("sample", "--rows", 10, "--output", "s3://nowhere/catalog")
    assert code == 2
    assert "s3://nowhere/catalog" in err
