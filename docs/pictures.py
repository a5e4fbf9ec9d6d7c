"""The pictures in docs/images: pages of the demo's models and of two nights of its catalog, as a browser shows them.

.venv/bin/python docs/pictures.py

Takes minutes on two cores. Needs chromium, chromedriver and a font with Chinese (Debian: fonts-wqy-microhei).
"""

import base64
import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from selenium import webdriver

from cataloger import demo
from cataloger.config import CompareConfig, EvaluateConfig, ExplainConfig, LabelConfig, SampleConfig, TrainConfig
from cataloger.data import sample
from cataloger.infra import runtime

IMAGES = Path(__file__).parent / "images"
WIDTH = 1100
COLOURS = 64
TEXTS = ("title", "brand", "description")
EXPLAINED = ("P0000000003",)


def make_pages() -> dict[str, tuple[Path, str | None]]:
    """By picture a page in the working folder, and the heading before which the picture ends; without one it shows all."""
    labelled = f"{demo.FOLDER}/labelled"
    sample.generate(SampleConfig(rows=demo.LABELLED_ROWS, output=labelled, labelled=True))
    with runtime.session():
        from cataloger.evaluation.compare import compare
        from cataloger.evaluation.evaluate import evaluate
        from cataloger.explaining.job import explain
        from cataloger.labeling.job import label
        from cataloger.training.job import train

        # The champion, to be replaced by the demo's model: one layer below the head was trained, for one epoch.
        train(
            TrainConfig(
                catalog=labelled, test_fraction=0.15, epochs=1, fine_tune="1", storage=f"{demo.FOLDER}/champion"
            )
        )
        first = demo.demo()
        a_day_later(f"{demo.FOLDER}/unlabelled", f"{demo.FOLDER}/unlabelled-2")
        second = label(
            LabelConfig(
                catalog=f"{demo.FOLDER}/unlabelled-2",
                output=f"{demo.FOLDER}/labels",
                model=(first.training.model_uri,),
            )
        )
        compare(
            CompareConfig(
                ("champion", "challenger"),
                evaluate=labelled,
                split="test",
                catalog=f"{demo.FOLDER}/unlabelled",
                promote=True,
            )
        )
        model = (first.training.model_uri,)
        evaluate(EvaluateConfig(catalog=labelled, model=model, split="test", group_columns=("brand",)))
        explain(ExplainConfig(model=model[0], catalog=f"{demo.FOLDER}/unlabelled", ids=EXPLAINED, neighbours=labelled))
    return {
        "night": (Path(second.output, f"run={second.run}", "_report.html"), "How sure the model is"),
        "comparison": (Path("comparison.html"), "Where they differ"),
        "groups": (Path("groups.html"), None),
        "explanation": (Path("explanation.html"), None),
    }


def a_day_later(catalog: str, later: str) -> None:
    """Products went and came, one in forty was given other words, and five lost theirs."""
    rows = demo.UNLABELLED_ROWS
    sample.generate(SampleConfig(rows=rows + 600, output=later, seed=1))
    sample.generate(SampleConfig(rows=rows + 600, output=f"{catalog}-other", seed=2))
    path = f"{later}/part-00000.parquet"
    now, other = pq.read_table(path), pq.read_table(f"{catalog}-other")
    number = pa.array(range(len(now)))
    mended, lost = (pc.equal(pc.subtract(number, pc.multiply(pc.divide(number, n), n)), 0) for n in (40, 4_001))
    for name in TEXTS:
        column = pc.if_else(mended, other.column(name), now.column(name))
        column = pc.if_else(lost, pa.scalar(None, pa.string()), column)
        now = now.set_column(now.column_names.index(name), name, column)
    pq.write_table(now.slice(300), path)


def picture(browser: Any, page: Path, until: str | None, image: Path) -> None:
    """The beginning of a page, up to the heading `until`, as a small PNG."""
    browser.get(page.resolve().as_uri())
    find = "return [...document.querySelectorAll('h2, h3')].find(one => one.textContent == arguments[0])"
    whole = "return document.documentElement.scrollHeight"
    height = browser.execute_script(find, until).location["y"] if until else browser.execute_script(whole)
    shown = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
    found = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": shown, "captureBeyondViewport": True})
    picture = Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")
    image.parent.mkdir(exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(image, optimize=True)


def browse(folder: str) -> Any:
    """Headless Chromium with its profile in `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("chromium: not found; apt-get install chromium")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars", f"window-size={WIDTH},1000"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={folder}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        pages = make_pages()
        browser = browse(f"{folder}/chromium")
        try:
            for name, (page, until) in pages.items():
                picture(browser, page, until, IMAGES / f"{name}.png")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
