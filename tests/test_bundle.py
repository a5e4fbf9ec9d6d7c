"""Bundles of earlier formats."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from cataloger.bundle import SPEC, read_spec
from cataloger.heads.columns import COLUMNS
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY


@pytest.mark.parametrize(("multi_label", "head"), [(False, ONE_CATEGORY), (True, MANY_CATEGORIES)])
@pytest.mark.parametrize("version", [2, 3])
def test_bundles_of_earlier_formats_label_as_before(
    working_folder: Path, bundle: Path, version: int, multi_label: bool, head: str
) -> None:
    folder = shutil.copytree(bundle, working_folder / "old")
    spec = json.loads((folder / SPEC).read_text())
    del spec["head"]
    spec |= {"format_version": version, "multi_label": multi_label, "thresholds": [0.5] if multi_label else []}
    (folder / SPEC).write_text(json.dumps(spec))
    found = read_spec(folder)
    assert (found.head, found.format_version) == (head, version)
    labels = Tiers(folder).label(pa.table({name: ["red shoes", None] for name in found.text_columns}))
    assert labels.column(COLUMNS[head].answer).is_valid().to_pylist() == [True, False]
