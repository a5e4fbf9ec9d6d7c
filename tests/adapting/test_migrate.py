"""Another tree: a map from old categories to new ones, edited by people, and the labels by it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.adapting.mapping import tell_apart
from cataloger.adapting.trees import read_tree
from cataloger.bundle import read_spec
from cataloger.config import LabelConfig, TrainConfig
from cataloger.curation.moves import read_moves
from cataloger.errors import CatalogError
from cataloger.labeling.job import label
from cataloger.training.corrections import GIVEN
from cataloger.training.plan import plan
from conftest import published, upload

pytestmark = pytest.mark.usefixtures("ray_session")
Job = Callable[..., tuple[int, str, str]]
ROWS = 120


@pytest.fixture
def categories(bundle: Path) -> list[str]:
    return list(read_spec(bundle).categories)


@pytest.fixture
def labels(bundle: Path, categories: list[str], working_folder: Path) -> pa.Table:
    """Products that pins put into four old categories, and one that is a reject."""
    old = [categories[i % 4] for i in range(ROWS)]
    kinds = ("espresso coffee beans", "running shoe", "cotton t-shirt", "leather football")
    table = pa.table(
        {
            "id": range(ROWS),
            "title": [
                None if i == 8 else f"{kinds[i % 4] if i % 4 < 3 or i % 8 < 4 else 'ceramic tea pot'} {i}"
                for i in range(ROWS)
            ],
            "brand": pa.nulls(ROWS, pa.string()),
            "description": pa.nulls(ROWS, pa.string()),
        }
    )
    pq.write_table(table, "c.parquet")
    pins = pa.table(
        {"id": [str(i) for i in range(ROWS) if i != 8], "category_path": [path for i, path in enumerate(old) if i != 8]}
    )
    pq.write_table(pins, "pins.parquet")
    label(
        LabelConfig(
            catalog="c.parquet",
            output="labels",
            model=(str(bundle),),
            precision="fp32",
            pins="pins.parquet",
            max_reject_fraction=0.1,
        )
    )
    return published()


def tree(*more: str) -> None:
    paths = ["Food > Coffee", "Wear > Shoes", "Wear > Shirts", "Sport > Balls", "Home > Tea Pots", *more]
    pq.write_table(pa.table({"category_path": paths}), "tree.parquet")


def examples() -> None:
    rows = {
        "id": ["0", "1", "2", "3", "7"],
        "title": [
            "espresso coffee beans 0",
            "running shoe 1",
            "cotton t-shirt 2",
            "leather football 3",
            "ceramic tea pot 7",
        ],
        "brand": [None] * 5,
        "description": [None] * 5,
        "category_path": ["Food > Coffee", "Wear > Shoes", "Wear > Shirts", "Sport > Balls", "Home > Tea Pots"],
    }
    pq.write_table(
        pa.table({**rows, "brand": pa.nulls(5, pa.string()), "description": pa.nulls(5, pa.string())}),
        "examples.parquet",
    )


MAKE = ("migrate", "--labels", "labels", "--to", "tree.parquet", "--examples", "examples.parquet", "--output", "map")
APPLY = ("migrate", "--labels", "labels", "--apply", "map", "--output", "moved")


def test_a_map_is_proposed_and_the_labels_move_by_it(labels: pa.Table, categories: list[str], job: Job) -> None:
    tree()
    examples()
    code, out, err = job(*MAKE)
    assert code == 0, err
    rows = {row["old"]: row for row in pq.read_table("map/map.parquet").to_pylist()}
    assert [rows[path]["target"] for path in categories[:3]] == ["Food > Coffee", "Wear > Shoes", "Wear > Shirts"]
    split = rows[categories[3]]
    assert (split["kind"], {one["category"] for one in split["targets"][:2]}) == (
        "split",
        {"Sport > Balls", "Home > Tea Pots"},
    )
    page = Path("map/map.html").read_text()
    for part in ("leather football", "its products go to several categories", "Food &gt; Coffee"):
        assert part in page
    code, out, err = job(*APPLY)
    assert code == 0, err
    moved = {row["id"]: row for row in published("moved").to_pylist()}
    assert len(moved) == ROWS - 1
    expected = ["Food > Coffee", "Wear > Shoes", "Wear > Shirts"]
    for number, row in moved.items():
        if number % 4 < 3:
            assert (row["category"], row["source"]) == (expected[number % 4], "map")
        else:
            assert (row["category"], row["source"]) == (
                "Sport > Balls" if number % 8 < 4 else "Home > Tea Pots",
                "meaning",
            )
        assert len(row["level_confidences"]) == 2
        assert row["needs_review"] == (row["trusted_category"] is None)
    code, out, err = job("verify", "--output", "moved")
    assert code == 0, err
    assert "ids equal to the catalog's" in out
    before = Path("moved/_latest.json").read_text()
    assert job(*APPLY)[0] == 0
    assert Path("moved/_latest.json").read_text() == before, "the same map is the same run"
    table = Path("map/map.parquet").read_bytes()
    code, _, err = job(*MAKE)
    assert (code, "--output map: has a map already, which people may have edited" in err) == (2, True), err
    code, _, err = job(*APPLY[:-1], "map")
    assert (code, "--output map: has a map; name another folder for the labels" in err) == (2, True), err
    assert Path("map/map.parquet").read_bytes() == table


def test_a_map_is_applied_with_the_columns_that_it_was_made_with(labels: pa.Table, job: Job) -> None:
    tree()
    examples()
    code, _, err = job(*MAKE, "--text-columns", "title", "brand")
    assert code == 0, err
    code, _, err = job(*APPLY)
    assert code == 0, err
    assert {row["category"] for row in published("moved").to_pylist()} > {"Sport > Balls", "Home > Tea Pots"}


def test_people_edit_the_map(labels: pa.Table, categories: list[str], job: Job) -> None:
    tree("Toys")
    examples()
    assert job(*MAKE)[0] == 0
    table = pq.read_table("map/map.parquet")

    def edit(**changes: dict[str, object]) -> None:
        rows = table.to_pylist()
        for row in rows:
            row.update(changes.get(row["old"], {}))  # type: ignore[arg-type]
        pq.write_table(
            pa.Table.from_pylist([row for row in rows if "drop" not in row], table.schema), "map/map.parquet"
        )

    edit(**{categories[0]: {"target": "Toys"}, categories[3]: {"target": None, "targets": [], "kind": "gone"}})
    code, _, err = job(*APPLY)
    assert code == 0, err
    moved = {row["id"]: row for row in published("moved").to_pylist()}
    assert {moved[number]["category"] for number in moved if number % 4 == 0} == {"Toys"}
    assert not [number for number in moved if number % 4 == 3]
    rejects = pq.read_table(next(Path("moved").glob("run=*/_rejects"))).to_pylist()
    assert {row["reason"] for row in rejects if row["id"] != 8} == {
        f"its category {categories[3]} is gone in the new tree"
    }
    assert len(moved) + len(rejects) == ROWS
    published_before = Path("moved/_latest.json").read_text()
    for changes, sentence in (
        ({categories[0]: {"target": "Nowhere"}}, "the new tree has no category 'Nowhere'"),
        ({categories[0]: {"target": None}}, "has no target; give it one, or the kind gone"),
        ({categories[0]: {"drop": True}}, "has no row for 1 categories of 29 products"),
        ({categories[0]: {"old": categories[1]}}, "has two rows for"),
    ):
        edit(**changes)  # type: ignore[arg-type]
        code, _, err = job(*APPLY)
        assert (code, sentence in err) == (2, True), err
        assert Path("moved/_latest.json").read_text() == published_before
    pq.write_table(table, "map/map.parquet")


def test_yesterdays_rows_teach_the_new_tree(
    labels: pa.Table, categories: list[str], labelled: Path, job: Job, in_process: None
) -> None:
    tree()
    examples()
    assert job(*MAKE)[0] == 0
    rows = pq.read_table("c.parquet").append_column("category_path", pa.array([categories[i % 4] for i in range(ROWS)]))
    pq.write_table(rows, "old.parquet")
    code, _, err = job(
        *(
            "train",
            "--catalog",
            "old.parquet",
            "--tree-map",
            "map",
            "--base-model",
            "none",
            "--model-name",
            "moved",
            "--target-precision",
            "0.5",
        ),
        *("--validation-fraction", "0.3"),
    )
    assert code == 0, err
    from cataloger.model.registry import fetch_model

    spec = read_spec(fetch_model("models:/moved@champion").folder)
    assert spec.categories == ("Food > Coffee", "Wear > Shirts", "Wear > Shoes")


def test_on_s3(bundle: Path, labels: pa.Table, s3: str, job: Job, working_folder: Path) -> None:
    tree()
    examples()
    upload(working_folder, f"{s3}/migrate")
    where = f"{s3}/migrate"
    label(
        LabelConfig(
            catalog=f"{where}/c.parquet",
            output=f"{where}/labels-s3",
            model=(str(bundle),),
            precision="fp32",
            max_reject_fraction=0.1,
        )
    )
    flags = ("--labels", f"{where}/labels-s3", "--output", f"{where}/map-s3")
    code, _, err = job("migrate", *flags, "--to", f"{where}/tree.parquet", "--examples", f"{where}/examples.parquet")
    assert code == 0, err
    code, _, err = job(
        "migrate", "--labels", f"{where}/labels-s3", "--apply", f"{where}/map-s3", "--output", f"{where}/moved-s3"
    )
    assert code == 0, err
    assert job("verify", "--output", f"{where}/moved-s3")[0] == 0


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"category_path": ["A", "B", "A"]}, "two nodes have the path 'A'"),
        ({"category_path": ["A >"]}, "is no category path"),
        ({"id": ["1", "2"], "parent_id": ["2", "1"], "name": ["A", "B"]}, "node 1 is its own ancestor"),
        ({"id": ["1"], "parent_id": ["9"], "name": ["A"]}, "has the ancestor 9, which is not there"),
        ({"id": ["1", "1"], "parent_id": [None, "1"], "name": ["A", "B"]}, "two nodes have the id 1"),
        ({"id": ["1"], "parent_id": pa.nulls(1, pa.string()), "name": ["A > B"]}, "a name needs letters, and no '>'"),
        (
            {"id": ["1", "2", "3"], "parent_id": [None, "1", "1"], "name": ["A", "B", "B"]},
            "two nodes have the path 'A > B'",
        ),
        ({"name": ["A"]}, "needs one column 'id'"),
    ],
)
def test_trees_that_are_none(columns: dict[str, object], sentence: str, labels: pa.Table, job: Job) -> None:
    pq.write_table(pa.table(columns), "tree.parquet")
    code, _, err = job("migrate", "--labels", "labels", "--to", "tree.parquet")
    assert code == 2, err
    assert sentence in err
    assert not Path("map").exists() or not list(Path("map").iterdir())


def test_a_tree_as_pandas_writes_it(working_folder: Path) -> None:
    """Whole numbers beside none are floating-point ones there; or a root has no text."""
    for parents in ([None, 1.0], ["", "1"]):
        pq.write_table(pa.table({"id": ["1", "2"], "parent_id": parents, "name": ["A", "B"]}), "tree.parquet")
        assert read_tree("tree.parquet").paths == ("A", "A > B")


def test_a_product_without_meaning_goes_where_most_go() -> None:
    assert tell_apart(np.zeros((1, 2), np.float32), [0.2, 0.8])[0].argmax() == 1
    assert tell_apart(np.array([[0.9, 0.1]], np.float32), [0.5, 0.5])[0].argmax() == 0


def test_an_edited_map_teaches_what_it_says(working_folder: Path) -> None:
    pq.write_table(pa.table({"target": ["B  > C", None], "old": ["A", "X"]}), "map.parquet")
    assert read_moves("map.parquet") == {"A": "B > C"}
    for columns, sentence in (
        ({"old": ["A", "A"], "target": ["B", "C"]}, "has two rows for 'A'"),
        ({"old": ["A"], "target": ["B >"]}, "'B >', the target of 'A', is no category path"),
    ):
        pq.write_table(pa.table(columns), "map.parquet")
        with pytest.raises(CatalogError, match=sentence):
            read_moves("map.parquet")


def test_corrections_are_of_the_new_tree(working_folder: Path) -> None:
    """`Audio` is split, and what is left of it has its old name: rows of the old tree do not become it."""
    old = {"id": ["1", "2", "3"], "title": ["head", "ear", "tea"], "category_path": ["Audio", "Audio", "Drinks"]}
    pq.write_table(pa.table(old), "old.parquet")
    pq.write_table(pa.table({"old": ["Audio", "Drinks"], "target": [None, "Food"]}), "map.parquet")
    pq.write_table(pa.table({"id": ["1"], "category_path": ["Audio"], "title": ["head"]}), "corrections.parquet")
    planned = plan(
        TrainConfig(
            catalog="old.parquet",
            text_columns=("title",),
            tree_map="map.parquet",
            corrections="corrections.parquet",
            base_model="none",
        )
    )
    assert planned.spec.categories == ("Audio", "Food")
    ids = planned.sources[0].label_ids
    assert "Audio" not in ids
    assert ids["Drinks"] == 1
    assert ids[GIVEN + "Audio"] == 0


def test_examples_and_maps_that_cannot_be(labels: pa.Table, job: Job) -> None:
    tree()
    examples()
    pq.write_table(
        pq.read_table("examples.parquet").set_column(4, "category_path", pa.array(["Food > Cofee"] * 5)),
        "examples.parquet",
    )
    code, _, err = job(*MAKE)
    assert (code, "the new tree knows no category 'Food > Cofee'; the nearest is 'Food > Coffee'" in err) == (
        2,
        True,
    ), err
    pq.write_table(
        pq.read_table("examples.parquet").set_column(4, "category_path", pa.array(["Food"] * 5)), "examples.parquet"
    )
    code, _, err = job(*MAKE)
    assert (code, "'Food' has categories below it" in err) == (2, True), err
    code, _, err = job("migrate", "--labels", "labels")
    assert (code, "--to: name the new tree" in err) == (2, True)
    code, _, err = job("migrate", "--labels", "labels", "--apply", "nowhere", "--output", "moved")
    assert (code, "is no map" in err) == (2, True)
    assert json.loads(Path("labels/_latest.json").read_text())
