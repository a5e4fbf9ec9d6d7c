"""The ids of a published run are held against those of the catalog, unit by unit."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.config import VerifyConfig
from cataloger.data.catalog import open_catalog
from cataloger.data.units import Segment, Unit
from cataloger.errors import PublishError
from cataloger.infra.storage import locate
from cataloger.publishing import pointer, snapshot, upkeep
from cataloger.publishing.parts import write_part

IDS = ["a", "b", "b", None, "e", "bad", "g"]


def publish(catalog: list[str | None], units: list[tuple[list[str | None], list[str | None]]]) -> None:
    """A run of these (labelled, rejected) ids, as made from a catalog of others: its counts and checksums are right."""
    pq.write_table(pa.table({"id": catalog, "title": catalog}), "catalog.parquet", row_group_size=3)
    about = {
        "catalog": "catalog.parquet",
        "catalog_fingerprint": open_catalog("catalog.parquet", "id", ()).fingerprint,
        "model": "m",
        "model_digest": "d",
        "config": {"id_column": "id"},
    }
    output, parts = locate("labels"), {}
    planned = []
    for unit, (labelled, rejected) in enumerate(units):
        labels = pa.table({"id": pa.array(labelled, pa.string())})
        rejects = pa.table({"id": pa.array(rejected, pa.string()), "reason": ["r"] * len(rejected)})
        parts[unit] = write_part(snapshot.run_folder(output, "r"), unit, labels, rejects, {"forwarded": 0}, {})
        planned.append(Unit(unit, (Segment("x", 0, 0, len(labelled) + len(rejected)),)))
    snapshot.write_manifest(output, "r", planned, parts, about)
    pointer.publish(output, "r", pointer.look(output))


def test_ids_are_compared_whatever_their_order_in_a_unit_and_wherever_it_is_cut(working_folder: Path) -> None:
    publish(IDS, [(["b", "b", "a"], [None]), (["e", "g"], ["bad"])])
    found = upkeep.verify(VerifyConfig(output="labels"))
    assert not found.ids_unchecked
    assert found.rows == len(IDS)


@pytest.mark.parametrize(
    ("catalog", "units", "said"),
    [
        (IDS, [(["a", "b", "b", "e"], []), ([None, "bad", "g"], [])], "unit 0: its ids are not those of the catalog"),
        (IDS, [(["a", "b", "a", None], []), (["e", "bad", "g"], [])], "unit 0: its ids are not those of the catalog"),
        (IDS, [(["a", "b", "b", None], []), (["e", "bad"], ["x"])], "unit 1: its ids are not those of the catalog"),
        ([*IDS, "h"], [(["a", "b", "b", None], []), (["e", "bad", "g"], [])], "the catalog has more rows than the run"),
        (IDS[:-1], [(["a", "b", "b", None], []), (["e", "bad", "g"], [])], "unit 1: its ids are not those"),
    ],
)  # fmt: skip
def test_an_id_that_is_elsewhere_repeated_or_missing_is_told(
    working_folder: Path, catalog: list[str | None], units: list[tuple[list[str | None], list[str | None]]], said: str
) -> None:
    publish(catalog, units)
    with pytest.raises(PublishError, match=said):
        upkeep.verify(VerifyConfig(output="labels"))
    assert json.loads(Path("labels/_latest.json").read_text())["run"] == "r"
