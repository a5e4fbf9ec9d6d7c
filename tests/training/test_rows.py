from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data

from cataloger.config import TrainConfig
from cataloger.data.catalog import Catalog, open_catalog
from cataloger.data.reading import read_units
from cataloger.data.units import plan_units
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.judged import UNUSED
from cataloger.training.rows import NOT_UTF8, Source, _encode, ingest, training_input

Write = Callable[..., Path]


def bytes_as_text(values: list[bytes]) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def config(**changes: object) -> TrainConfig:
    settings: dict[str, object] = {"text_columns": ("title",), "validation_fraction": 0.0, "max_tokens": 8}
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def encoded(catalog: Catalog, config: TrainConfig) -> pa.Table:
    ((unit, table),) = read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema)
    return _encode(unit, table, [{"A": 0, "B": 1}], TRAINING, config, training_input(config))


@pytest.mark.parametrize("column", ["title", "group"])
def test_rows_that_are_not_utf8_are_left_out_by_name(write: Write, column: str) -> None:
    fine, torn = [b"one", b"two", b"three"], [b"one", b"caf\xe9 \xff", b"\xff"]
    for number in (1, 2):
        columns = {"title": bytes_as_text(fine), "group": bytes_as_text(fine), "category_path": ["A", "B", "B"]}
        if number == 2:
            columns[column] = bytes_as_text(torn)
        write(f"c/{number}.parquet", id=[f"{number}-{row}" for row in range(3)], **columns)
    catalog = open_catalog("c", "id", ["title"], ("category_path",), {"group": "--group-column"})
    rows = encoded(catalog, config(group_column="group"))
    second = Path("c/2.parquet").resolve()
    assert rows.column(NOT_UTF8).drop_null().to_pylist() == [f"product 2-{row} in {second}" for row in (1, 2)]
    usable = rows.filter(pa.array(rows.column("use").to_numpy() != UNUSED))
    assert usable.column("labels").to_pylist() == [[0], [1], [1], [0]]
    assert usable.column("tokens").null_count == 0


def test_a_unit_without_a_row_that_is_utf8_is_left_out_whole(write: Write) -> None:
    write("c.parquet", id=bytes_as_text([b"\xff", b"a"]), title=bytes_as_text([b"\xff"] * 2), category_path=["A", "B"])
    rows = encoded(open_catalog("c.parquet", "id", ["title"], ("category_path",)), config())
    assert rows.column("use").to_pylist() == [UNUSED, UNUSED]
    assert rows.column(NOT_UTF8)[0].as_py().startswith("product \\xff in ")


@pytest.mark.usefixtures("ray_session")
def test_rows_come_in_catalog_order_and_what_runs_later_is_not_held_to_it(write: Write) -> None:
    titles = ["a long title of many words indeed", "short"] * 10_000
    for number in (1, 2):
        write(f"{number}.parquet", id=range(20_000), title=titles, category_path=["A", "B"] * 10_000)
    catalogs = [open_catalog(f"{number}.parquet", "id", ["title"], ("category_path",)) for number in (1, 2)]
    tables = ray.get(ingest([Source(catalog, {"A": 0, "B": 1}, TRAINING) for catalog in catalogs], config()))
    assert len(tables) > 1
    labels = pa.concat_tables(tables).column("labels").combine_chunks()
    assert labels.flatten().to_pylist() == [0, 1] * 20_000
    assert not ray.data.DataContext.get_current().execution_options.preserve_order


@pytest.mark.usefixtures("ray_session")
def test_rows_that_judge_are_not_learnt_from(write: Write) -> None:
    """In whichever case and catalog they are; and rows of categories that the model does not have judge, and teach nothing."""
    write(
        "all.parquet",
        id=range(5),
        title=["tea", "TEA ", "coffee", "milk", "jam"],
        category_path=["A", "A", "B", "C", "A"],
    )
    write("some.parquet", id=range(3), title=["tea", "cocoa", "milk"], category_path=["A", "C", "C"])
    asked = config(eval_catalog="some.parquet")
    learnt, judged = (
        Source(open_catalog(name, "id", ["title"], ("category_path",)), {"A": 0, "B": 1, "C": -1}, use)
        for name, use in (("all.parquet", TRAINING), ("some.parquet", VALIDATION))
    )
    rows = pa.concat_tables(ray.get(ingest([learnt, judged], asked)))
    used = rows.filter(pa.array(rows.column("use").to_numpy() != UNUSED))
    found = zip(
        used.column("text").to_pylist(), used.column("use").to_pylist(), used.column("labels").to_pylist(), strict=True
    )
    assert sorted(found) == [
        *(("cocoa", VALIDATION, [-1]), ("coffee", TRAINING, [1])),
        *(("jam", TRAINING, [0]), ("milk", VALIDATION, [-1]), ("tea", VALIDATION, [0])),
    ]  # fmt: skip
