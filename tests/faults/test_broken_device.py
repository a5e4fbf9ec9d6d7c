"""Promise: a device that fails for good costs time, and no healthy row its label."""

import os
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.exceptions import RayError

from cataloger.config import LabelConfig
from cataloger.data.batching import Batch
from cataloger.errors import ResourceError
from cataloger.labeling import stream
from cataloger.labeling.job import label
from cataloger.labeling.result import LabelResult

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_session")]
ROWS = 3_000
SAYS = "CUDA error: an illegal memory access was encountered"


def test_a_process_that_cannot_load_its_model_is_gone(
    working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ray's own handling of its end fails it would use a core for ever."""
    marker = working_folder / "marker"

    class Labeler(stream.Labeler):
        def _load(self, *given: Any) -> None:
            super()._load(*given)
            with marker.open("a") as file:
                file.write(f"{os.getpid()}\n")
            raise OSError("the weights cannot be read")

    monkeypatch.setattr(stream, "Labeler", Labeler)
    pq.write_table(pa.table({"id": [1], "title": ["tea"]}), "c.parquet")
    with pytest.raises(RayError, match="the weights cannot be read"):
        label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), text_columns=("title",)))
    processes = [psutil.Process(pid) for pid in map(int, marker.read_text().split()) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def label_where_processes_break(marker: Path, how_many: int, bundle: Path, patch: pytest.MonkeyPatch) -> LabelResult:
    """The first processes that load the model break; in the marker every one has a line."""

    class Breaking:
        """Answers once; from then on it fails at everything, as a process does after a fault of its GPU."""

        def __init__(self, engine: Any) -> None:
            self.engine, self.calls = engine, 0

        def __call__(self, batch: Batch) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError(SAYS)
            return self.engine(batch)

    class Labeler(stream.Labeler):
        def _load(self, *given: Any) -> None:
            super()._load(*given)
            with marker.open("a+") as file:
                file.write("loaded\n")
                file.seek(0)
                if len(file.readlines()) <= how_many:
                    self.predictor.engine = Breaking(self.predictor.engine)

    patch.setattr(stream, "Labeler", Labeler)
    pq.write_table(
        pa.table({"id": range(ROWS), "title": [f"product {i} of {i % 97}" for i in range(ROWS)]}), "c.parquet"
    )
    return label(LabelConfig(catalog="c.parquet", output="labels", model=(str(bundle),), text_columns=("title",)))


def test_a_process_whose_device_breaks_is_replaced_and_no_row_is_rejected(
    working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = working_folder / "marker"
    result = label_where_processes_break(marker, 1, bundle, monkeypatch)
    assert (result.labelled, result.rejects) == (ROWS, 0)
    assert len(marker.read_text().splitlines()) >= 2, "the model was loaded again"


def test_a_device_that_breaks_every_time_ends_the_run_and_is_named(
    working_folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match=f"twice in a row.*{SAYS}.*run the same command again"):
        label_where_processes_break(working_folder / "marker", 100, bundle, monkeypatch)
    assert not Path("labels/_latest.json").exists()
