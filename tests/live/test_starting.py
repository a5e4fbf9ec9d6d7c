"""What a service is refused for before anything starts, and what it waits for."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cataloger.config import ServeConfig
from cataloger.errors import ConfigError, ResourceError, TrackingError
from cataloger.infra import runtime, tracking
from cataloger.live import following, job
from cataloger.live.following import Answering
from cataloger.model.registry import ModelSource


@pytest.mark.parametrize(
    ("flag", "value"), [("alternatives", -1), ("alternatives", 101), ("alternatives", "3"), ("max_wait_ms", -0.5)]
)
def test_numbers_that_no_replica_could_start_with(flag: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} {value}: must be a number from 0 to"):
        job._check(ServeConfig(model="shop", **{flag: value}))


def test_an_alias_is_followed_where_every_replica_reaches_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "check_nodes", lambda uri: None)
    monkeypatch.setattr(runtime, "has_other_nodes", lambda: True)
    with pytest.raises(TrackingError, match="do not reach http://…@127.0.0.1:5000") as refused:
        job._check_followed("models:/shop@champion", "http://me:secret@127.0.0.1:5000")
    assert "secret" not in str(refused.value)
    job._check_followed("models:/shop/3", "http://127.0.0.1:5000")
    job._check_followed("models:/shop@champion", "http://mlflow:5000")
    monkeypatch.setattr(runtime, "has_other_nodes", lambda: False)
    job._check_followed("models:/shop@champion", "http://127.0.0.1:5000")


def test_a_service_waits_for_its_nodes_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now, cpus = [0.0], [0.0, 0.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(job.time, "sleep", lambda seconds: (now.append(now.pop() + seconds), cpus and cpus.pop()))
    monkeypatch.setattr(runtime, "capacity", lambda kind: 0.0 if cpus or kind == "GPU" else 4.0)
    monkeypatch.setattr(runtime, "_nodes_and_cores", lambda: ([{"CPU": 4.0}], 4))
    assert job._shape_in_time(False, 1, 1).threads == 4
    assert now[0] == 2 * job.SECONDS_BETWEEN_LOOKS
    with pytest.raises(ResourceError, match="no GPU"):
        job._shape_in_time(True, 1, 1)
    assert now[0] > job.NODES_SECONDS


def test_every_version_is_loaded_with_the_threads_of_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own, and after the one before has set PyTorch to a single one."""
    before, seen = torch.get_num_threads(), list[int]()

    def tiers(*_: object, **__: object) -> None:
        seen.append(torch.get_num_threads())
        raise InterruptedError

    def load() -> None:
        with pytest.raises(InterruptedError):
            following.load(ModelSource(Path(), "", None), Answering("id", 3, "fp32", "cpu", threads=2))

    monkeypatch.setattr(following, "Tiers", tiers)
    try:
        for _ in range(2):
            torch.set_num_threads(1)
            thread = threading.Thread(target=load)
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]
