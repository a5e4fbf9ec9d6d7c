"""Requests of many callers as batches: what is asked at the same time is answered in one forward pass."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cataloger.live.products import Product

Answers = list[dict[str, Any]]
# A newer measurement of the rate counts so much beside all older ones.
FRESHNESS = 0.1
# Requests that may wait, however short: fewer than the proxy lets through, which makes those beyond wait where nobody tells them.
MOST_REQUESTS = 700


class Overloaded(Exception):
    """More waits than can be answered soon; `seconds` is when to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many products are waiting; ask again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Asked:
    """A request that waits."""

    products: Sequence[Product]
    tokens: int
    done: "asyncio.Future[Answers]"
    since: float = field(default_factory=time.monotonic)


class Batches:
    """Takes what waits, up to `most_tokens` at a time, and has `answer` run in one of `turns` threads.

    Who comes when nothing runs is answered immediately. While something runs, further requests are gathered: until they are as many tokens,
    until the oldest has waited `max_wait` seconds and a thread is free, or until nothing runs any more. Used from one event loop.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Product]], Answers],
        turns: int,
        most_tokens: int,
        max_wait: float,
        most_waiting: int,
    ) -> None:
        self.answer, self.turns, self.most_tokens = answer, turns, most_tokens
        self.max_wait, self.most_waiting = max_wait, most_waiting
        self.queue: deque[Asked] = deque()
        self.waiting = 0
        self._running = 0
        self._threads = ThreadPoolExecutor(turns)
        self._rate = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    async def ask(self, products: Sequence[Product], tokens: int) -> Answers:
        """An answer for each product. Raises Overloaded, and whatever `answer` raises."""
        if self.waiting and (self.waiting + tokens > self.most_waiting or len(self.queue) >= MOST_REQUESTS):
            raise Overloaded(max(1, math.ceil(self.waiting / self._rate)) if self._rate else 1)
        asked = Asked(products, tokens, asyncio.get_running_loop().create_future())
        self.queue.append(asked)
        self.waiting += tokens
        self._look()
        return await asked.done

    def _look(self) -> None:
        """Begin a batch where there is reason to."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        while self.queue and self._running < self.turns:
            late = self.queue[0].since + self.max_wait - time.monotonic()
            if self._running and self.waiting < self.most_tokens and late > 0:
                self._alarm = asyncio.get_running_loop().call_later(late, self._look)
                return
            self._begin()

    def _begin(self) -> None:
        taken: list[Asked] = []
        tokens = 0
        while self.queue and (not taken or tokens + self.queue[0].tokens <= self.most_tokens):
            asked = self.queue.popleft()
            self.waiting -= asked.tokens
            if not asked.done.done():  # its caller has gone
                taken.append(asked)
                tokens += asked.tokens
        if not taken:
            return
        self._running += 1
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        found = loop.run_in_executor(self._threads, self._answered, [asked.products for asked in taken])

        def end(found: "asyncio.Future[list[Answers | Exception]]") -> None:
            self._running -= 1
            rate = tokens * self.turns / max(1e-6, time.monotonic() - started)
            self._rate += (rate - self._rate) * (FRESHNESS if self._rate else 1.0)
            self._hand_out(taken, found)
            self._look()

        found.add_done_callback(end)

    def _answered(self, asked: Sequence[Sequence[Product]]) -> list[Answers | Exception]:
        """The answers of each request, or what they fail at: all in one pass, or where that fails one request after the other, so that
        none fails by another one's product."""
        try:
            answers = iter(self.answer([product for products in asked for product in products]))
            return [[next(answers) for _ in products] for products in asked]
        except Exception as error:
            if len(asked) == 1:
                return [error]
            return [self._answered([products])[0] for products in asked]

    def _hand_out(self, taken: Sequence[Asked], found: "asyncio.Future[list[Answers | Exception]]") -> None:
        if error := found.exception():
            found_of: list[Answers | BaseException] = [error] * len(taken)
        else:
            found_of = [*found.result()]
        for asked, own in zip(taken, found_of, strict=True):
            if asked.done.done():
                continue
            if isinstance(own, BaseException):
                asked.done.set_exception(own)
            else:
                asked.done.set_result(own)
