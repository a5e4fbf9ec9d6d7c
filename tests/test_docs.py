"""What the README and docs/ tell people to type runs, and what they point to is there."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger import config
from cataloger.heads.category_columns import TIER
from conftest import ROOT, free_of_ray

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
FLAGS = {"help", *(field.name for each in vars(config).values() if is_dataclass(each) for field in fields(each))}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code blocks and comments."""
    text = re.sub(r"^```.*?^```|^    .*?$|<!--.*?-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "```" not in text, "a block is not closed"
    return text


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, ray_session: None, bundle: Path, labelled: Path) -> Path:
    """A folder with `labelled.parquet`, `catalog/`, of which one row is empty, and `labels/`, made by the nightly job."""
    from cataloger.labeling.job import label

    folder = tmp_path_factory.mktemp("night")
    table = pq.read_table(labelled)
    pq.write_table(table, folder / "labelled.parquet")
    products = table.drop_columns(["category_path"]).slice(0, 200)
    empty = pa.table({"id": ["empty"]}).cast(pa.schema([products.schema.field("id")]))
    (folder / "catalog").mkdir()
    pq.write_table(pa.concat_tables([products, empty], promote_options="default"), folder / "catalog" / "part.parquet")
    label(
        config.LabelConfig(
            catalog=str(folder / "catalog"), output=str(folder / "labels"), model=(str(bundle),), experiment="docs"
        )
    )
    return folder


@pytest.fixture
def labels(night: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """What the night published; the working folder is the night's."""
    monkeypatch.chdir(night)
    pointer = json.loads(Path("labels/_latest.json").read_text())
    return pq.read_table(f"labels/{pointer['path']}", partitioning=None)


def run_sql(page: Path) -> list[pd.DataFrame]:
    """The answer of each block's last statement."""
    answers = []
    for sql in blocks(page, "sql"):
        with duckdb.connect() as database:
            answers.append(database.execute(sql).df())
    return answers


def test_duckdb_reads_the_published_labels(labels: pa.Table) -> None:
    (answer,) = run_sql(README)
    counted = dict(answer.itertuples(index=False))
    assert counted == labels.to_pandas()["category"].value_counts().to_dict()


def test_duckdb_lists_what_to_review_and_why_rows_were_rejected(labels: pa.Table) -> None:
    _, rejects = run_sql(ROOT / "docs" / "labels.md")
    assert rejects.values.tolist() == [["no text in any of the text columns", 1]]
    uncertain = labels.to_pandas().query("needs_review").set_index("id")
    review = pd.read_parquet("review.parquet").set_index("id")
    assert 0 < len(uncertain) < len(labels)
    assert set(review.index) == set(uncertain.index)
    assert review["confidence"].is_monotonic_increasing
    first = review.index[0]
    assert review["others"][first].tolist() == [other["category"] for other in uncertain["alternatives"][first]]
    assert review["title"].notna().any()


def test_duckdb_halves_a_catalog(labels: pa.Table) -> None:
    run_sql(ROOT / "docs" / "catalog.md")
    assert 0.4 < pq.read_metadata("half.parquet").num_rows / pq.read_metadata("labelled.parquet").num_rows < 0.6


def readers() -> tuple[str, str]:
    """What the README has for pandas and for Spark."""
    (code,) = blocks(README, "python")
    pandas, spark = code.split("# Spark")
    return pandas, "#" + spark


def test_pandas_reads_the_published_labels(labels: pa.Table) -> None:
    names: dict[str, object] = {}
    exec(readers()[0], names)
    frame = names["labels"]
    assert isinstance(frame, pd.DataFrame)
    assert sorted(frame["id"]) == sorted(labels.column("id").to_pylist())


SPARK = """
from pyspark.sql import SparkSession

builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
spark = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
{code}
print("ROWS", labels.count())
spark.stop()
"""


@pytest.mark.slow
def test_spark_reads_the_published_labels(labels: pa.Table) -> None:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not on this machine")
    code = SPARK.format(code="import pandas as pd\n" + re.sub(r"s3a?://shop/", "", readers()[1]))
    environment = free_of_ray(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert f"ROWS {len(labels)}" in done.stdout, done.stderr


def test_the_row_in_the_readme_has_every_field(labels: pa.Table) -> None:
    table = README.read_text().split("| field |")[1].split("\n\n")[0]
    *columns, text_hash = labels.column_names
    # The night's model is a network alone; those that are trained have words, too.
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*columns, TIER, text_hash]


def typed(page: Path) -> Iterator[list[str]]:
    """What the shell makes of a page's commands: each as its words."""
    known = "\n".join(f"{name}() {{ printf '%s\\x1f' {name} \"$@\"; echo; }}" for name in ("python", "ray"))
    for block in blocks(page, "bash"):
        environment = {"PATH": "", "HOME": "/home/me", "D": "mwpd2020"}
        command = [str(shutil.which("bash")), "-euc", f"{known}\n{block}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            yield line.split("\x1f")[:-1]


@every_page
def test_every_command_is_one_that_its_job_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    for words in typed(page):
        job = next((word for word in words if word.startswith("jobs/")), None)
        if job is None:
            continue
        described = importlib.util.spec_from_file_location("job", ROOT / job)
        assert described
        assert described.loader
        module = importlib.util.module_from_spec(described)
        described.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", words[words.index(job) :])
        # The flags are parsed before anything else: so far, and no further.
        monkeypatch.setattr(module, "run", lambda job: None)
        try:
            module.main()
        except SystemExit:
            pytest.fail(f"refused: {' '.join(words)}")


def test_the_commands_are_found() -> None:
    found = [" ".join(words) for page in PAGES for words in typed(page)]
    assert len([command for command in found if "jobs/" in command]) > 20
    assert any(command.startswith("python jobs/train.py --catalog mwpd2020/train") for command in found), "variables"
    assert any("--test-start 0.4" in command for command in found), "loops"


@every_page
def test_every_flag_in_the_text_belongs_to_a_job_or_a_benchmark(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        flags = [name.replace("-", "_") for name in re.findall(r"(?:^|\s)--([a-z][a-z-]*)", code)]
        script = re.search(r"(jobs|benchmarks)/([a-z]\w*)\.py", code)
        if script is None:
            known = FLAGS if code.startswith("--") else set(flags)  # git's and Ray's flags are not ours
        elif script[1] == "jobs":
            name = (
                script[2] if script[2] != "review" else code.partition("review.py")[2].split()[0] if flags else "export"
            )
            known = {field.name for field in fields(getattr(config, f"{name.title()}Config"))}
        else:
            known = set(re.findall(r"^    (\w+):", (ROOT / script[0]).read_text(), re.MULTILINE))
        assert set(flags) <= known, code


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@every_page
def test_links_and_pictures_point_to_what_is_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", prose(page))
    for target in targets:
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


@every_page
def test_a_picture_that_is_there_is_shown(page: Path) -> None:
    for name in re.findall(r"<!-- !\[[^]]*\]\(([^)]+)\) -->", page.read_text()):
        assert not (page.parent / name).exists(), f"take {name} out of its comment"


@every_page
def test_every_script_and_test_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    for script in re.findall(r"\b(?:jobs|benchmarks)/\w+\.py", text):
        assert (ROOT / script).exists(), script
    for name in re.findall(r"\btest_\w+\.py", text):
        below_tests(name)


def below_tests(name: str) -> Path:
    """Tests are named by their file alone: they may lie anywhere below tests/."""
    (found,) = (ROOT / "tests").rglob(name)
    return found


def test_every_failure_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "guarantees.md").read_text().split("| failure |")[1].split("\n\n")[0]
    cells = [line.split("|")[3] for line in table.splitlines()[2:]]
    assert len(cells) > 15
    for cell in cells:
        named = re.findall(r"`(test_\w+\.py|…)(?:::(\w+))?`", cell)
        assert named, cell
        file = ""
        for name, test in named:
            file = file if name == "…" else name
            assert not test or f"def {test}(" in below_tests(file).read_text(), f"{file}::{test}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.slow
def test_what_the_readme_says_of_ray_is_true(working_folder: Path, ray_session: None) -> None:
    """A job with Ray's own checkpoints that fails, is resumed with another model, and is run once more."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    for part in range(4):
        Path("in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": range(10 * part, 10 * part + 10)}), f"in/{part}.parquet")

    def written() -> list[str]:
        return sorted(model for file in Path("out").glob("*.parquet") for model in pd.read_parquet(file)["model"])

    def job(model: str, *, broken: bool) -> None:
        def label(batch: dict[str, object]) -> dict[str, object]:
            if broken and 30 in batch["id"]:  # type: ignore[operator]
                until = time.monotonic() + 60
                while time.monotonic() < until and not list((working_folder / "out").glob("*.parquet")):
                    time.sleep(0.1)
                raise ValueError("a row that makes the model fail")
            return {**batch, "model": [model] * len(batch["id"])}  # type: ignore[arg-type]

        context = ray.data.DataContext.get_current().copy()
        context.use_datasource_v2 = False  # which would read so small files as one block
        context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=str(working_folder / "done"))
        with ray.data.DataContext.current(context):
            read = ray.data.read_parquet(str(working_folder / "in"), override_num_blocks=4)
            read.map_batches(label, batch_size=None).write_parquet(str(working_folder / "out"))

    with pytest.raises(ray.exceptions.RayTaskError, match="makes the model fail"):
        job("old", broken=True)
    half = written()
    assert 0 < len(half) < 40, "readers see part of a run"
    job("new", broken=False)
    assert written() == ["new"] * (40 - len(half)) + half, "one output, labels of both models"
    job("newest", broken=False)
    assert len(written()) == 80, "the rows of the next run are added"


def test_the_architecture_names_every_module_in_its_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", text, re.MULTILINE)
    named = {(package, module) for package, modules in rows for module in re.findall(r"`(\w+)`", modules)}
    files = [file.relative_to(ROOT) for file in (ROOT / "cataloger").rglob("*.py") if file.stem != "__init__"]
    assert named == {(file.parent.name, file.stem) for file in files}
