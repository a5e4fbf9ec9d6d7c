import os
from collections.abc import Iterator

import pytest
import ray
import ray.data
import ray.exceptions

from cataloger import errors
from cataloger.errors import CatalogError
from cataloger.infra import spread


def test_an_error_of_ours_in_a_task_comes_back_as_itself(ray_session: None) -> None:
    def fail(row: dict[str, int]) -> dict[str, int]:
        raise errors.CatalogError("catalog file x: broken; mend it")

    def fail_otherwise(row: dict[str, int]) -> dict[str, int]:
        raise KeyError("no idea")

    with pytest.raises(CatalogError, match="^catalog file x: broken; mend it$"), spread.errors_of_tasks():
        ray.data.range(2).map(fail).materialize()
    with pytest.raises(ray.exceptions.RayError, match="no idea"), spread.errors_of_tasks():
        ray.data.range(2).map(fail_otherwise).materialize()


def test_work_is_spread_over_the_cluster_in_order_and_its_errors_come_back_as_themselves(ray_session: None) -> None:
    here = os.getpid()

    def work(item: int) -> tuple[int, bool]:
        if item == 90:
            raise errors.StorageError("part-90: cannot be read; mend it")
        return item * item, os.getpid() == here

    assert list(spread.each(range(80), work)) == [(item * item, False) for item in range(80)]
    assert list(spread.each([], work)) == []
    with pytest.raises(errors.StorageError, match="^part-90: cannot be read; mend it$"):
        list(spread.each(range(85, 99), work))


def test_no_more_items_are_taken_than_the_cluster_has_work_for(ray_session: None) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1_000):
            taken.append(number)
            yield number

    found = spread.each(items(), abs)
    assert [next(found) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 2 * int(ray.cluster_resources()["CPU"])
