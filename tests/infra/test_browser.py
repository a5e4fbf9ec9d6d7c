"""The pages in a real browser: they render without errors and show the figures of the run."""

import json
import shutil
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cataloger.config import EvaluateConfig
from cataloger.data.images import as_jpeg
from cataloger.evaluation.comparison import Comparison, Decision, Pair, Row, compare_predictions
from cataloger.evaluation.comparison_page import comparison_page
from cataloger.evaluation.fairness import judge
from cataloger.evaluation.groups_page import groups_page
from cataloger.evaluation.impact import Effect, Flow
from cataloger.evaluation.predictions import About, Predictions
from cataloger.explaining.job import Explained
from cataloger.explaining.lookup import Neighbour
from cataloger.explaining.occlusion import Explanation, Region, Word
from cataloger.infra import tracking
from cataloger.infra.pages import render
from cataloger.publishing import drift, nightly
from cataloger.publishing.doubts import Product
from cataloger.publishing.nightly import Night
from cataloger.publishing.summary import Summary
from servers import mlflow_server

CATEGORIES = [f"Department {i // 40} > Shelf {i // 8} > Kind of product under ${i} or $_${i}" for i in range(281)]
ROWS = 3_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = (
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
        "no-first-run",
    )
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1300,1000", *quiet):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def opened(browser: Any, working_folder: Path) -> Callable[[str], str]:
    """Opens a page, checks that the browser has nothing to complain of, and returns the text that a person sees."""

    def show(page: str) -> str:
        (working_folder / "page.html").write_text(page)
        browser.get_log("browser")
        browser.get(f"file://{working_folder / 'page.html'}")
        assert browser.get_log("browser") == []
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, "the page needs no scrolling to the side"
        return " ".join(str(browser.find_element("tag name", "body").text).split())

    return show


def predictions(seed: int, right: float) -> Predictions:
    """A model that is right that often, on the same rows for every seed."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, 282)
    true = random.choice(281, ROWS, p=share / share.sum())
    answers = np.random.default_rng(seed)
    given = np.where(answers.random(ROWS) < right, true, answers.integers(0, 281, ROWS))
    table = pa.table(
        {
            "row": np.arange(ROWS),
            "id": np.arange(ROWS),
            "text": [f"<b>Product</b> number {i}" if i % 3 else f"商品 {i}" for i in range(ROWS)],
            "slice.language": ["de" if i % 4 else "en" for i in range(ROWS)],
            "true_category": [CATEGORIES[i] for i in true],
            "category": [CATEGORIES[i] for i in given],
            "confidence": answers.random(ROWS),
            "needs_review": answers.random(ROWS) < 0.2,
        }
    )
    return Predictions(
        table, About(f"models:/shop/{seed}", "shop.parquet", "0", "id", "category_path", "all", tuple(CATEGORIES), 9.0)
    )


def test_the_comparison(browser: Any, opened: Callable[[str], str]) -> None:
    names = ("champion (shop 3)", "challenger (shop 4)")
    said = [predictions(1, 0.7), predictions(2, 0.75)]
    pair: Pair = compare_predictions(*said, names)
    flows = tuple(Flow(CATEGORIES[i], CATEGORIES[i + 9], 90 - i, "Pot & pan <2 l>") for i in range(15))
    pair = replace(pair, slowdown=1.25, effect=Effect("s3://shop/catalog", 20_000, 0.0625, 0.2, 0.15, flows))
    rows = (Row("parameter", "epochs", ("3", "8")), Row("parameter", "seed", ("0", "0")))
    result = Comparison(
        names, rows, (pair,), Decision("models:/shop/4", ("promoted: challenger (shop 4) by accuracy",))
    )
    text = opened(comparison_page(result, said))
    accuracy = pair.differences[0]
    for shown in (
        f"challenger (shop 4) is right on {accuracy.second:.1%} of 3,000 products",
        f"{pair.mcnemar.only_second} products only challenger (shop 4) gets right",
        "promoted: challenger (shop 4) by accuracy",
        "A text takes 1.25 times as long",
        "6.2% of 20,000 sampled products would change category; 15.0% would need review, now 20.0%",
        "Pot & pan <2 l>",
        "champion (shop 3) minus" if accuracy.by < 0 else "challenger (shop 4) minus champion (shop 3)",
        "difference, with its 95% interval",
        "share of products labelled without review",
        pair.winners[0].category,
        "parameter epochs 3 8",
        "All 281 categories" if len(pair.categories) == 281 else f"All {len(pair.categories)} categories",
        "level 1",
        "tail",
        "Han",
        "de",
    ):
        assert shown in text, shown
    assert "parameter seed" not in text, "folded away: it is the same in both"
    titles = [line.text for line in browser.find_elements("css selector", "svg text") if line.text]
    assert len(titles) > 30, "the words in pictures are words"


def test_the_night(browser: Any, opened: Callable[[str], str]) -> None:
    before, now = (summary(seed) for seed in (1, 2))
    found = Night(
        "7f3a", now, Counter({"no text in any of the text columns": 12}), "91bc", before, drift.compare(before, now)
    )
    about = {"catalog": "s3://shop/catalog", "model": "models:/shop/4"}
    text = opened(nightly.page(found, about, {"labelled": "2,988", "rows/s": "1,234"}, []))
    assert found.drift is not None
    (old, new), count = found.drift.flows.most_common(1)[0]
    for shown in (
        "Labels of s3://shop/catalog",
        "by models:/shop/4",
        "1,234 rows/s",
        "0.0% of the products before are missing",
        f"{found.drift.changed:.1%} changed category",
        f"{found.drift.stability:.3f} population stability index",
        f"{now.review_share:.1%} need review",
        "no text in any of the text columns 12",
        "share of the labels",
        "Categories that grew and shrank most",
        f"{old} {new} {count}",
        "Department 0",
    ):
        assert shown in text, shown
    alone = opened(nightly.page(Night("7f3a", now, Counter()), about, {"labelled": "3,000"}, []))
    assert "The first labels" in alone
    assert "What moved" not in alone
    assert "No label needs review" in alone
    tops = Counter(path.split(" > ")[0] for path in now.counts.elements())
    top, count = tops.most_common(1)[0]
    shelf = Counter(path.split(" > ")[1] for path in now.counts.elements() if path.startswith(f"{top} > "))
    for name, products in shelf.items():
        assert f"{name} {products:,} {products / ROWS:.1%}" in alone, "the largest category is open"
    smallest, count = tops.most_common()[-1]
    hidden = next(path.split(" > ")[1] for path in now.counts if path.startswith(f"{smallest} > "))
    assert f"{smallest} {count:,}" in alone
    assert hidden not in alone
    (line,) = [one for one in browser.find_elements("css selector", "summary") if one.text.startswith(smallest)]
    line.click()
    assert hidden in browser.find_element("tag name", "body").text, "a click opens it"


HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\"><svg onload=document.title='taken'>",
    "'\"></td></table><style>body { display: none }</style>{{ 7 * 7 }} {% raw %}",
    "\u202eabc ${alert(1)} </bdi>\x00\x07",
    "W" * 200,
)


def test_words_of_the_catalog_stay_words(browser: Any, opened: Callable[[str], str]) -> None:
    others = (("Toys & <b>games</b> > " + "Long" * 30, 0.25), ("B", 0.125))
    products = [Product(f"<i>{i}</i>", 0.5, (("A > <u>B</u>", 0.5),), others, words) for i, words in enumerate(HOSTILE)]
    products += [Product(None, 0.25, (), (), None), Product("7", 0.25, (("A", 0.75), ("B", 0.5)), (), "two of them")]
    about = {"catalog": "<s>shop</s>", "model": "<em>m</em>"}
    page = nightly.page(Night("7f3a", summary(1), Counter({"<q>why</q>": 1})), about, {}, products)
    text = opened(page)
    assert browser.title == "Labels of <s>shop</s>"
    for words in HOSTILE[:3]:
        assert words in text
    for shown in (
        "<i>0</i> A > <u>B</u> 50.0% Toys & <b>games</b>",
        "no id no category 25.0% for the whole label",
        "two of them 7 A 75.0% B 50.0% 25.0% for the whole label",
        "<q>why</q>",
    ):
        assert shown in text, shown
    assert not browser.find_elements("css selector", "script, img, table i, u, s, em, q")

    # Even if a mistake in a template let them through.
    careless = page.replace("two of them", "".join(HOSTILE[:2]))
    Path("careless.html").write_text(careless)
    browser.get(Path("careless.html").resolve().as_uri())
    assert browser.find_elements("css selector", "script")
    assert browser.title == "Labels of <s>shop</s>"


def summary(seed: int) -> Summary:
    one = predictions(seed, 0.9).table
    categories = one.column("category").to_pylist()
    labels = pd.DataFrame({"id": np.arange(ROWS, dtype=np.uint64), "category": categories, "text": 0})
    histogram = np.histogram(one.column("confidence"), 20, (0, 1))[0]
    review = int(np.sum(one.column("needs_review").to_numpy()))
    nobody = np.empty(0, np.uint64)
    reviewed = Counter(one.filter(one.column("needs_review")).column("category").to_pylist())
    counts = Counter(categories)
    return Summary(ROWS, counts, ROWS / 2, histogram, review, labels, nobody, 1, reviewed, 0, ())


def test_mlflow_shows_runs_by_name_and_the_model_with_its_aliases(
    browser: Any,
    trained,
    tracking_store: str,
    working_folder: Path,  # type: ignore[no-untyped-def]
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    tracking.connect()
    run = mlflow.get_run(trained.run_id)
    config = EvaluateConfig(catalog="none", experiment="tests")
    with tracking.run("evaluate", "another", config, None, {}):
        tracking.log_metrics({"accuracy": 0.5})
    name = trained.model_uri.split("/")[1]

    def seen(address: str, *words: str) -> str:
        def text(_: Any) -> str:
            found = str(browser.find_element("tag name", "body").text)
            return found if all(word in found for word in words) else ""

        browser.get(address)
        return str(WebDriverWait(browser, 60).until(text, f"{address}: {words}"))

    with mlflow_server(working_folder / "server", tracking_store) as (server, _):
        experiment = f"{server}/#/experiments/{run.info.experiment_id}"
        seen(f"{experiment}/runs", str(run.info.run_name))
        seen(f"{experiment}/runs/{run.info.run_id}", "val_weighted_f1", "learning_rate", "tests")
        seen(f"{experiment}/runs/{run.info.run_id}/model-metrics", "learning_rate", "Step")
        other = next(
            one
            for one in mlflow.search_runs([run.info.experiment_id], output_format="list")
            if one.info.run_id != run.info.run_id and one.info.run_name != run.info.run_name
        )
        both = urllib.parse.quote(json.dumps([run.info.run_id, other.info.run_id]))
        compared = f"{server}/#/compare-runs?runs={both}&experiments={urllib.parse.quote(json.dumps([run.info.experiment_id]))}"
        seen(compared, str(run.info.run_name), str(other.info.run_name), "Parameters")
        seen(f"{server}/#/models/{name}", "champion", "challenger")


def test_the_explanation(browser: Any, opened: Callable[[str], str]) -> None:
    title = "Blue <b>running</b>\nshoes " + "x" * 200
    words = (
        Word("title", 0, 4, "Blue", 2.0, 1.0, 0.4),
        Word("title", 23, 28, "shoes", -1.0, -1.5, 0.9),
        Word("title", 29, 229, "x" * 200, 0.01, 0.0, 0.7),
    )
    regions = (Region(0.0, 0.0, 0.2, 0.2, 1.5, 1.0, 0.5), Region(0.2, 0.0, 0.4, 0.2, -1.0, 1.0, 0.5))
    why = Explanation("Shoes > Boots", 0.75, "Tea", "both", words, regions)
    near = Neighbour("sku-<2>", "Blue boots", ("Shoes > Boots",), 0.9)
    products = [
        Explained("sku-1", {"title": title}, (why,), None, as_jpeg(np.zeros((3, 32, 32), np.uint8)), (near,)),
        Explained("sku-3", {}, (), "no text in any of the text columns"),
    ]
    shown = opened(render("explanation.html", products=products, model="models:/shop/1"))
    assert "Blue" in shown
    assert "<b>running</b>" in shown
    assert "It has no category: no text in any of the text columns." in shown
    marks = browser.find_elements("css selector", "article mark")
    assert [mark.get_attribute("class") for mark in marks] == ["for", "against"]
    assert "(against, -1.0)" in marks[1].get_attribute("textContent"), "for those who listen"
    assert len(browser.find_elements("css selector", "svg rect")) == 2


def test_groups_of_products(browser: Any, opened: Callable[[str], str]) -> None:
    said = predictions(1, 0.7)
    shown = opened(groups_page(judge(said, ["language"]), said.about))
    assert "By language" in shown
    assert "No group gets clearly worse answers than other products." in shown
    assert len(browser.find_elements("css selector", ".wide table tr")) == 3
