from pathlib import Path

import pytest
import ray
import ray.data

from cataloger import errors, runtime
from cataloger.errors import CatalogError, ResourceError


def test_the_address_of_a_job_server_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ResourceError, match="ray job submit"):
        runtime.cluster_address()
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert runtime.cluster_address() == "local"


def test_labelling_never_takes_every_cpu(ray_session: None) -> None:
    shape = runtime.labelling_shape(use_gpu=False)
    total = runtime.capacity("CPU")
    assert 1 <= shape.min_actors <= shape.max_actors
    if total > 1:
        assert shape.max_actors * shape.cpus < total
    assert shape.threads >= 1


def test_a_shared_folder_is_the_same_on_every_node(ray_session: None, working_folder: Path) -> None:
    source = working_folder / "bundle"
    (source / "deep").mkdir(parents=True)
    (source / "a.json").write_text("{}")
    (source / "deep" / "b.bin").write_bytes(b"\0\1")
    shared = runtime.share_folder(source)
    name = f"test-{working_folder.name}"
    copies = [runtime.local_copy(shared, name) for _ in range(2)]
    assert copies[0] == copies[1]
    assert (copies[0] / "deep" / "b.bin").read_bytes() == b"\0\1"


def test_an_error_of_ours_in_a_task_comes_back_as_itself(ray_session: None) -> None:
    def fail(row: dict[str, int]) -> dict[str, int]:
        raise errors.CatalogError("catalog file x: broken; mend it")

    def fail_otherwise(row: dict[str, int]) -> dict[str, int]:
        raise KeyError("no idea")

    with pytest.raises(CatalogError, match="^catalog file x: broken; mend it$"), runtime.errors_of_tasks():
        ray.data.range(2).map(fail).materialize()
    with pytest.raises(ray.exceptions.RayError, match="no idea"), runtime.errors_of_tasks():
        ray.data.range(2).map(fail_otherwise).materialize()
