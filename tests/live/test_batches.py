"""Requests of many callers as batches."""

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cataloger.live.batches import MOST_REQUESTS, Batches, Overloaded


class Model:
    """Answers a product with itself, and remembers what it was asked at the same time; it waits for `gate` where there is one."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, products: Sequence[Any]) -> list[dict[str, Any]]:
        self.asked.append([product["n"] for product in products])
        assert self.gate.wait(20)
        return [dict(product) for product in products]

    def batches(
        self, turns: int = 1, most_tokens: int = 10, max_wait: float = 0.0, most_waiting: int = 1_000
    ) -> Batches:
        return Batches(self.answer, turns, most_tokens, max_wait, most_waiting)


@given(
    st.lists(st.lists(st.integers(), min_size=1, max_size=4), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_everybody_gets_their_own_answers(requests: list[list[int]], turns: int, most_tokens: int) -> None:
    model = Model()

    async def all_at_once() -> list[list[dict[str, Any]]]:
        batches = model.batches(turns, most_tokens, max_wait=0.001)
        return await asyncio.gather(*(batches.ask([{"n": n} for n in numbers], len(numbers)) for numbers in requests))

    assert asyncio.run(all_at_once()) == [[{"n": n} for n in numbers] for numbers in requests]
    assert all(len(asked) <= max(most_tokens, *map(len, requests)) for asked in model.asked)


def test_nobody_fails_by_a_product_of_somebody_else() -> None:
    model = Model()

    def answer(products: Sequence[Any]) -> list[dict[str, Any]]:
        if any(product["n"] == 3 for product in products):
            raise IndexError("beyond the vocabulary")
        return model.answer(products)

    async def run() -> list[Any]:
        batches = Batches(answer, 1, 10, 0.0, 1_000)
        model.gate.clear()
        first = asyncio.create_task(batches.ask([{"n": 0}], 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batches.ask([{"n": n}, {"n": -n}], 2)) for n in range(1, 5)]
        await asyncio.sleep(0.05)
        model.gate.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    found = asyncio.run(run())
    assert isinstance(found.pop(3), IndexError)
    assert found == [[{"n": 0}], *([{"n": n}, {"n": -n}] for n in (1, 2, 4))]


def test_what_comes_while_the_model_is_busy_is_answered_together() -> None:
    model = Model()

    async def run() -> None:
        batches = model.batches()
        model.gate.clear()
        first = asyncio.create_task(batches.ask([{"n": 0}], 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batches.ask([{"n": n}], 1)) for n in range(1, 15)]
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert model.asked == [[0], list(range(1, 11)), list(range(11, 15))], "up to ten tokens each"


def test_a_second_thread_waits_for_company_and_not_for_long() -> None:
    model = Model()

    async def run() -> float:
        batches = model.batches(turns=2, max_wait=0.2)
        model.gate.clear()
        tasks = [asyncio.create_task(batches.ask([{"n": n}], 1)) for n in range(4)]
        await asyncio.sleep(0.05)
        assert model.asked == [[0]]
        started = time.monotonic()
        while len(model.asked) < 2:
            await asyncio.sleep(0.005)
        waited = time.monotonic() - started
        model.gate.set()
        await asyncio.gather(*tasks)
        return waited

    assert asyncio.run(run()) > 0.1
    assert model.asked == [[0], [1, 2, 3]]


def test_more_than_can_be_answered_soon_is_refused_and_the_rest_answered() -> None:
    model = Model()

    async def run() -> list[Any]:
        batches = model.batches(most_waiting=20)
        model.gate.clear()
        tasks = [asyncio.create_task(batches.ask([{"n": n}], 5)) for n in range(8)]
        await asyncio.sleep(0.05)
        model.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert batches.waiting == 0
        return found

    found = asyncio.run(run())
    refused = [one for one in found if isinstance(one, Overloaded)]
    assert len(refused) == 3, "one is being answered, and four wait"
    assert all(one.seconds >= 1 for one in refused)
    assert all(isinstance(one, list) for one in found[:5])


def test_an_error_of_the_model_is_of_those_who_were_asked_together_and_the_next_are_answered() -> None:
    def answer(products: Sequence[Any]) -> list[dict[str, Any]]:
        if {"n": 1} in products:
            raise RuntimeError("no")
        return [dict(product) for product in products]

    async def run() -> None:
        batches = Batches(answer, 1, 10, 0.0, 100)
        with pytest.raises(RuntimeError, match="no"):
            await batches.ask([{"n": 1}], 1)
        assert await batches.ask([{"n": 2}], 1) == [{"n": 2}]

    asyncio.run(run())


def test_who_has_gone_is_not_answered() -> None:
    model = Model()

    async def run() -> None:
        batches = model.batches()
        model.gate.clear()
        first = asyncio.create_task(batches.ask([{"n": 0}], 1))
        await asyncio.sleep(0.05)
        gone, stays = (asyncio.create_task(batches.ask([{"n": n}], 1)) for n in (1, 2))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(first, stays)
        assert batches.waiting == 0

    asyncio.run(run())
    assert model.asked == [[0], [2]]


def test_many_short_requests_are_too_many_as_well() -> None:
    model = Model()

    async def run() -> list[Any]:
        batches = model.batches(most_tokens=10, most_waiting=10**9)
        model.gate.clear()
        first = asyncio.create_task(batches.ask([{"n": 0}], 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batches.ask([{"n": n}], 1)) for n in range(MOST_REQUESTS + 3)]
        await asyncio.sleep(0.05)
        model.gate.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    found = asyncio.run(run())
    assert [isinstance(one, Overloaded) for one in found] == [False] * (MOST_REQUESTS + 1) + [True] * 3
