"""The page and the figures of a night, by the labelling job itself."""

import html
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cataloger.config import LabelConfig
from cataloger.data import units
from cataloger.data.catalog import open_catalog
from cataloger.data.text import compose, hash_texts
from cataloger.data.texts import TextInput
from cataloger.data.units import plan_units
from cataloger.infra.storage import locate
from cataloger.labeling.job import label
from cataloger.labeling.result import LabelResult
from cataloger.publishing import doubts, drift, nightly, snapshot
from cataloger.publishing.doubts import Origin
from cataloger.publishing.nightly import Branch, Night, tree
from cataloger.publishing.parts import write_part
from cataloger.publishing.summary import Summary

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
            catalog="shop.parquet",
            output="labels",
            model=(str(bundle),),
            experiment="nights",
            max_changed_fraction=1,
        )
    )
    page = Path(result.output, f"run={result.run}", "_report.html").read_text()
    return result, html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


def section(page: str, title: str, end: str) -> str:
    return page[page.index(title) : page.index(end, page.index(title))]


@pytest.fixture
def several_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop is cut into four parts."""
    monkeypatch.setattr(units, "MIN_UNIT_ROWS", ROWS // 4)


def test_a_first_night_shows_the_categories_and_the_least_certain_products_with_their_words(
    bundle: Path, labelled: Path, ray_session: None, several_units: None
) -> None:
    shop(labelled, changed=0)
    first, page = night(bundle)
    run = Path(first.output, f"run={first.run}")
    labels = pd.read_parquet(run)
    tops = labels["category"].str.split(" > ").str[0]
    for top, count in tops.value_counts().items():
        sure = 1 - labels.loc[tops == top, "needs_review"].mean()
        assert f"{top} {count:,} {count / len(labels):.1%} {sure:.1%}" in page

    source = pq.read_table("shop.parquet")
    texts = compose(source, ("title", "brand", "description"), 32).to_pylist()
    words = dict(zip(source.column("id").to_pylist(), texts, strict=True))
    doubtful = labels[labels["needs_review"]].drop_duplicates("text_hash").nsmallest(12, "confidence")
    assert len(doubtful) == 12
    shown = section(page, "Look at these first", "How sure the model is")
    at = 0
    for product in doubtful.itertuples():
        others = [f"{other['category']} {other['confidence']:.1%}" for other in product.alternatives]
        assert len(others) == 3
        line = " ".join([words[product.id][:200], product.id, f"{product.category} {product.confidence:.1%}", *others])
        at = shown.index(line, at)

    # Killed before its manifest, with a part to do: most of the dozen are of parts that were finished earlier.
    for name in ("_manifest.json", "_report.html", "part-00001.parquet", "../_latest.json"):
        (run / name).unlink()
    again, page = night(bundle)
    assert (again.run, again.cost.rows) == (first.run, ROWS // 4)
    assert section(page, "Look at these first", "How sure the model is") == shown


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
    assert second.cost.carried > 900
    was, is_now = Counter(before.values()), Counter(now.values())
    moved = [path for path in is_now if is_now[path] != was[path]]
    assert moved
    for path in moved:
        count = is_now[path]
        assert f"{path.split(' > ')[-1]} {count:,} {count / len(now):.1%} {count - was[path]:+,}" in page
    shown = section(page, "Look at these first", "How sure the model is")
    titles = pq.read_table("shop.parquet", columns=["title"]).column(0).to_pylist()
    assert sum(title in shown for title in set(filter(None, titles))) >= 12, (
        "labels that are carried over have words too"
    )
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


def summary(counts: dict[str, int], reviewed: dict[str, int] | None = None) -> Summary:
    labels, nobody = pd.DataFrame({"id": [], "category": [], "text": []}), np.empty(0, np.uint64)
    rows = sum(counts.values())
    histogram = np.histogram([], 20, (0, 1))[0]
    return Summary(rows, Counter(counts), 0.0, histogram, 0, labels, nobody, 1, Counter(reviewed or {}), 0, ())


def test_the_tree_of_categories_by_hand() -> None:
    now = summary({"A > B > C": 5, "A > B": 2, "A > D": 4, "E": 3, "F > G": 1}, {"A > B > C": 1, "A > B": 2, "E": 3})
    before = summary({"A > B": 4, "A > Gone": 9, "E": 1})
    assert tree(now, before) == (
        Branch(
            "A", 11, 3, 13,
            (
                Branch("B", 7, 3, 4, (Branch("C", 5, 1, 0), Branch("B itself", 2, 2, 4))),
                Branch("D", 4, 0, 0),
            ),
        ),
        Branch("E", 3, 3, 1),
        Branch("F", 1, 0, 0, (Branch("G", 1, 0, 0),)),
    )  # fmt: skip
    assert tree(now)[0].sure == pytest.approx(8 / 11)
    assert tree(summary({})) == ()


def test_the_page_stays_small_and_complete_for_ten_thousand_categories() -> None:
    random = np.random.default_rng(0)
    counts = {
        f"Department {i % 23} > Aisle {i % 391} > Shelf {i % 2_003} > Kind of product with a name {i}": int(count)
        for i, count in enumerate(random.zipf(1.5, 10_000).clip(1, 10_000))
    }
    counts["Deep" + " > deeper" * 2_000] = 90_000
    now = summary(counts)
    found = Night("7f3a", now, Counter())
    page = nightly.page(found, {"catalog": "shop", "model": "m"}, {}, [])
    assert len(page) < 500_000
    assert re.search(r"… and [\d,]+ more categories", page)

    def check(branches: tuple[Branch, ...], labels: int) -> int:
        """Whatever is folded away is counted: the branches below one add up to it. How many there are."""
        assert sum(branch.labels for branch in branches) == labels
        assert [b.labels for b in branches[:-1]] == sorted((b.labels for b in branches[:-1]), reverse=True)
        assert len(branches) <= nightly.SHOWN_SIDE_BY_SIDE + 2
        return sum(1 + (check(branch.children, branch.labels) if branch.children else 0) for branch in branches)

    assert nightly.SHOWN_BRANCHES < check(tree(now), now.rows) < 2 * nightly.SHOWN_BRANCHES


def test_new_and_vanished_categories_are_shown_by_size_as_far_as_the_page_stays_small() -> None:
    now, before = summary({f"A > {i}": i for i in range(1, 301)}), summary({"B": 7})
    found = Night("7f3a", now, Counter(), "91bc", before, drift.compare(before, now))
    page = nightly.page(found, {"catalog": "shop", "model": "m"}, {}, [])
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "New categories: 300 Their products now, the largest first. category products A &gt; 300 300" in text
    assert "… and 200 more" in text
    assert "Vanished categories: 1" in text


def test_a_night_of_products_of_any_number_of_categories(working_folder: Path) -> None:
    """Written by hand: what a product of two categories, or of none, counts for."""
    lists = [["Fruit > Apple", "Sale > Fruit"], ["Fruit > Apple"], []]
    labels = pa.table(
        {
            "id": ["both", "one", "none"],
            "categories": pa.array(lists, pa.list_(pa.string())),
            "confidences": pa.array([[0.75, 0.5], [1.0], []], pa.list_(pa.float32())),
            "confidence": pa.array([0.25, 1.0, 0.125], pa.float32()),
            "alternatives": [[{"category": "Nut", "confidence": 0.25}], [], []],
            "needs_review": [True, False, True],
            "text_hash": hash_texts(pa.array(["an apple", "apples", "a thing"])),
        }
    )
    pq.write_table(
        pa.table({"id": ["both", "one", "none"], "title": ["an apple", "apples", "a thing"]}), "shop.parquet"
    )
    catalog = open_catalog("shop.parquet", "id", ("title",))
    planned, folder = plan_units(catalog), snapshot.run_folder(locate("labels"), "7f3a")
    part = write_part(folder, 0, labels, labels.slice(0, 0), {"forwarded": 3}, {})
    found = nightly.look(locate("labels"), "7f3a", 1, 3, [part], None, "digest")
    products = doubts.products(
        found.now.doubts, folder, Origin(catalog, planned, {0: 0}, TextInput(Path(), ("title",), 16))
    )
    page = nightly.page(found, {"catalog": "shop", "model": "m"}, {}, products)
    text = html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))
    assert "A product counts once in each of its categories. 1 product has no category." in text
    assert "Fruit 2 66.7% 50.0% Apple 2 66.7% 50.0% Sale 1 33.3% 0.0% Fruit 1 33.3% 0.0%" in text
    shown = section(text, "labelled as or perhaps", "How sure the model is")
    assert shown.split(maxsplit=4)[4].strip() == (
        "a thing none no category 12.5% for the whole label "
        "an apple both Fruit > Apple 75.0% Sale > Fruit 50.0% 25.0% for the whole label Nut 25.0%"
    )


def test_a_night_like_the_one_before_has_nothing_to_say_of_changes() -> None:
    same = summary({"A > B": 3, "C": 1})
    found = Night("7f3a", same, Counter(), "91bc", same, drift.compare(same, same))
    page = nightly.page(found, {"catalog": "shop", "model": "m"}, {}, [])
    assert "Nothing: every product in both runs kept its category" in page
    assert "None: every category has the share that it had" in page


def test_a_catalog_that_makes_the_look_up_fail_costs_no_page(
    ray_session: None, working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("the store went away")

    monkeypatch.setattr(doubts, "products", fail)
    pq.write_table(pa.table({"id": [1, 2], "title": ["tea", "shoes"]}), "c.parquet")
    done = label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), text_columns=("title",)))
    page = Path(f"labels/run={done.run}/_report.html").read_text()
    assert "They could not be looked up" in page
    assert Path("labels/_latest.json").exists()
