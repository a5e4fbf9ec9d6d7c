"""A place that only this machine has, or only this version of the code, is refused before any work."""

import os
from pathlib import Path

import pytest
import ray

from cataloger.errors import ConfigError, ResourceError, TrackingError
from cataloger.infra import places, tracking
from cataloger.infra.places import check_shared, place
from cataloger.infra.storage import locate


def test_a_relative_path_is_refused_in_a_submitted_jobs_folder(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place("labels", "--output") == "labels"
    folder = working_folder / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="--output labels: lies in the working folder of a submitted job"):
        place("labels", "--output")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI is not set"):
        tracking.connect()
    for good in ("s3://shop/labels", "/data/labels", "~/labels", "file:///data/labels"):
        assert place(good, "--output") == good


def test_a_folder_must_be_seen_by_every_node(
    ray_session: None, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same words name another folder in every process: a local disk of each.
    monkeypatch.setattr(places, "_is_network", lambda path: False)
    own = locate("/proc/self/cwd/labels")
    check_shared(own, "--output")
    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
    check_shared(locate(str(working_folder / "labels")), "--output")
    assert not os.listdir(working_folder / "labels"), "nothing is left there"
    with pytest.raises(
        ResourceError, match=r"--output .*: is a folder of this machine, and 2 of the cluster's 2 nodes"
    ):
        check_shared(own, "--output")


def test_a_cluster_that_may_grow_needs_a_shared_file_system(
    ray_session: None, working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grows = {"CPU": 64.0, "GPU": 8.0}
    monkeypatch.setattr(places.runtime.ray_state, "get_max_resources_from_cluster_config", lambda: grows)
    with pytest.raises(ResourceError, match="nodes that the cluster may yet start do not have it"):
        check_shared(locate("labels"), "--output")
    mounts = working_folder / "mounts"
    mounts.write_text(
        f"overlay / overlay rw 0 0\nauto {working_folder} autofs rw 0 0\nfs-1:/shop {working_folder} nfs4 rw 0 0\n"
    )
    monkeypatch.setattr(places, "MOUNTS", mounts)
    check_shared(locate("labels"), "--output")
    with pytest.raises(ResourceError, match="is a folder of this machine"):
        check_shared(locate("/labels"), "--output")
