import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cataloger.config import TrainConfig
from cataloger.errors import ConflictError
from cataloger.infra import alive
from cataloger.infra.storage import Location, locate
from cataloger.training import claims
from cataloger.training.claims import Claim, take
from cataloger.training.job import _begin_or_resume

ELSEWHERE = "another-boot pid:[1] 1 1"


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, working_folder: object) -> Location:
    if request.param == "disk":
        return locate("training")
    return locate(request.getfixturevalue("s3")) / f"claims-{request.node.name}"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute is about half a second here."""
    for name, seconds in {"BEAT_SECONDS": 0.05, "LEASE_SECONDS": 1.0, "LOOK_SECONDS": 0.05}.items():
        monkeypatch.setattr(claims, name, seconds)


def claim(folder: Location) -> Claim:
    found = take(folder)
    assert found
    return found


def taken_by(folder: Location, process: str, note: str = "") -> Claim:
    """As that process takes it, which then is silent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alive, "identity", lambda: process)
        found = claim(folder)
        found.renew(note)
    return found


def test_of_trainings_that_begin_at_once_each_has_a_folder(folder: Location) -> None:
    together = threading.Barrier(8)

    def begin(_: int) -> str:
        together.wait()
        return str(_begin_or_resume(folder, TrainConfig(), ["the same catalog"]).folder)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(begin, range(8)))) == 8


def test_a_training_that_ended_badly_is_gone_on_with_at_once(folder: Location) -> None:
    def begin() -> Claim:
        return _begin_or_resume(folder, TrainConfig(), ["catalog"])

    with begin() as first, begin() as second:
        assert first.folder != second.folder, "both are at work"
        first.renew("its run")
        second.finish()
    with begin() as again:
        assert (str(again.folder), again.note) == (str(first.folder), "its run")
        again.finish()
    with begin() as third:
        assert third.folder not in (first.folder, second.folder)
        assert not third.note


def test_a_folder_of_a_dead_process_is_free_at_once(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container was started again: a process with the same host name and pid lives."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1e9)
    place, _, began = alive.identity().rpartition(" ")
    taken_by(folder, f"{place} {int(began) - 1}", "its run")
    assert claim(folder).note == "its run"


def test_a_folder_of_another_machine_is_free_when_that_is_silent(folder: Location) -> None:
    old = taken_by(folder, ELSEWHERE, "its run")
    lost: list[str] = []
    with claim(folder) as new:
        assert new.note == "its run"
        new.renew("another run")
        with old:  # it was not dead
            old.when_lost(lost.append)
            while not lost:
                time.sleep(0.01)
            with pytest.raises(ConflictError, match="another process works here now"):
                old.renew()
        new.renew()
    assert claim(folder).note == "another run"
    assert len(lost) == 1


def test_a_folder_of_another_machine_is_not_taken_while_that_works(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1e9)
    with taken_by(folder, ELSEWHERE):
        assert take(folder) is None


def test_a_folder_that_is_left_while_somebody_waits_is_taken(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 1e9)
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1e9)
    with ThreadPoolExecutor(1) as pool:
        with taken_by(folder, ELSEWHERE, "its run"):
            waiting = pool.submit(take, folder)
        found = waiting.result()
    assert found
    assert found.note == "its run"
