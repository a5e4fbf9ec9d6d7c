"""The page and the figures of a night, by the labelling job itself."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cataloger.config import LabelConfig
from cataloger.labeling.job import LabelResult, label
from cataloger.publishing import nightly

ROWS = 1_000


def shop(labelled: Path, changed: int) -> None:
    """A catalog whose first so many products got another title, and whose last one has no text."""
    table = pq.read_table(labelled).slice(0, ROWS)
    titles = [f"{title} new {i}" if i < changed else title for i, title in enumerate(table.column("title").to_pylist())]
    empty = pa.array([*[False] * (ROWS - 1), True])
    table = table.set_column(table.column_names.index("title"), "title", pa.array(titles))
    for name in ("title", "brand", "description"):
        column = pc.if_else(empty, pa.scalar(None, table.schema.field(name).type), table.column(name))
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, "shop.parquet")


def night(bundle: Path) -> tuple[LabelResult, str]:
    """One run of the job, and its page as text."""
    result = label(
        LabelConfig(
            catalog="shop.parquet", output="labels", model=str(bundle), experiment="nights", max_changed_fraction=1
        )
    )
    page = Path(result.output, f"run={result.run}", "_report.html").read_text()
    return result, " ".join(re.sub(r"<[^>]+>", " ", page).split())


def labels_of(result: LabelResult) -> dict[str, str]:
    table = pq.read_table(f"{result.output}/run={result.run}", columns=["id", "category"], partitioning=None)
    return dict(zip(*(table.column(name).to_pylist() for name in ("id", "category")), strict=True))


def test_a_second_night_with_a_twentieth_of_the_texts_changed_says_so(
    bundle: Path, labelled: Path, ray_session: None, job: Callable[..., tuple[int, str, str]]
) -> None:
    shop(labelled, changed=0)
    first, page = night(bundle)
    assert "The first labels" in page
    assert "no text in any of the text columns 1" in page
    shop(labelled, changed=50)
    second, page = night(bundle)
    before, now = labels_of(first), labels_of(second)
    changed = sum(before[i] != now[i] for i in now)
    assert changed
    assert "5.0% have another text" in page
    assert f"{changed / len(now):.1%} changed category" in page
    assert "999 labelled 1 rejected" in page
    run = mlflow.get_run(second.mlflow_run)
    assert run.data.metrics["new_text_fraction"] == pytest.approx(50 / 999)
    assert run.data.metrics["changed_fraction"] == pytest.approx(changed / 999)
    assert 0 < run.data.metrics["population_stability_index"] < 0.5
    assert run.data.metrics["coverage"] + run.data.metrics["review_share"] == pytest.approx(1)
    assert "night.html" in {item.path for item in mlflow.MlflowClient().list_artifacts(second.mlflow_run)}
    code, _, err = job("verify", "--output", "labels")
    assert code == 0, err
    assert json.loads(Path("labels/_latest.json").read_text())["run"] == second.run


def test_a_page_that_cannot_be_drawn_costs_no_labels(
    bundle: Path, labelled: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(*_: object) -> str:
        raise RuntimeError("no ink")

    shop(labelled, changed=0)
    monkeypatch.setattr(nightly, "page", page)
    with pytest.raises(RuntimeError, match="no ink"):
        night(bundle)
    latest = json.loads(Path("labels/_latest.json").read_text())
    assert pq.read_table(f"labels/{latest['path']}", partitioning=None).num_rows == ROWS - 1
