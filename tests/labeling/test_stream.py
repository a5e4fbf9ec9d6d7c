from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.bundle import digest, read_spec
from cataloger.data.catalog import open_catalog
from cataloger.data.units import Segment, Unit, plan_units
from cataloger.heads.columns import assemble, columns_of
from cataloger.infra import runtime
from cataloger.labeling.packed import Model
from cataloger.labeling.reading import Reading
from cataloger.labeling.stream import RESERVED, Done, predict_units, shared_out
from cataloger.model.tiers import Tiers

ROWS = 300


@pytest.mark.parametrize("unit_rows", [7, 100, 1_000])
def test_labels_do_not_depend_on_how_a_catalog_is_cut(
    ray_session: None, working_folder: Path, bundle: Path, unit_rows: int
) -> None:
    """Units without any text, texts longer than the model reads, repeats: the same labels as one plain loop, in order."""
    titles = [None if 100 <= i < 120 else f"product {i % 90} " * (1 + i % 50) for i in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "title": titles}), "c.parquet", row_group_size=64)
    spec = read_spec(bundle).reading(("title",), None)
    catalog = open_catalog("c.parquet", "id", ["title"])
    units = plan_units(catalog, unit_rows)
    model = Model(spec, digest(bundle), [runtime.share_folder(bundle)])
    reading = Reading(catalog.location.filesystem, catalog.schema, {"id": "id"})
    stream = predict_units(reading, model, units, runtime.labelling_shape(False), "fp32")
    done = {row.unit: row for row in map(Done.of, stream.iter_rows())}
    labels = pa.concat_tables(
        [assemble(done[unit.index].rows, done[unit.index].answers, columns_of(spec))[0] for unit in units]
    )
    readable = [(i, title.strip()) for i, title in enumerate(titles) if title]
    loaded = Tiers(bundle)
    one_by_one = [
        loaded.label(pa.table({name: [title if name == "title" else None] for name in loaded.spec.text_columns}))
        for _, title in readable
    ]
    assert labels.column("id").to_pylist() == [i for i, _ in readable]
    assert labels.column("category").to_pylist() == [row.column("category")[0].as_py() for row in one_by_one]


@pytest.mark.parametrize(
    ("row_groups", "cpus", "tasks"),
    [
        (1, 1.0, 2),  # a catalog of one row group, which a single task would read while other CPUs have nothing to do
        (1, 2.0, 4),
        (1, 64.0, 4),  # each fetches the row group again
        (10, 2.0, 10),
        (10, 16.0, 40),
        (1_000, 2.0, 1_000),
    ],
)
def test_a_row_group_is_shared_out_among_cpus_that_would_have_nothing_to_do(
    row_groups: int, cpus: float, tasks: int
) -> None:
    units = [
        Unit(16 * group + i, (Segment(f"/c/{group}.parquet", 0, 1_000 * i, 1_000),))
        for group in range(row_groups)
        for i in range(16)
    ]
    reads = shared_out(units, cpus, pictures=False)
    assert [unit for read in reads for unit in read.units] == units
    assert len(reads) == tasks
    assert max(len(read.units) for read in reads) - min(len(read.units) for read in reads) <= 1
    assert len(shared_out(units, cpus, pictures=True)) == row_groups


@pytest.mark.parametrize("cores", range(1, 65))
def test_each_stage_has_a_share_of_a_node_of_few_cores(cores: int) -> None:
    """As Ray Data shares them out: the first stage first, the last one what is left. With less than a task takes it would begin
    when all is read, and a night that is killed would have no part until then."""
    actor = min(cores, runtime.MAX_THREADS_PER_ACTOR) - runtime.CPU_LEFT_BY_ACTOR
    share = RESERVED * cores / 3
    assert cores - max(share, runtime.TASK_CPUS) - max(share, actor) >= runtime.TASK_CPUS
