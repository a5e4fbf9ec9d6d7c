"""The review loop from the command line: a queue, people's answers, corrections, and what is learnt from them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import LabelConfig, TrainConfig
from cataloger.labeling.job import label
from cataloger.model.registry import fetch_model
from cataloger.training.job import train
from conftest import ROOT, published, refused, upload

pytestmark = pytest.mark.usefixtures("ray_session")
Job = Callable[..., tuple[int, str, str]]
ROWS = 200
# The tools' own libraries, which `make test` puts there: with their dependencies they would not go with ours.
TOOLS = ROOT / ".venv" / "review-tools"


@pytest.fixture
def labels(bundle: Path, working_folder: Path) -> pa.Table:
    """Products, two with the same text and one with none, labelled."""
    titles = [f"product {i % 190} of {('red', 'blue', 'green')[i % 3]} kind" for i in range(ROWS)]
    table = pa.table(
        {
            "id": range(ROWS),
            "title": [None if i == 5 else title for i, title in enumerate(titles)],
            "brand": pa.nulls(ROWS, pa.string()),
            "description": pa.nulls(ROWS, pa.string()),
            "views": [1000 if i == 77 else 1 for i in range(ROWS)],
        }
    )
    pq.write_table(table, "c.parquet")
    label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), precision="fp32"))
    return published()


EXPORT = ("export", "--labels", "labels", "--catalog", "c.parquet")


def exported(job: Job, *flags: object, budget: int = 20) -> str:
    code, out, err = job("review", *EXPORT, "--budget", budget, *flags)
    assert code == 0, err
    return out


def asked() -> list[str]:
    return [str(one) for one in pq.read_table("queue/_products.parquet").column("id").to_pylist()]


def test_a_table_is_filled_and_comes_back_as_corrections(bundle: Path, labels: pa.Table, job: Job) -> None:
    out = exported(job)
    assert "products to ask about" in out
    queue = pq.read_table("queue/queue.parquet")
    rows = queue.to_pylist()
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == 20
    own = {str(row["id"]): row for row in labels.to_pylist()}
    for row in rows:
        assert (row["category"], row["confidence"]) == (own[row["id"]]["category"], own[row["id"]]["confidence"])
        assert row["text"].startswith("title: product")
    # Somebody answers three, somebody else two of them, one otherwise, and all again in another order.
    categories = read_spec(bundle).categories
    fill(queue, {0: categories[0], 1: categories[1], 2: categories[2]}, "ada", "2026-11-25T10:00:00")
    code, out, err = job("review", "import", "--answers", "filled.parquet")
    assert code == 0, err
    fill(queue, {0: categories[0], 1: categories[3]}, "grace", "2026-11-25T11:00:00")
    code, out, err = job("review", "import", "--answers", "filled.parquet")
    assert code == 0, err
    assert f"undecided: {rows[1]['id']}" in out
    for line in ("ada and grace", "50.0%"):
        assert line in out
    corrections = {str(row["id"]): row for row in pq.read_table("corrections/corrections.parquet").to_pylist()}
    assert {one: row["category_path"] for one, row in corrections.items()} == {
        rows[0]["id"]: categories[0],
        rows[2]["id"]: categories[2],
    }
    assert corrections[rows[0]["id"]]["title"] == own_title(rows[0]["id"])
    before = Path("corrections/corrections.parquet").read_bytes(), Path("corrections/_answers.parquet").read_bytes()
    code, out, err = job("review", "import", "--answers", "filled.parquet")
    assert code == 0, err
    assert before == (
        Path("corrections/corrections.parquet").read_bytes(),
        Path("corrections/_answers.parquet").read_bytes(),
    )
    # Who changes their mind is heard, and an older answer is not.
    fill(queue, {1: categories[1]}, "grace", "2026-11-25T12:00:00")
    assert job("review", "import", "--answers", "filled.parquet")[0] == 0
    fill(queue, {1: categories[3]}, "grace", "2026-11-25T11:30:00")
    assert job("review", "import", "--answers", "filled.parquet")[0] == 0
    decided = {
        str(row["id"]): row["category_path"] for row in pq.read_table("corrections/corrections.parquet").to_pylist()
    }
    assert decided[rows[1]["id"]] == categories[1]
    # They are pins.
    label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), precision="fp32", pins="corrections"))
    pinned = {str(row["id"]): row["category"] for row in published().to_pylist() if row["source"] == "pin"}
    assert pinned == decided
    # And nobody is asked again.
    exported(job, "--output", "second", budget=ROWS)
    again = {str(one) for one in pq.read_table("second/_products.parquet").column("id").to_pylist()}
    assert not again & pinned.keys()
    assert "5" not in again, "it has no label"


def fill(queue: pa.Table, answers: dict[int, Any], who: str, when: str) -> None:
    given = pa.array([answers.get(number) for number in range(len(queue))], queue.schema.field("answer").type)
    for name, column in {
        "answer": given,
        "who": pa.array([who] * len(queue)),
        "when": pa.array([when] * len(queue)),
    }.items():
        queue = queue.set_column(queue.column_names.index(name), name, column)
    pq.write_table(queue, "filled.parquet")


def own_title(identity: str) -> str:
    return str(pq.read_table("c.parquet").column("title")[int(identity)].as_py())


def test_of_two_imports_at_once_none_is_lost(
    bundle: Path, labels: pa.Table, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cataloger.curation import answers

    exported(job)
    queue, read = pq.read_table("queue/queue.parquet"), answers._read
    categories = read_spec(bundle).categories

    def read_and_be_overtaken(location: Any) -> list[dict[str, Any]]:
        found = read(location)
        monkeypatch.setattr(answers, "_read", read)
        fill(queue, {1: categories[1]}, "grace", "")
        assert job("review", "import", "--answers", "filled.parquet")[0] == 0
        return found

    fill(queue, {0: categories[0]}, "ada", "")
    Path("filled.parquet").rename("adas.parquet")
    monkeypatch.setattr(answers, "_read", read_and_be_overtaken)
    sentence(job("review", "import", "--answers", "adas.parquet"), "somebody else imported answers meanwhile")
    assert job("review", "import", "--answers", "adas.parquet")[0] == 0
    assert sorted(pq.read_table("corrections/corrections.parquet").column("who").to_pylist()) == ["ada", "grace"]
    # Whoever was killed between the two files is made good by the next import.
    Path("corrections/corrections.parquet").unlink()
    assert job("review", "import", "--answers", "adas.parquet")[0] == 0
    assert len(pq.read_table("corrections/corrections.parquet")) == 2


def test_what_is_worth_more_is_asked_first(labels: pa.Table, job: Job) -> None:
    exported(job, "--weight-column", "views", budget=1)
    assert asked() == ["77"]


def in_tools(program: str) -> str:
    if not TOOLS.exists():
        pytest.skip("needs the libraries of Label Studio and Argilla, which `make test` installs")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TOOLS)!r})\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout


LABEL_STUDIO = """
import json
from label_studio_sdk.label_interface import LabelInterface
interface = LabelInterface(open("queue/config.xml").read())
interface.validate()
tasks = json.load(open("queue/tasks.json"))
for number, task in enumerate(tasks):
    assert interface.validate_task({"data": task["data"]}), task
    for prediction in task["predictions"]:
        assert interface.validate_prediction(prediction, return_errors=True) == [], prediction
    # As its export has it.
    result = [{"id": "x", **region} for region in task["predictions"][0]["result"]]
    result.append({"id": "y", "from_name": "note", "to_name": "product", "type": "textarea", "value": {"text": ["seen"]}})
    annotation = {"id": number, "completed_by": {"email": "ada@shop.example"}, "was_cancelled": number == 0, "result": result,
                  "created_at": "2026-11-25T10:00:00Z", "updated_at": "2026-11-25T10:00:00Z"}
    assert interface.validate_annotation(annotation)
    task |= {"id": number, "annotations": [annotation]}
json.dump(tasks, open("project.json", "w"))
"""


def test_label_studio_takes_the_queue_and_gives_answers(labels: pa.Table, job: Job) -> None:
    exported(job, "--format", "labelstudio")
    in_tools(LABEL_STUDIO)
    code, _out, err = job("review", "import", "--answers", "project.json")
    assert code == 0, err
    corrections = pq.read_table("corrections/corrections.parquet").to_pylist()
    own = {row["id"]: row["category"] for row in labels.to_pylist()}
    assert len(corrections) == 19, "one was skipped"
    assert all(row["category_path"] == own[row["id"]] for row in corrections)
    assert {(row["who"], row["note"]) for row in corrections} == {("ada@shop.example", "seen")}


def test_the_tree_is_whole_at_thousands_of_nodes(working_folder: Path) -> None:
    from cataloger.curation.formats import LabelStudio
    from cataloger.curation.queue import Queue

    paths = tuple(f"top {i // 1000} > middle {i // 50} > leaf {i} & <more>" for i in range(10_000))
    queue = Queue("q", "r", "c", "m", "labelstudio", ("title",), False, paths, "")
    tree = ElementTree.fromstring(LabelStudio.interface(queue, False)).find("Taxonomy")
    assert tree is not None

    def leaves(node: Any, above: tuple[str, ...]) -> list[str]:
        here = (*above, node.get("value"))
        return [path for child in node for path in leaves(child, here)] if len(node) else [" > ".join(here)]

    assert [path for top in tree for path in leaves(top, ())] == list(paths)
    assert max(len(tree), *(len(node) for node in tree.iter())) <= 50, "what a person sees at a time"


ARGILLA = """
import json, pathlib, uuid
from unittest.mock import MagicMock
import argilla as rg
from argilla._models import DatasetModel
rg.Argilla._get_default = classmethod(lambda kind: MagicMock())
DatasetModel(**json.load(open("queue/.argilla/dataset.json")))
settings = rg.Settings.from_json("queue/.argilla/settings.json")
settings.validate()
records = [rg.Record.from_dict(record) for record in json.load(open("queue/records.json"))]
options = set(settings.questions["category"].labels) if KIND == "label_selection" else None
assert settings.serialize()["questions"][0]["type"] == KIND
person = uuid.uuid4()
for number, record in enumerate(records):
    record.api_model()
    (suggestion,) = record.suggestions
    assert options is None or suggestion.value in options
    if number:
        record.responses.add(rg.Response("category", suggestion.value, user_id=person, status="submitted"))
        record.responses.add(rg.Response("note", "seen", user_id=person, status="submitted"))
from argilla.records._io import JsonIO
pathlib.Path("back").mkdir()
JsonIO.to_json(records, "back/records.json")
# As the server says of those that somebody has submitted; one is a draft.
found = json.load(open("back/records.json"))
for number, record in enumerate(found):
    record["status"] = "completed" if number > 1 else "pending"
json.dump(found, open("back/records.json", "w"))
"""


@pytest.mark.parametrize("most", [500, 3])
def test_argilla_takes_the_queue_and_gives_answers(
    labels: pa.Table, job: Job, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cataloger.curation import formats

    monkeypatch.setattr(formats, "MOST_OPTIONS", most)
    exported(job, "--format", "argilla")
    kind = "label_selection" if most > 3 else "text"
    in_tools(f"KIND = {kind!r}\n{ARGILLA}")
    code, _, err = job("review", "import", "--answers", "back")
    assert code == 0, err
    corrections = pq.read_table("corrections/corrections.parquet").to_pylist()
    own = {row["id"]: row["category"] for row in labels.to_pylist()}
    assert len(corrections) == 18
    assert all((row["category_path"], row["note"]) == (own[row["id"]], "seen") for row in corrections)


def test_on_s3(bundle: Path, labels: pa.Table, s3: str, job: Job, working_folder: Path) -> None:
    upload(working_folder / "labels", f"{s3}/review/labels")
    upload(working_folder, f"{s3}/review")
    where = f"{s3}/review"
    flags = (
        "--labels",
        f"{where}/labels",
        "--catalog",
        f"{where}/c.parquet",
        "--output",
        f"{where}/queue",
        "--budget",
        "5",
    )
    label(LabelConfig(catalog=f"{where}/c.parquet", output=f"{where}/labels", model=(str(bundle),), precision="fp32"))
    code, _, err = job("review", "export", *flags)
    assert code == 0, err
    from cataloger.infra.storage import locate

    Path("queue.parquet").write_bytes((locate(f"{where}/queue") / "queue.parquet").read())
    queue = pq.read_table("queue.parquet")
    fill(queue, dict.fromkeys(range(5), read_spec(bundle).categories[0]), "ada", "2026-11-25")
    (locate(where) / "filled.parquet").write(Path("filled.parquet").read_bytes())
    flags = ("--answers", f"{where}/filled.parquet", "--queue", f"{where}/queue", "--output", f"{where}/corrections")
    code, out, err = job("review", "import", *flags)
    assert code == 0, err
    label(
        LabelConfig(
            catalog=f"{where}/c.parquet",
            output=f"{where}/labels",
            model=(str(bundle),),
            precision="fp32",
            pins=f"{where}/corrections",
        )
    )
    code, out, err = job("verify", "--output", f"{where}/labels")
    assert (code, "all 5 pins" in out) == (0, True), err


def test_a_training_learns_corrections_and_an_audit_leaves_them_alone(
    labelled: Path, working_folder: Path, job: Job, in_process: None
) -> None:
    """Of rows of the catalog, whose category changes, and of others, one of them in a category that is new."""
    table = pq.read_table(labelled)
    ids, paths = table.column("id").to_pylist(), table.column("category_path").to_pylist()
    wrong = [number for number, path in enumerate(paths) if path == paths[0]][:40]
    corrections = {
        "id": [ids[number] for number in wrong] + [f"new {i}" for i in range(12)],
        "category_path": ["Quite > New"] * len(wrong) + ["Quite > Other"] * 12,
        "title": [None] * len(wrong) + [f"zyx thing {i}" for i in range(12)],
        "who": ["ada"] * (len(wrong) + 12),
    }
    Path("corrections").mkdir()
    pq.write_table(pa.table(corrections), "corrections/corrections.parquet")
    config = TrainConfig(
        catalog=str(labelled),
        corrections="corrections",
        base_model="none",
        test_fraction=0.2,
        storage="checkpoints",
        experiment="tests",
        model_name="corrected",
    )
    done = train(config)
    folder = fetch_model(done.model_uri).folder
    assert {"Quite > New", "Quite > Other"} <= set(read_spec(folder).categories)
    from cataloger.model.tiers import Tiers

    columns = {"title": ["zyx thing 40"], "brand": pa.nulls(1, pa.string()), "description": pa.nulls(1, pa.string())}
    assert Tiers(folder).label(pa.table(columns)).column("category").to_pylist() == ["Quite > Other"]
    assert train(config).run_id != done.run_id
    code, _, err = job("audit", "--catalog", labelled, "--models", done.model_uri, "--output", "all.parquet")
    assert code == 0, err
    code, _, err = job(
        "audit",
        "--catalog",
        labelled,
        "--models",
        done.model_uri,
        "--output",
        "rest.parquet",
        "--corrections",
        "corrections",
    )
    assert code == 0, err
    every, rest = (set(pq.read_table(name).column("id").to_pylist()) for name in ("all.parquet", "rest.parquet"))
    assert rest <= every
    assert not rest & set(corrections["id"])


def test_corrections_win_in_a_catalog_to_validate_on(labelled: Path, working_folder: Path) -> None:
    """Also where they name a category that nobody wrote there."""
    from cataloger.training.plan import plan
    from cataloger.training.rows import ingest

    table = pq.read_table(labelled)
    pq.write_table(table.slice(0, 400), "learnt.parquet")
    pq.write_table(table.slice(400, 50), "judged.parquet")
    (identity,) = table.slice(400, 1).column("id").to_pylist()
    pq.write_table(pa.table({"id": [identity], "category_path": ["Quite > New"], "title": [None]}), "mended.parquet")
    config = TrainConfig(
        catalog="learnt.parquet", eval_catalog="judged.parquet", corrections="mended.parquet", base_model="none"
    )
    planned = plan(config)
    new = planned.spec.categories.index("Quite > New")
    import ray

    tables = [ray.get(block) for block in ingest(planned.sources, planned.config)]
    validated = [row for one in tables for row in one.select(["use", "labels"]).to_pylist() if row["use"] == 1]
    assert sum(row["labels"] == [new] for row in validated) == 1
    assert len(validated) == 50


def test_corrections_of_another_kind_are_refused(labelled: Path, working_folder: Path, job: Job) -> None:
    pq.write_table(pa.table({"id": ["a"], "category_path": [["A"]]}), "lists.parquet")
    pq.write_table(pa.table({"id": ["a"], "category_path": ["A"], "title": [["x"]]}), "columns.parquet")
    command = ("train", "--catalog", labelled, "--base-model", "none")
    refused(job(*command, "--corrections", "lists.parquet"), "--corrections lists.parquet: has lists of categories")
    refused(job(*command, "--corrections", "columns.parquet"), "column 'title' is list<")
    refused(job(*command, "--corrections", "none.parquet"), "--corrections none.parquet: not found")


def sentence(outcome: tuple[int, str, str], *parts: str) -> None:
    code, _, err = outcome
    assert code == 2, err
    (problem,) = [line for line in err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in problem
    assert "Traceback" not in err


def test_what_cannot_be_asked(labels: pa.Table, job: Job, working_folder: Path) -> None:
    sentence(job("review", *EXPORT, "--budget", "0"), "--budget 0: ask about at least one product")
    sentence(job("review", "export", "--labels", "nowhere", "--catalog", "c.parquet"), "nowhere")
    sentence(job("review", *EXPORT, "--weight-column", "none"), "no column 'none'", "--weight-column")
    table = pq.read_table("c.parquet")
    pq.write_table(table.slice(1), "c.parquet")
    sentence(job("review", *EXPORT), "has other products than run")
    pq.write_table(table.take(np.random.default_rng(0).permutation(ROWS)), "c.parquet")
    sentence(job("review", *EXPORT), "has other products than run")
    assert not Path("queue/_queue.json").exists(), "nothing half-written"
    pq.write_table(table, "c.parquet")
    exported(job)
    sentence(job("review", *EXPORT), "--output queue: has a queue already")


def test_answers_that_cannot_be(bundle: Path, labels: pa.Table, job: Job) -> None:
    exported(job)
    queue = pq.read_table("queue/queue.parquet")
    take = ("review", "import", "--answers", "filled.parquet")
    fill(queue, {}, "ada", "")
    sentence(job(*take), "filled.parquet: has no answer")
    fill(queue, {0: "Nowhere"}, "ada", "")
    sentence(
        job(*take), f"product {queue.column('id')[0].as_py()}: the model knows no category 'Nowhere'; the nearest is"
    )
    fill(queue, {0: "A >> B"}, "ada", "")
    sentence(job(*take), "'A >> B' is no category path")
    first = read_spec(bundle).categories[0]
    other = queue.set_column(queue.column_names.index("id"), "id", pa.array(["x"] * len(queue)))
    fill(other, {0: first}, "ada", "")
    sentence(job(*take), "1 of 1 answers are not to the questions of queue", "the first is of product x")
    other = queue.set_column(queue.column_names.index("queue"), "queue", pa.array(["x"] * len(queue)))
    fill(other, {0: first}, "ada", "")
    sentence(job(*take), "are not to the questions of queue")
    fill(queue, {0: first}, "ada", "")
    sentence(job(*take, "--queue", "nowhere"), "--queue ", "nowhere: is no queue")
    for content in ("[1, 2]", '{"a": 1}', '[{"data": {}, "annotations": [{"result": [{}]}]}]', "nonsense"):
        Path("filled.parquet").write_text(content)
        sentence(job(*take), "--answers ", "filled.parquet: ")
    assert not Path("corrections").exists() or not list(Path("corrections").iterdir()), "nothing half-written"


@pytest.mark.parametrize("flags", [(), ("--help",), ("export", "--help"), ("import", "--help"), ("exprot",)])
def test_the_job_says_what_it_takes(job: Job, flags: tuple[str, ...]) -> None:
    code, out, err = job("review", *flags)
    assert code == (0 if "--help" in flags else 2)
    assert "budget" in out or "answers" in out or "export" in out + err
