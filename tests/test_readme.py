"""What the README tells readers of the labels to type."""

import json
import re
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from cataloger.data.units import Segment, Unit
from cataloger.infra.storage import locate
from cataloger.publishing import pointer, snapshot
from conftest import ROOT

README = (ROOT / "README.md").read_text()


@pytest.fixture
def labels(working_folder: Path) -> None:
    units = [Unit(0, (Segment("x", 0, 0, 3),))]
    folder = snapshot.run_folder(locate("labels"), "r")
    rejects = pa.table({"id": [3], "reason": ["no text"]})
    part = snapshot.write_part(folder, 0, pa.table({"id": [1, 2], "category": ["A", "A"]}), rejects, 2, {})
    about = {
        "model": "m",
        "model_digest": "d",
        "catalog": "c",
        "catalog_fingerprint": "f",
        "config": {"id_column": "id"},
    }
    snapshot.write_manifest(locate("labels"), "r", units, {0: part}, about)
    pointer.publish(locate("labels"), "r", pointer.look(locate("labels")))


def test_duckdb_reads_the_published_labels(labels: None) -> None:
    (sql,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    with duckdb.connect() as database:
        assert database.execute(sql).fetchall() == [("A", 2)]


def test_pandas_reads_the_published_labels(labels: None) -> None:
    (lines,) = re.findall(r"```python\n(.*?)\n\n# Spark", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(lines.replace('json.load(open("labels/_latest.json"))', "latest"), {"latest": latest()}, names)
    frame = names["labels"]
    assert isinstance(frame, pd.DataFrame)
    assert frame["id"].tolist() == [1, 2]


def latest() -> dict[str, str]:
    return dict(json.loads(Path("labels/_latest.json").read_text()))


def test_every_flag_in_the_readme_exists() -> None:
    config = (ROOT / "cataloger" / "config.py").read_text()
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    flags = set(re.findall(r"(?<=\s)--([a-z-]+)(?=\s)", commands)) - {"working-dir", "generate"}
    assert {"catalog", "use-gpu"} <= flags
    assert not [flag for flag in flags if f"    {flag.replace('-', '_')}:" not in config]


def test_every_failure_names_tests_that_exist() -> None:
    table = README[README.index("| failure |") : README.index("Prune when no job")]
    cells = [line.split("|")[3] for line in table.strip().splitlines()[2:]]
    assert len(cells) > 15
    for cell in cells:
        file = ""
        for path, test in re.findall(r"`([\w/…]+(?:\.py)?)(?:::(\w+))?`", cell):
            file = file if path == "…" else path
            (source,) = (path.read_text() for path in (ROOT / "tests").rglob(Path(file).name))
            assert not test or f"def {test}(" in source, f"{file}::{test}"
