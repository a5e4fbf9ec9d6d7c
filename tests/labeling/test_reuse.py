"""Never twice: what the published run labelled is taken over, and only what it costs changes, never what is published."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from cataloger.bundle import read_spec
from cataloger.config import LabelConfig
from cataloger.data import units
from cataloger.data.text import hash_texts
from cataloger.infra.storage import locate
from cataloger.labeling import order, reuse
from cataloger.labeling.job import label
from cataloger.publishing import sketches
from conftest import published


def write_catalog(folder: str, titles: list[str | None]) -> None:
    Path(folder).mkdir(exist_ok=True)
    half = len(titles) // 2
    for part, start, stop in [(0, 0, half), (1, half, len(titles))]:
        table = pa.table({"id": range(start, stop), "title": pa.array(titles[start:stop], pa.string())})
        pq.write_table(table, f"{folder}/part-{part}.parquet")


def run(bundle: Path, output: str, **changes: object):  # type: ignore[no-untyped-def]
    settings = {
        "catalog": "c",
        "output": output,
        "model": (str(bundle),),
        "text_columns": ("title",),
        "precision": "fp32",
    }
    return label(LabelConfig(**{**settings, "max_changed_fraction": 1.0, **changes}))  # type: ignore[arg-type]


def test_changed_rows_alone_go_through_the_model_and_the_labels_are_those_of_a_full_run(
    ray_session: None, working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "MIN_UNIT_ROWS", 500)
    titles: list[str | None] = [f"product {i} of brand {i % 13}" for i in range(900)]
    write_catalog("c", titles)
    first = run(bundle, "labels")
    assert (first.cost.carried, first.cost.forwarded) == (0, 900)
    # Some new, some gone, some moved, one without text, one that is in the catalog twice now.
    tonight = [None, "quite new", *titles[5:400], "new as well", *titles[450:], titles[7]]
    write_catalog("c", tonight)
    second = run(bundle, "labels")
    assert second.cost.forwarded == 2
    assert second.cost.carried == len(tonight) - 3
    carried = published("labels")
    assert run(bundle, "elsewhere").cost.carried == 0
    full = published("elsewhere")
    for name in ("id", "category", "text_hash", "needs_review"):
        assert carried.column(name).equals(full.column(name)), name
    assert pc.list_value_length(carried.column("level_confidences")).equals(
        pc.list_value_length(full.column("level_confidences"))
    )
    for name in ("level_confidences", "confidence"):
        left, right = (table.column(name).combine_chunks() for table in (carried, full))
        if name != "confidence":
            left, right = left.flatten(), right.flatten()
        np.testing.assert_allclose(left.to_numpy(), right.to_numpy(), rtol=1e-4)
    left, right = (table.column("alternatives").to_pylist() for table in (carried, full))
    assert [[a["category"] for a in row] for row in left] == [[a["category"] for a in row] for row in right]


def test_another_setting_carries_nothing_over(ray_session: None, working_folder: Path, bundle: Path) -> None:
    write_catalog("c", [f"product {i}" for i in range(50)])
    run(bundle, "labels")
    other = run(bundle, "labels", alternatives=0)
    assert (other.cost.carried, other.cost.forwarded) == (0, 50)
    write_catalog("c", [f"product {i}" for i in range(51)])
    again = run(bundle, "labels", alternatives=0)
    assert (again.cost.carried, again.cost.forwarded) == (50, 1)
    assert published("labels").column("alternatives").to_pylist() == [[]] * 51


def test_texts_are_found_in_any_number_of_buckets(
    ray_session: None, working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str | None] = [f"product {i}" for i in range(900)]
    write_catalog("c", titles)
    result = run(bundle, "labels")
    folder, spec = locate("labels") / f"run={result.run}", read_spec(bundle)
    units = len(list(Path(f"labels/run={result.run}").glob("part-*")))
    labels = published("labels")
    wanted = pa.array([f"product {i}" for i in range(890, 910)][::-1])
    expected = [row["category"] for row in labels.slice(890).to_pylist()][::-1]
    for size, buckets in [(1 << 22, 1), (225, 4), (10, 128)]:
        monkeypatch.setattr(reuse, "ROWS_PER_BUCKET", size)
        source = reuse.Published(f"{working_folder.name}-{size}", folder, units, len(labels), 3)
        known, answers = reuse.find(source, spec, hash_texts(wanted))
        assert 1 << source.bits == buckets
        assert known.tolist() == [False] * 10 + [True] * 10
        assert [spec.categories[label] for label in answers.column("label").to_pylist()] == expected
    known, answers = reuse.find(source, spec, hash_texts(pa.array([], pa.string())))
    assert (len(known), len(answers)) == (0, 0)


ROWS, FILES = 6_000, 20


@pytest.fixture
def large(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A catalog of twenty units, each a file, whose published run is looked up as a large one is."""
    monkeypatch.setattr(order, "ROWS_OF_A_SMALL_RUN", 100)
    monkeypatch.setattr(units, "MIN_UNIT_ROWS", ROWS // FILES)
    titles: list[str | None] = [f"product {i} of brand {i % 13}" for i in range(ROWS)]
    write_files(titles)
    return titles


def write_files(titles: list[str | None]) -> None:
    Path("c").mkdir(exist_ok=True)
    for first in range(0, ROWS, ROWS // FILES):
        some = titles[first : first + ROWS // FILES]
        table = pa.table({"id": range(first, first + len(some)), "title": pa.array(some, pa.string())})
        pq.write_table(table, f"c/part-{first:05d}.parquet")


def test_a_large_run_is_looked_up_part_by_part_where_the_catalog_keeps_its_order(
    ray_session: None, large: list[str | None], bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(bundle, "labels")
    # One is gone, so that all units begin elsewhere; one is new, one moved to the end.
    moved, titles = large[5_000], [*large[1:5_000], *large[5_001:]]
    write_files([*titles, moved, "quite new"])
    caplog.set_level("INFO")
    second = run(bundle, "labels")
    assert "another order" not in caplog.text
    assert second.cost.carried + second.cost.forwarded == ROWS
    assert 1 <= second.cost.forwarded < 60, "the new one, and perhaps a few of the first and last of each unit"
    assert run(bundle, "elsewhere").cost.carried == 0
    left, right = published("labels"), published("elsewhere")
    for name in ("id", "category", "text_hash", "needs_review"):
        assert left.column(name).equals(right.column(name)), name


def test_a_large_run_is_looked_up_as_a_whole_where_the_catalog_has_another_order(
    ray_session: None, large: list[str | None], bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(bundle, "labels")
    mixed = np.random.default_rng(0).permutation(ROWS)
    write_files([*(large[row] for row in mixed[:-1]), "quite new"])
    caplog.set_level("INFO")
    second = run(bundle, "labels")
    assert "the catalog has another order than the published run" in caplog.text
    assert (second.cost.carried, second.cost.forwarded) == (ROWS - 1, 1)
    (Path("labels") / f"run={second.run}" / sketches.SKETCHES).write_bytes(b"damaged")
    write_files([*large[1:], "another new one"])
    third = run(bundle, "labels")
    assert "_sketches.arrow: is damaged" in caplog.text
    assert third.cost.forwarded == 2, "a product that had gone, and the new one"
    assert result.run != third.run


def test_single_parts_answer_as_the_whole_run_does(
    ray_session: None, working_folder: Path, large: list[str | None], bundle: Path
) -> None:
    result = run(bundle, "labels")
    folder, spec = locate("labels") / f"run={result.run}", read_spec(bundle)
    found = sketches.read(folder, FILES)
    by_parts = reuse.Published(f"{working_folder.name}-parts", folder, FILES, ROWS, 3, sketches=ray.put(found))
    whole = reuse.Published(f"{working_folder.name}-whole", folder, FILES, ROWS, 3)
    for rows in (np.arange(600, 900), np.arange(650, 950), np.arange(9_000, 9_010), np.r_[899:600:-1, 9_000, 700]):
        hashes = hash_texts(pa.array([f"product {i} of brand {i % 13}" for i in rows]))
        (known, answers), (expected, others) = (reuse.find(one, spec, hashes) for one in (by_parts, whole))
        assert known.tolist() == expected.tolist() == [row < ROWS for row in rows]
        assert answers.equals(others)
    assert len(reuse._held) <= reuse.PARTS_HELD
