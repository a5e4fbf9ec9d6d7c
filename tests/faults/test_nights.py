"""Promises about nights that look fine and are not: a broken export, a rollback that a job would undo, labels by other code."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_bad_rows import Job, flags, published, write

from cataloger.config import LabelConfig
from cataloger.infra import deciding
from cataloger.labeling import job as labeling
from cataloger.labeling.job import label as run_label
from cataloger.publishing import nightly

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_session")]
ROWS = 400


@pytest.fixture
def label(job: Job, bundle: Path) -> Callable[..., tuple[int, str, str]]:
    """`label("--anew")` is one night, of the catalog that lies there."""
    return lambda *more: job("label", *flags(bundle, *more))


def shop(ids: range | list[int]) -> None:
    """A product's title is a function of its id: nothing is strange but which products are there."""
    write("c/part.parquet", [f"product {i % ROWS}" for i in ids], list(ids))


@pytest.fixture(scope="module")
def a_night(ray_session: None, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the catalog of ROWS products, and its labels."""
    room = tmp_path_factory.mktemp("night")
    with contextlib.chdir(room):
        shop(range(ROWS))
        run_label(LabelConfig(catalog="c", output="labels", model=(str(bundle),), text_columns=("title",)))
    return room


@pytest.fixture
def yesterday(a_night: Path, working_folder: Path) -> str:
    """The run that is published in the working folder. The first run had nothing to be compared with."""
    shutil.copytree(a_night, working_folder, dirs_exist_ok=True)
    return str(published()[0]["run"])


def cost(out: str) -> tuple[int, int]:
    """(rows carried over, distinct texts through the model) of a night's table."""
    lines = [line.split("│") for line in out.splitlines() if "carried over" in line or "through the model" in line]
    carried, forwarded = (int(line[2].strip().replace(",", "")) for line in lines)
    return carried, forwarded


@pytest.mark.parametrize(
    ("tonight", "lost", "compared"),
    [
        pytest.param(range(4), 396, 4, id="a hundredth is left"),
        pytest.param(range(ROWS, 2 * ROWS), 400, 0, id="all ids are new"),
        pytest.param([*range(ROWS), *range(ROWS)], 400, 0, id="all rows are there twice"),
    ],
)
def test_a_broken_export_is_held_back(
    yesterday: str, label: Job, tonight: range | list[int], lost: int, compared: int
) -> None:
    shop(tonight)
    # However the distribution of the categories happens to be.
    code, _, err = label("--max-changed-fraction", 1)
    assert code == 3, err
    assert f"of the 400 products that have a label there, {lost} have none now, or more than one" in err
    assert f"only {compared} can be compared" in err
    assert "--max-missing-fraction" in err
    assert published()[0]["run"] == yesterday


def test_a_broken_export_can_be_published_anyway_and_nothing_is_labelled_twice(yesterday: str, label: Job) -> None:
    shop(range(4))
    assert label("--max-changed-fraction", 1)[0] == 3
    code, out, err = label("--publish-anyway")
    assert code == 0, err
    assert cost(out) == (0, 0)
    assert len(published()[1]) == 4


def test_products_that_come_and_go_as_they_do_hold_nothing_back(yesterday: str, label: Job) -> None:
    shop([*range(40, ROWS), *range(ROWS, ROWS + 200)])
    code, _, err = label()
    assert code == 0, err
    run = published()[0]["run"]
    assert run != yesterday
    assert "10.0%</b>of the products before are missing" in Path(f"labels/run={run}/_report.html").read_text()
    part = pq.read_schema(f"labels/run={run}/part-00000.parquet")
    assert part.metadata[b"cataloger.code_digest"].decode() == deciding.digest()


def test_what_was_rolled_back_is_not_published_by_the_same_command(yesterday: str, label: Job, job: Job) -> None:
    monday = yesterday
    shop(range(ROWS + 1))
    assert label()[0] == 0
    tuesday = str(published()[0]["run"])
    assert job("publish", "--output", "labels", "--run", monday)[0] == 0
    code, _, err = label()
    assert code == 3
    assert f"run {tuesday} was replaced by hand on" in err
    assert f"Readers keep run {monday}" in err
    assert published()[0]["run"] == monday
    code, _, err = label("--publish-anyway")
    assert code == 0, err
    assert published()[0]["run"] == tuesday, "it is when it is asked for"
    for run in (monday, tuesday):
        assert job("publish", "--output", "labels", "--run", run)[0] == 0
    assert label()[0] == 0, "and forward again is no rollback of it"
    assert job("publish", "--output", "labels", "--run", monday)[0] == 0
    shop(range(ROWS + 2))
    assert label()[0] == 0, "another catalog is another matter"
    assert published()[0]["run"] not in (monday, tuesday)


def test_anew_means_every_row_and_stays_published(yesterday: str, label: Job, job: Job) -> None:
    first = yesterday
    code, out, err = label("--anew")
    assert code == 0, err
    assert cost(out) == (0, ROWS)
    anew = str(published()[0]["run"])
    assert anew != first
    assert published()[0]["inputs"] == first
    code, out, _ = label()
    assert (code, cost(out)) == (0, (0, 0))
    assert published()[0]["run"] == anew, "the same rows, model and settings: what stands is the answer"
    assert label("--anew")[0] == 0
    assert published()[0]["run"] not in (first, anew)
    assert job("verify", "--output", "labels")[0] == 0


def test_labels_by_other_code_are_not_carried_over(yesterday: str, label: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()[0]
    monkeypatch.setattr(deciding, "digest", lambda explained: "mended")
    code, out, err = label()
    assert code == 0, err
    assert cost(out) == (0, ROWS), "of the same catalog"
    assert published()[0]["code_digest"] == "mended" != before["code_digest"]
    assert set(before["libraries"]) >= {"torch", "transformers", "tokenizers", "pyarrow"}


def test_an_mlflow_that_is_down_from_the_start_costs_no_labels(
    working_folder: Path, label: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        shop(range(ROWS))
        code, _, err = label()
    assert code == 0, err
    assert "labelling goes on without MLflow" in caplog.text
    assert published()[0]["labelled"] == ROWS
    assert published()[0]["mlflow_run"] is None


def test_an_mlflow_that_goes_away_before_the_run_is_opened_costs_no_labels(
    working_folder: Path, label: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shop(range(ROWS))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", os.environ["MLFLOW_TRACKING_URI"])  # MLflow sets it, too
    planned = labeling.plan_units

    def plan_and_lose(*arguments: object) -> object:
        labeling.tracking.mlflow.set_tracking_uri("http://127.0.0.1:9")
        return planned(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(labeling, "plan_units", plan_and_lose)
    code, _, err = label()
    assert code == 0, err
    assert "does not take metrics" in caplog.text
    assert published()[0]["labelled"] == ROWS


def test_a_page_that_cannot_be_drawn_does_not_hide_why_labels_are_held_back(
    yesterday: str, label: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def page(*_: object) -> str:
        raise RuntimeError("no ink")

    shop(range(4))
    monkeypatch.setattr(nightly, "page", page)
    code, _, err = label()
    assert code == 3, err
    assert "is held back" in err
    assert "no ink" in caplog.text
