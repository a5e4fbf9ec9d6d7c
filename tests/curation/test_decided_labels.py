"""Pins and rules from the command line to the published labels, the night after, and the service."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec
from cataloger.config import LabelConfig
from cataloger.curation import decisions as deciding_of
from cataloger.data.ids import ID_NOT_UTF8
from cataloger.labeling.job import label
from cataloger.labeling.result import LabelResult
from cataloger.live.following import Answering, load
from cataloger.model.registry import ModelSource
from conftest import published, refused, upload

pytestmark = pytest.mark.usefixtures("ray_session")
Job = Callable[..., tuple[int, str, str]]
ROWS = 300
RULES = """
rules:
  - name: brands
    when: {brand: [Acme, Apex]}
    category: {first}
  - name: not here
    when: {stock: {min: 3}}
    forbid: {top}
  - name: look
    when: {title: {contains: "7"}}
    review: true
  - name: samples
    when: {stock: 1}
    reject: a sample, not for sale
  - name: nothing
    when: {brand: Nobody}
    category: {first}
"""


@pytest.fixture
def categories(bundle: Path) -> list[str]:
    return list(read_spec(bundle).categories)


@pytest.fixture
def catalog(working_folder: Path, categories: list[str]) -> pa.Table:
    """Products, one of them with nothing to read; pins.parquet and rules.yaml."""
    table = pa.table(
        {
            "id": range(ROWS),
            "title": [None if i == 9 else f"product {i}" for i in range(ROWS)],
            "brand": [None if i == 9 else ("acme ", "Apex", "x", None)[i % 4] for i in range(ROWS)],
            "description": pa.nulls(ROWS, pa.string()),
            "stock": [i % 6 for i in range(ROWS)],
        }
    )
    pq.write_table(table, "c.parquet")
    # Of a product that cannot be read, of one that a rule rejects, of one that no catalog has.
    pins = {
        "id": ["9", "1", "20", "none"],
        "category_path": [categories[0], categories[1], categories[2], categories[0]],
    }
    pq.write_table(pa.table(pins), "pins.parquet")
    top = categories[0].split(" > ")[0]
    Path("rules.yaml").write_text(RULES.replace("{first}", categories[-1]).replace("{top}", top))
    return table


def night(bundle: Path, output: str = "labels", **changes: object) -> LabelResult:
    settings = {"catalog": "c.parquet", "output": output, "model": (str(bundle),), "precision": "fp32"}
    return label(
        LabelConfig(
            **{**settings, "pins": "pins.parquet", "rules": "rules.yaml", "max_reject_fraction": 0.05, **changes}
        )
    )  # type: ignore[arg-type]


def test_labels_say_who_decided_them(
    bundle: Path, catalog: pa.Table, categories: list[str], job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = job(
        *("label", "--catalog", "c.parquet", "--output", "labels", "--model", bundle),
        *("--pins", "pins.parquet", "--rules", "rules.yaml", "--precision", "fp32"),
    )
    assert code == 0, err
    assert "the catalog has no product with the id of 1 of 4 pins, the first is none" in caplog.text
    for line in ("decided by pins", "decided by rules", "never matched"):
        assert line in out
    plain = night(bundle, "plain", pins=None, rules=None)
    own = {row["id"]: row for row in published("plain").to_pylist()}
    labels = {row["id"]: row for row in published().to_pylist()}
    assert published().column_names == [*published("plain").column_names[:-1], "source", "model", "text_hash"]
    for number, category in ((9, categories[0]), (1, categories[1]), (20, categories[2])):
        assert (labels[number]["category"], labels[number]["source"]) == (category, "pin")
        assert (labels[number]["confidence"], labels[number]["needs_review"]) == (1.0, False)
    assert 9 not in own
    assert labels[9]["model"] is labels[9]["text_hash"] is None
    rejects = pq.read_table(next(Path("labels").glob("run=*/_rejects"))).to_pylist()
    # A rule that gives a category comes first.
    expected = {i for i in range(ROWS) if i % 6 == 1 and i % 4 > 1}
    assert {row["id"] for row in rejects} == expected
    assert {row["reason"] for row in rejects} == {"rule samples: a sample, not for sale"}
    for i in range(ROWS):
        if i in (9, 1, 20) or i in expected:
            continue
        row = labels[i]
        if i % 4 < 2:
            assert (row["category"], row["source"]) == (categories[-1], "rule:brands")
        elif i % 6 >= 3:
            assert not row["category"].startswith(categories[0].split(" > ")[0])
        else:
            assert row["category"] == own[i]["category"]
        if row["source"] == "model":
            assert row["model"] is None
            assert {name: row[name] for name in own[i]} == own[i]
        else:
            assert row["model"] == {name: own[i][name] for name in row["model"]}
        assert row["needs_review"] or "7" not in str(i)
    manifest = json.loads(next(Path("labels").glob("run=*/_manifest.json")).read_text())
    about = manifest["decisions"]
    assert (about["pins"], about["unknown"], about["unknown_ids"], about["pinned"]) == (4, 1, ["none"], 3)
    by_name = {rule["name"]: rule for rule in about["rules"]}
    assert by_name["nothing"]["matched"] == 0
    assert by_name["samples"]["decided"] == len(expected)
    assert by_name["brands"]["decided"] == sum(row["source"] == "rule:brands" for row in labels.values())
    page = next(Path("labels").glob("run=*/_report.html")).read_text()
    for part in (
        "What people decided",
        "4 products are pinned",
        "1 pin is of an id",
        "gives a category",
        "never matched",
    ):
        assert part in page
    metrics = mlflow.get_run(manifest["mlflow_run"]).data.metrics
    assert (metrics["pinned"], metrics["pins_unknown"], metrics["rules_never_matched"]) == (3, 1, 1)
    code, out, err = job("verify", "--output", "labels")
    assert code == 0, err
    assert "all 3 pins of its products in the labels" in out
    assert plain.decided is None


def test_what_the_model_says_is_carried_over_and_not_what_people_say(
    bundle: Path, catalog: pa.Table, categories: list[str]
) -> None:
    first = night(bundle, rules=None)
    assert first.cost.forwarded == ROWS - 1
    # Without pins, with pins, and with rules as well: the model is asked about nothing twice, and what it says is what it would say anew.
    second = night(bundle, pins=None, rules=None)
    third = night(bundle, publish_anyway=True)
    fourth = night(bundle, pins=None, rules=None, publish_anyway=True)
    assert len({one.run for one in (first, second, third)}) == 3
    assert fourth.run == second.run
    assert [one.cost.forwarded for one in (second, third, fourth)] == [0, 0, 0]
    anew = night(bundle, "elsewhere", publish_anyway=True)
    rejected = anew.rejects
    assert anew.cost.forwarded == ROWS - rejected - 1, "what people reject costs nothing"
    carried, fresh = (pq.read_table(f"{output}/run={third.run}") for output in ("labels", "elsewhere"))
    names = [
        name
        for name in carried.column_names
        if name not in ("confidence", "level_confidences", "alternatives", "model")
    ]
    assert carried.select(names).equals(fresh.select(names))
    said = [pc.struct_field(table.column("model").combine_chunks(), "category") for table in (carried, fresh)]
    assert said[0].equals(said[1])


def test_the_same_pins_in_another_file_are_the_same_run(bundle: Path, catalog: pa.Table) -> None:
    first = night(bundle)
    table = pq.read_table("pins.parquet")
    pq.write_table(table.take([3, 1, 0, 2]).append_column("who", pa.array(["x"] * 4)), "pins.parquet")
    again = night(bundle)
    assert (again.run, again.cost.rows) == (first.run, 0)
    pq.write_table(table.slice(1), "pins.parquet")
    assert night(bundle, publish_anyway=True).run != first.run


def test_verify_finds_a_pin_that_is_not_in_the_labels(
    bundle: Path, catalog: pa.Table, categories: list[str], job: Job
) -> None:
    done = night(bundle)
    code, _, err = job("verify", "--output", "labels")
    assert code == 0, err
    pins = pq.read_table(f"labels/run={done.run}/_pins.parquet").to_pylist()
    pins[1]["category_path"] = categories[3]
    pq.write_table(pa.Table.from_pylist(pins), f"labels/run={done.run}/_pins.parquet")
    code, _, err = job("verify", "--output", "labels")
    assert code == 3
    assert "1 labels are not what is pinned, the first that of product 1" in err
    pq.write_table(pa.Table.from_pylist(pins[1:]), f"labels/run={done.run}/_pins.parquet")
    code, _, err = job("verify", "--output", "labels")
    assert (code, "has 3 pins, the manifest says 4" in err) == (3, True)


def test_on_s3(bundle: Path, catalog: pa.Table, s3: str, job: Job, working_folder: Path) -> None:
    upload(working_folder, f"{s3}/people")
    code, _, err = job(
        *("label", "--catalog", f"{s3}/people/c.parquet", "--output", f"{s3}/people-labels", "--model", bundle),
        *("--pins", f"{s3}/people/pins.parquet", "--rules", f"{s3}/people/rules.yaml"),
    )
    assert code == 0, err
    code, out, err = job("verify", "--output", f"{s3}/people-labels")
    assert code == 0, err
    assert "all 3 pins" in out


def test_the_service_says_the_same(bundle: Path, catalog: pa.Table) -> None:
    night(bundle)
    labels = {row["id"]: row for row in published().to_pylist()}
    given = deciding_of.read("pins.parquet", "rules.yaml", read_spec(bundle), 3)
    loaded = load(ModelSource(bundle, str(bundle), None), Answering("id", 3, "fp32", "cpu", decisions=given.share()))
    asked = catalog.to_pylist()
    answers = loaded.answer(asked)
    for product, answer in zip(asked, answers, strict=True):
        if "reason" in answer:
            assert product["id"] not in labels
            assert answer["reason"] == "rule samples: a sample, not for sale"
        else:
            wanted = labels[product["id"]]
            assert list(answer) == list(wanted)
            for name in ("category", "source", "needs_review", "trusted_category", "text_hash"):
                assert answer[name] == wanted[name], name
    pinned = loaded.answer([{"id": 20, "title": "quite another"}, {"id": "1"}])
    assert [row["source"] for row in pinned] == ["pin", "pin"]


@pytest.mark.parametrize(
    ("flag", "content", "sentence"),
    [
        ("--rules", "rules: [{name: a, when: {brnd: x}, review: true}]", "no column 'brnd'; it has id, title"),
        (
            "--rules",
            "rules: [{name: a, when: {brand: x}, category: Nowhere}]",
            "rule a: the model knows no category 'Nowhere'",
        ),
        ("--rules", "rules: [{name: a, when: {brand: {regex: '('}}, review: true}]", "is no regular expression of RE2"),
    ],
)
def test_rules_that_cannot_work_end_the_job_before_anything_runs(
    flag: str, content: str, sentence: str, bundle: Path, catalog: pa.Table, job: Job
) -> None:
    Path("bad.yaml").write_text(content)
    command = ("label", "--catalog", "c.parquet", "--output", "labels", "--model", bundle)
    refused(job(*command, flag, "bad.yaml"), sentence)
    refused(job(*command, flag, "nowhere.yaml"), "nowhere.yaml")


def test_an_id_that_nobody_can_read_is_rejected_whatever_rules_say(bundle: Path, catalog: pa.Table) -> None:
    ids = pa.array([b"caf\xe9" if i == 1 else str(i).encode() for i in range(ROWS)]).view(pa.string())
    pq.write_table(catalog.set_column(0, "id", ids), "c.parquet")
    result = night(bundle, pins=None)
    rejects = pq.read_table(next(Path("labels").glob(f"run={result.run}/_rejects"))).to_pylist()
    assert [row["reason"] for row in rejects if "xe9" in row["id"]] == [ID_NOT_UTF8]
    assert not [name for name in published().column("id").to_pylist() if "xe9" in name]


def test_what_is_forbidden_needs_alternatives(bundle: Path, catalog: pa.Table, job: Job) -> None:
    command = ("label", "--catalog", "c.parquet", "--output", "labels", "--model", bundle, "--alternatives", "0")
    refused(job(*command, "--rules", "rules.yaml"), "--alternatives 0: rule not here of --rules rules.yaml forbids")


def test_pins_that_cannot_be(bundle: Path, catalog: pa.Table, job: Job) -> None:
    command = ("label", "--catalog", "c.parquet", "--output", "labels", "--model", bundle)
    pq.write_table(pa.table({"id": ["1"], "category_path": ["Nowhere"]}), "pins.parquet")
    refused(
        job(*command, "--pins", "pins.parquet"),
        "--pins pins.parquet: the model knows no category 'Nowhere'; the nearest is",
    )
    refused(job(*command, "--pins", "none.parquet"), "--pins none.parquet: not found")
