import os
from pathlib import Path

import pytest
import ray
import yaml

from cataloger.errors import ResourceError
from cataloger.infra import runtime
from cataloger.infra.places import check_shared
from cataloger.infra.storage import locate
from conftest import ROOT


def test_the_address_of_a_job_server_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ResourceError, match="ray job submit"):
        runtime.cluster_address()
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert runtime.cluster_address() == "local"


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16, 17, 31, 64, 96, 128, 192])
def test_actors_of_any_number_of_jobs_leave_room_for_two_tasks(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": float(cores)}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(runtime, "capacity", lambda resource: float(cores) if resource == "CPU" else 0.0)
    shape = runtime.labelling_shape(use_gpu=False)
    fitting = int(cores / shape.cpus)
    assert fitting >= 1
    assert cores - fitting * shape.cpus >= 2 * runtime.TASK_CPUS
    assert shape.min_actors == 1 <= shape.max_actors <= fitting
    assert shape.threads == min(8, cores)


@pytest.mark.parametrize(("sizes", "actors"), [([4] * 12, 12), ([16, 2, 2], 2), ([2], 1), ([32, 32], 8)])
def test_there_are_as_many_actors_as_fit_on_the_nodes(
    sizes: list[int], actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(size)}} for size in sizes])
    monkeypatch.setattr(runtime, "capacity", lambda resource: float(sum(sizes)) if resource == "CPU" else 0.0)
    assert runtime.labelling_shape(use_gpu=False).max_actors == actors


def test_a_cluster_of_ray_up_can_grow_to_what_its_file_says(
    ray_session: None, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its autoscaler tells Ray nothing of nodes that do not run yet."""
    assert runtime.can_grow_to() == {}, "a Ray of our own has none"
    monkeypatch.setattr(runtime, "AUTOSCALING", ROOT / "cluster.yaml")
    assert runtime.can_grow_to() == {}
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert runtime.can_grow_to() == {"CPU": 64.0, "GPU": 8.0}
    assert runtime.capacity("GPU") == 8.0
    assert runtime.wants_gpu(use_gpu=True)
    assert runtime.labelling_shape(use_gpu=True).max_actors == 8
    monkeypatch.setattr(runtime, "AUTOSCALING", ROOT / "cluster-cpu.yaml")
    assert runtime.can_grow_to() == {"CPU": 128.0}
    shape = runtime.labelling_shape(use_gpu=False)
    assert (shape.threads, shape.max_actors) == (8, 16), "as many as fit on nodes that are yet to come"
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    worker = cluster["available_node_types"]["gpu_worker"]
    cluster["available_node_types"]["larger"] = {**worker, "max_workers": 3, "resources": {"CPU": 64, "GPU": 4}}
    own = working_folder / "cluster.yaml"
    monkeypatch.setattr(runtime, "AUTOSCALING", own)
    own.write_text(yaml.safe_dump(cluster))
    assert runtime.can_grow_to() == {"CPU": 3 * 64.0 + 5 * 8, "GPU": 3 * 4.0 + 5}, "eight in all"
    own.write_text(yaml.safe_dump({**cluster, "max_workers": 0}))
    assert runtime.can_grow_to() == {}, "a head alone does not grow"
    check_shared(locate(str(working_folder)), "--output")
    monkeypatch.setattr(runtime, "AUTOSCALING", ROOT / "cluster.yaml")
    with pytest.raises(ResourceError, match="nodes that the cluster may yet start do not have it"):
        check_shared(locate(str(working_folder)), "--output")


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


def test_a_cluster_of_fixed_size_is_asked_for_whole_nodes(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray Data is promised of a node in pieces of tasks is less than all of it: on two cores too little to write while it reads."""
    name = "RAY_DATA_CLUSTER_AUTOSCALER"
    monkeypatch.delenv(name, raising=False)
    with runtime.session():
        assert os.environ[name] == "V2"
        with runtime.session():
            assert os.environ[name] == "V2"
        assert os.environ[name] == "V2"
    assert name not in os.environ
    monkeypatch.setattr(runtime, "can_grow_to", lambda: {"CPU": 64.0})
    with runtime.session():
        assert name not in os.environ, "one that can grow is asked for what the job needs"
    monkeypatch.setenv(name, "RATE_BASED")
    with runtime.session():
        assert os.environ[name] == "RATE_BASED", "as the user has it"
