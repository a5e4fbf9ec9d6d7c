import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.data.text import hash_texts
from cataloger.data.units import Segment, Unit
from cataloger.errors import PublishError, StorageError
from cataloger.infra.storage import Location, locate
from cataloger.publishing import pointer, sketches, snapshot
from cataloger.publishing.parts import File, Part, finished_parts, part_name, write_part

ABOUT = {"catalog": "c", "catalog_fingerprint": "f", "model": "m", "model_digest": "d", "config": {"id_column": "id"}}
UNITS = [Unit(0, (Segment("x", 0, 0, 3),)), Unit(1, (Segment("x", 0, 3, 2),))]


def write(folder: Location, unit: int, rows: int, rejects: int) -> Part:
    labels = pa.table({"id": range(rows), "category": ["A"] * rows})
    refused = pa.table({"id": range(rejects), "reason": ["r"] * rejects})
    return write_part(folder, unit, labels, refused, {"forwarded": rows}, {"run": "r"})


def test_labels_stand_with_their_own_rejects_alone(working_folder: Path) -> None:
    """Two processes write one unit, and which rows they reject differs: pictures that one of them could not reach."""

    def part(folder: Location, rejected: list[int]) -> Part:
        kept = [row for row in (1, 2) if row not in rejected]
        labels = pa.table({"id": kept, "category": ["A"] * len(kept)})
        refused = pa.table({"id": pa.array(rejected, pa.int64()), "reason": ["r"] * len(rejected)})
        return write_part(folder, 1, labels, refused, {"forwarded": 1}, {"run": "r"})

    run, other = (snapshot.run_folder(locate("labels"), name) for name in ("r", "other"))
    part(run, [1])
    part(other, [2])
    name = f"_rejects/{part_name(1)}"
    (run / name).write((other / name).read())  # the second one's, between the two files of the first
    assert not finished_parts(run, UNITS, 1)
    mended = part(run, [2])
    assert finished_parts(run, UNITS, 1)[1][0] == mended
    read = [pq.read_table(f"labels/run=r/{file.name}", partitioning=None)["id"].to_pylist() for file in mended.files]
    assert read == [[1], [2]]


def test_a_run_is_published_when_every_row_is_accounted_for(working_folder: Path) -> None:
    output = locate("labels")
    folder = snapshot.run_folder(output, "r")
    parts = {0: write(folder, 0, 3, 0), 1: write(folder, 1, 1, 1)}
    assert pointer.published(output, pointer.look(output)) is None
    found = finished_parts(folder, UNITS, 1)
    assert {unit: part for unit, (part, _) in found.items()} == parts
    assert [len(hashes) for _, hashes in found.values()] == [3, 2], "an id of each row, labelled or rejected"
    snapshot.write_manifest(output, "r", UNITS, parts, ABOUT)
    assert pointer.published(output, pointer.look(output)) is None
    pointer.publish(output, "r", pointer.look(output))
    manifest = pointer.published(output, pointer.look(output))
    assert manifest is not None
    assert (manifest["rows"], manifest["labelled"], manifest["rejects"], manifest["model"]) == (5, 4, 1, "m")
    named = json.loads(Path("labels/_latest.json").read_text())
    read = pq.read_table(Path("labels") / named["path"])
    assert len(read) == 4, "readers see the labels, not the rejects"


@pytest.mark.parametrize("rows", [2, None])
def test_a_missing_or_short_unit_is_not_published(working_folder: Path, rows: int | None) -> None:
    output = locate("labels")
    folder = snapshot.run_folder(output, "r")
    parts = {0: write(folder, 0, 3, 0)}
    if rows:
        parts[1] = write(folder, 1, rows - 1, 0)
    with pytest.raises(PublishError, match="unit 1"):
        snapshot.write_manifest(output, "r", UNITS, parts, {})
    assert pointer.published(output, pointer.look(output)) is None


def test_damaged_and_foreign_parts_are_done_again(working_folder: Path) -> None:
    folder = snapshot.run_folder(locate("labels"), "r")
    write(folder, 0, 3, 0)
    whole = Path("labels/run=r/part-00000.parquet").read_bytes()
    Path("labels/run=r/part-00001.parquet").write_bytes(whole[:-20])
    pq.write_table(pa.table({"id": [1, 2]}), "labels/run=r/part-00002.parquet")
    assert set(finished_parts(folder, UNITS, 1)) == {0}
    recut = [Unit(0, (Segment("x", 0, 0, 4),)), UNITS[1]]
    assert finished_parts(folder, recut, 1) == {}, "a part of another cut does not fit"


def test_a_damaged_pointer_is_named(working_folder: Path) -> None:
    locate("labels/_latest.json").write(b"{")
    with pytest.raises(StorageError, match="_latest.json: not valid JSON; remove it"):
        pointer.look(locate("labels"))


def test_anything_decisive_gives_another_run_id() -> None:
    ids = {snapshot.run_id(*decisive) for decisive in [("c", "m", 3), ("c2", "m", 3), ("c", "m2", 3), ("c", "m", 4)]}
    assert len(ids) == 4
    assert snapshot.run_id("c", ("a", "b")) == snapshot.run_id("c", ("a", "b"))


def test_a_published_run_that_was_removed_by_hand_is_named_with_a_way_out(working_folder: Path) -> None:
    output = locate("labels")
    folder = snapshot.run_folder(output, "r")
    snapshot.write_manifest(output, "r", UNITS[:1], {0: write(folder, 0, 3, 0)}, ABOUT)
    pointer.publish(output, "r", pointer.look(output))
    folder.delete()
    with pytest.raises(StorageError, match="run r is published and has no manifest; publish another one .* --run ID"):
        pointer.published(output, pointer.look(output))


def test_ten_thousand_parts_take_a_few_megabytes(working_folder: Path) -> None:
    """What the driver holds and writes of 655 million rows."""
    folder, parts, units = Path("labels/run=r"), {}, []
    folder.mkdir(parents=True)
    hashes = pa.chunked_array([hash_texts(pa.array([f"product {row}" for row in range(1_000)]))])
    for unit in range(10_000):
        name = part_name(unit)
        (folder / name).write_bytes(b"x")
        parts[unit] = Part(unit, 65_536, 0, 0, (File(name, 65_536, 1, "0" * 64),), sketch=sketches.of(hashes))
        units.append(Unit(unit, (Segment("x", 0, 0, 65_536),)))
    output = locate("labels")
    sketches.keep(snapshot.run_folder(output, "r"), parts)
    snapshot.write_manifest(output, "r", units, parts, ABOUT)
    pointer.publish(output, "r", pointer.look(output))
    manifest = pointer.published(output, pointer.look(output))
    assert manifest is not None
    assert manifest["rows"] == 655_360_000
    assert (folder / snapshot.MANIFEST).stat().st_size < 3e6
    assert (folder / sketches.SKETCHES).stat().st_size < 16e6
