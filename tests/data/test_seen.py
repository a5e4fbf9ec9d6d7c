"""Whether a model saw the rows that it is judged by, however the catalog was copied."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.config import TrainConfig
from cataloger.data import seen
from cataloger.data.catalog import open_catalog
from cataloger.data.reading import read_units
from cataloger.data.seen import Seen
from cataloger.data.units import plan_units
from cataloger.errors import ConfigError, ModelError
from cataloger.evaluation.predictions import About, Predictions
from cataloger.evaluation.promotion import check_rows
from cataloger.training.examples import TRAINING, VALIDATION
from cataloger.training.rows import _encode, training_input

ABOUT = About("m", "shop.parquet", "f", "id", "category_path", "all", ("A", "B"), 1.0)


def texts(start: int, stop: int) -> pa.Array:
    return pa.array([f"product {number}" for number in range(start, stop)], pa.large_string())


def keys(start: int, stop: int) -> np.ndarray:
    return seen.keys(pa.table({}), texts(start, stop), None)


def share(sample: Seen, start: int, stop: int) -> float | None:
    return seen.share(sample.recognise(keys(start, stop)))


@pytest.mark.parametrize("wanted", [1_000_000, 500])
def test_the_share_of_rows_that_were_seen_is_found_by_a_sample_of_both_sides(wanted: int) -> None:
    sample = Seen.of(keys(0, 20_000), wanted)
    assert len(sample.keys) == 20_000 if wanted > 20_000 else 400 < len(sample.keys) < 600
    assert share(sample, 0, 20_000) == 1.0
    assert share(sample, 20_000, 40_000) == 0.0
    assert share(sample, 15_000, 25_000) == pytest.approx(0.5, abs=1e-9 if wanted > 20_000 else 0.1)
    assert share(sample, 0, 0) is None, "nothing says so"
    repeated = np.concatenate([keys(0, 10), keys(0, 10), keys(20_000, 20_020)])
    assert wanted < 20_000 or seen.share(sample.recognise(repeated)) == 0.5, "rows count, not texts"


def test_the_key_of_a_row_is_its_normalised_text_or_its_group() -> None:
    table = pa.table({"group": ["g1", "g1", None]})
    rows = pa.array(["Red  shirt", "blue shirt", "green shirt"], pa.large_string())
    one, two, three = seen.keys(table, rows, "group")
    assert one == two != three
    assert seen.keys(table, pa.array(["RED  shirt"]), None) == seen.keys(table, rows[:1], None)


def test_the_sample_lies_in_the_bundle(working_folder: Path) -> None:
    assert seen.read(working_folder) is None, "bundles made before have none"
    sample = Seen.of(keys(0, 5_000), 1_000)
    seen.write(working_folder, sample)
    back = seen.read(working_folder)
    assert back is not None
    assert (back.every, back.keys.tolist()) == (sample.every, sample.keys.tolist())
    (working_folder / seen.FILE).write_bytes(b"no Parquet")
    with pytest.raises(ModelError, match="seen.parquet"):
        seen.read(working_folder)


def test_ingest_gives_the_key_of_every_row(tiny_model: Path, write) -> None:  # type: ignore[no-untyped-def]
    write("own.parquet", id=[1, 2, 3], title=["Tea", None, "Cup "], category_path=["A", "A", "B"])
    config = TrainConfig(base_model=str(tiny_model), text_columns=("title",), validation_fraction=0.5)
    catalog = open_catalog("own.parquet", "id", ("title",), ("category_path",))
    for use in (TRAINING, VALIDATION):
        ((unit, table),) = read_units(catalog.location.filesystem, plan_units(catalog), catalog.schema)
        found = _encode(unit, table, [{"A": 0, "B": 1}], use, config, training_input(config))
        expected = seen.keys(pa.table({}), pa.array(["tea", "cup"], pa.large_string()), None)
        assert found.column("key").to_pylist() == expected.tolist(), use


def test_predictions_know_the_share_of_the_scored_rows_that_the_model_saw() -> None:
    labels = pa.table(
        {
            "row": [0, 1, 2, 3, 4],
            "id": [0, 1, 2, 3, 4],
            "text": list("abcde"),
            "written": ["A", "B", None, "A", "B"],
            "category": ["A"] * 5,
            "confidence": [0.5] * 5,
            "needs_review": [False] * 5,
            "seen": [True, False, True, None, False],
        }
    )
    found = Predictions.of(labels, {"A": "A", "B": "B"}, ABOUT)
    assert found.about.seen == pytest.approx(1 / 3), "the third row has no category, the fourth is in no sample"
    assert "seen" not in found.table.column_names
    assert Predictions.from_parquet(found.to_parquet()).about == found.about
    unknown = labels.set_column(7, "seen", pa.nulls(5, pa.bool_()))
    assert Predictions.of(unknown, {"A": "A"}, ABOUT).about.seen is None


@pytest.mark.parametrize(("share", "refused"), [(0.97, True), (0.03, False), (0.0, False), (None, False)])
def test_a_model_that_saw_the_rows_is_not_promoted_by_them(share: float | None, refused: bool) -> None:
    said = [Predictions(pa.table({}), ABOUT), Predictions(pa.table({}), About(**{**vars(ABOUT), "seen": share}))]
    if refused:
        with pytest.raises(ConfigError, match="challenger was trained on 97% of the rows of shop.parquet"):
            check_rows(said, ("champion", "challenger"))
    else:
        check_rows(said, ("champion", "challenger"))


def test_evaluations_made_before_are_read(working_folder: Path) -> None:
    table = pa.table({"row": [0]})
    for saw in (True, False):
        before = {**{name: value for name, value in vars(ABOUT).items() if name != "seen"}, "saw_these_rows": saw}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({b"cataloger.evaluation": json.dumps(before).encode()}), sink)
        assert Predictions.from_parquet(sink.getvalue()).about.seen == (1.0 if saw else None)
