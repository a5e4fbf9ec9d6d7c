"""The registered model in other people's hands gives the labels that the nightly job publishes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import read_spec, write_spec
from cataloger.config import LabelConfig
from cataloger.labeling.job import label
from cataloger.model.pyfunc import Categorizer
from cataloger.spec import MANY_CATEGORIES
from conftest import free_of_ray
from servers import BIN, free_port, kill_with_descendants, wait_for

ROWS = 60
COLUMNS = ["title", "brand", "description"]


@pytest.fixture(scope="module")
def published(trained, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pd.DataFrame]:  # type: ignore[no-untyped-def]
    """(the model's URI, products with the category and confidence that were published for them); brands are numbers here."""
    room = tmp_path_factory.mktemp("published")
    table = pq.read_table(labelled).slice(0, ROWS)
    brands = pa.array([None if row % 7 == 0 else 1_000 + row for row in range(ROWS)])
    table = table.set_column(table.column_names.index("brand"), "brand", brands)
    pq.write_table(table, room / "shop.parquet")
    result = label(
        LabelConfig(catalog=str(room / "shop.parquet"), output=str(room / "labels"), model=(trained.model_uri,))
    )
    labels = pq.read_table(f"{result.output}/run={result.run}", partitioning=None).to_pandas()
    products = table.to_pandas().merge(labels[["id", "category", "confidence"]], on="id", suffixes=("_true", ""))
    assert len(products) == ROWS
    return trained.model_uri, products


@pytest.fixture(scope="module")
def categorizer(bundle: Path) -> Categorizer:
    return Categorizer(bundle)


def test_answers_keep_the_index_of_the_frame_that_was_given(categorizer: Categorizer) -> None:
    words = ["tea", "shoes", "jeans", "pan", "lamp", "phone", "apple", "yoga", "chair", "razor", "drill", "novel"]
    titles = [word if row % 3 else None for row, word in enumerate(words)]
    frame = pd.DataFrame({"title": titles, "brand": ["Acme" if row % 6 == 3 else None for row in range(12)]})
    expected = categorizer.predict(frame)
    assert expected["category"].isna().tolist() == [row % 6 == 0 for row in range(12)]
    assert expected["category"].nunique() > 2
    filtered = frame[frame.index % 4 > 0].sort_index(ascending=False)
    filtered["category"] = categorizer.predict(filtered)["category"]
    pd.testing.assert_series_equal(filtered["category"], expected["category"].loc[filtered.index])
    repeated = frame.set_axis([7] * len(frame))
    answers = categorizer.predict(repeated)
    assert answers.index.tolist() == [7] * len(frame)
    assert answers["category"].tolist() == expected["category"].tolist()


def test_answers_of_many_categories_keep_the_index_too(bundle: Path, working_folder: Path) -> None:
    folder = shutil.copytree(bundle, working_folder / "many")
    spec = read_spec(folder)
    write_spec(folder, dataclasses.replace(spec, head=MANY_CATEGORIES, thresholds=(0.5,)))
    frame = pd.DataFrame({"title": ["tea", None, "red shoes"]}, index=["c", "b", "a"])
    answers = Categorizer(folder).predict(frame)
    assert answers.index.tolist() == ["c", "b", "a"]
    assert [type(found) for found in answers["categories"]] == [list, type(None), list]
    assert set(answers["categories"]["a"]) <= set(spec.categories)


def test_a_column_of_strings_and_numbers_is_read_as_the_catalog_that_has_them_as_strings(
    categorizer: Categorizer,
) -> None:
    mixed = ["tea", 5, None, 2.5, np.nan, 7.0, pd.NA, np.int64(12), 1e20, "5", True, Decimal("1.50"), 2**70, ""]
    strings = ["tea", "5", None, "2.5", None, "7", None, "12", "1e+20", "5", "true", "1.50", str(2**70), None]
    numbers = pa.array([5, 2.5, 7.0, 1e20]).cast(pa.string()).to_pylist()
    assert [strings[place] for place in (1, 3, 5, 8)] == numbers, "as Arrow writes a whole column"
    expected = categorizer.predict(pd.DataFrame({"title": strings}))
    assert expected["category"].nunique() > 2
    for column in (pd.Series(mixed, dtype=object), pd.Series(mixed[::-1], dtype=object)[::-1].reset_index(drop=True)):
        pd.testing.assert_frame_equal(categorizer.predict(pd.DataFrame({"title": column})), expected)
    categories = pd.DataFrame({"title": pd.Categorical(["tea", 5, None, "tea"])})
    assert categorizer.predict(categories)["category"].tolist() == expected["category"].iloc[[0, 1, 2, 0]].tolist()


def same(answers: pd.DataFrame, products: pd.DataFrame) -> None:
    assert answers["category"].tolist() == products["category"].tolist()
    # Other batches, and bf16 where the chip has it.
    assert answers["confidence"].tolist() == pytest.approx(products["confidence"].tolist(), abs=0.02)


def test_mlflow_models_serve(published: tuple[str, pd.DataFrame]) -> None:
    uri, products = published
    port = free_port()
    champion = f"{uri.rsplit('/', 1)[0]}@champion"
    command = [BIN / "mlflow", "models", "serve", "-m", champion, "--env-manager", "local", "-p", str(port), "-w", "1"]
    path = f"{BIN}:{os.environ['PATH']}"
    with open("log", "wb") as log:
        server = subprocess.Popen([*map(str, command)], env=free_of_ray(PATH=path), stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, 120)
        frame = products[COLUMNS].astype(object).where(products[COLUMNS].notna(), None)
        asked = json.dumps({"dataframe_records": frame.to_dict("records")}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            same(pd.DataFrame(json.load(answer)["predictions"]), products)
    finally:
        kill_with_descendants(server)


def test_it_loads_in_a_bare_process_without_the_parts_that_train(published: tuple[str, pd.DataFrame]) -> None:
    uri, products = published
    products.to_json("products.json", orient="records")
    program = (
        "import json, sys, mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({uri!r})\n"
        f"frame = pd.read_json('products.json')[{COLUMNS!r}].astype(object)\n"
        "model.predict(frame.where(frame.notna(), None)).to_json('answers.json', orient='records')\n"
        "print([name for name in ('ray', 's3fs', 'matplotlib', 'tyro', 'jinja2.sandbox') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=free_of_ray(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    same(pd.read_json("answers.json"), products)


def test_its_requirements_are_pinned_and_it_has_an_example(published: tuple[str, pd.DataFrame]) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=published[0], dst_path="model"))
    pins = (folder / "requirements.txt").read_text().split()
    assert all("==" in pin for pin in pins)
    assert not [pin for pin in pins if pin.startswith("ray==")]
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == COLUMNS
    assert example["data"][0][0]


SPARK = """
import json, sys
import mlflow, pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.functions import struct

uri, columns = sys.argv[1], json.loads(sys.argv[2])
builder = SparkSession.builder.master("local[1]").appName("cataloger")
for name, value in {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
frame = pd.read_json("products.json")[["id", *columns]].astype(object)
rows = frame.where(frame.notna(), None).to_dict("records")
kinds = {name: "double" if name == "brand" else "string" for name in frame.columns}
given = spark.createDataFrame(rows, ", ".join(f"{name} {kind}" for name, kind in kinds.items()))
answer = mlflow.pyfunc.spark_udf(spark, uri, result_type="category string, confidence double", env_manager="local")
found = given.select("id", answer(struct(*columns)).alias("answer")).select("id", "answer.*").toPandas()
found.to_json("answers.json", orient="records")
spark.stop()
"""


@pytest.mark.slow
def test_spark_udf(published: tuple[str, pd.DataFrame]) -> None:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not on this machine")
    uri, products = published
    products.to_json("products.json", orient="records")
    environment = free_of_ray(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    # In a process of its own: Java's would stay until this one ends.
    done = subprocess.run(
        [sys.executable, "-c", SPARK, uri, json.dumps(COLUMNS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    same(products[["id"]].merge(pd.read_json("answers.json"), on="id"), products)
