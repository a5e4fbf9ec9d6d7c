"""The network of a bundle, loaded: rows in, calibrated answers out."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cataloger.bundle import network_shape, read_spec
from cataloger.config import Precision
from cataloger.data.batching import Batch, IntArray, most_rows, pack
from cataloger.data.inputs import Encoded, Input, input_of
from cataloger.heads.base import head_of, joining
from cataloger.heads.category_columns import BY_BOTH
from cataloger.heads.columns import by, seen
from cataloger.model.engines import load_engine
from cataloger.spec import Spec

Found = TypeVar("Found")


class Predictor:
    """Ready to answer on one device, as the folder's spec has it, or another one.

    Several threads may ask at once: the engine takes their batches in turn.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        precision: Precision = "fp32",
        spec: Spec | None = None,
        live: bool = False,
    ) -> None:
        self.folder, self.spec = folder, spec or read_spec(folder)
        self.engine = load_engine(folder, device, precision, live)
        self.token_budget = self.engine.token_budget
        self.row_budget = most_rows(self.spec.width, self.engine.streams)
        self.halvings = 0
        self._streams = self.engine.streams
        self._turns = ThreadPoolExecutor(self._streams)
        self._vocabulary = network_shape(folder)[1]
        self._head, self._device = head_of(self.spec, device), device

    @cached_property
    def input(self) -> Input:
        """What it reads of a row."""
        return input_of(self.spec, self.folder)

    def answer(self, encoded: Encoded, alternatives: int = 0) -> pa.Table:
        """Answers (see `heads.columns`) in the order of `encoded`. A GPU that runs out of memory is given half as much at a time from then on.

        Of a model with words, `encoded` is `WithRanked`. Raises IndexError for a token the model does not have.
        """
        return self._within_memory(encoded, lambda: self._answer(encoded, alternatives))

    def probabilities(self, encoded: Encoded) -> npt.NDArray[np.float32]:
        """[N, categories] of the first answer, which is of texts; those that `answer` chooses from."""
        return self._within_memory(encoded, lambda: self._probabilities(encoded))

    def _within_memory(self, encoded: Encoded, ask: Callable[[], Found]) -> Found:
        budget = self.token_budget
        try:
            return ask()
        except torch.OutOfMemoryError:
            if budget <= int(encoded.costs.max()):
                raise
        if budget == self.token_budget:  # no other thread was first
            self.token_budget, self.row_budget = budget // 2, max(1, self.row_budget // 2)
            self.halvings += 1
        torch.cuda.empty_cache()
        return self._within_memory(encoded, ask)

    def _probabilities(self, encoded: Encoded) -> npt.NDArray[np.float32]:
        found = np.empty((len(encoded), len(self.spec.categories)), np.float32)
        for rows, logits in self.logits(encoded):
            found[rows] = self._head.probabilities(self._joined(logits, encoded, rows)).cpu().numpy()  # type: ignore[attr-defined]
        return found

    def logits(self, encoded: Encoded) -> Iterator[tuple[IntArray, torch.Tensor]]:
        """(row numbers, float32 logits [rows, categories] on the device) batch by batch, in the packer's order."""
        # The engine has its fill while the caller looks at the batch that came out and the next one is padded.
        ahead: deque[tuple[IntArray, Future[torch.Tensor]]] = deque()
        for rows in pack(encoded.costs, self.token_budget, self.row_budget):
            batch = encoded.batch(rows)
            self._check(batch)
            ahead.append((rows, self._turns.submit(self.engine, batch)))
            if len(ahead) > self._streams:
                done, logits = ahead.popleft()
                yield done, logits.result()
        for done, logits in ahead:
            yield done, logits.result()

    def works(self) -> bool:
        """Whether the engine answers a row that it must have an answer for.

        If not, what failed was no fault of its input: a GPU that had a fault fails its process at everything from then on.
        """
        example = self.input.example().batch(np.zeros(1, np.int64))
        try:
            # Back from the device: a GPU says what went wrong when it is waited for.
            self._turns.submit(self.engine, example).result().cpu()
        except Exception:  # every engine has errors of its own
            return False
        return True

    def _check(self, batch: Batch) -> None:
        """Here, as on a GPU it would take the whole process down."""
        if (most := batch["input_ids"].max(initial=0) if "input_ids" in batch else -1) >= self._vocabulary:
            raise IndexError(f"token {most} is not in the model's vocabulary of {self._vocabulary}")

    def _joined(self, logits: torch.Tensor, encoded: Encoded, rows: IntArray) -> torch.Tensor:
        """With what words know of these rows, where the model has any."""
        if not self.spec.words:
            return logits
        return joining(self._head).with_words(logits, encoded.ranked.take(rows), self.spec.words)  # type: ignore[attr-defined]

    def _answer(self, encoded: Encoded, alternatives: int) -> pa.Table:
        # On the device until the end.
        order: list[IntArray] = [np.empty(0, np.int64)]
        batches: list[tuple[torch.Tensor, ...]] = []
        for rows, logits in self.logits(encoded):
            order.append(rows)
            batches.append(self._head.read(self._joined(logits, encoded, rows), alternatives))
        place = np.empty(len(encoded), np.int64)
        place[np.concatenate(order)] = np.arange(len(encoded))
        nothing = torch.empty(0, self.spec.width)
        answers = self._head.join(batches or [self._head.read(nothing.to(self._device), alternatives)], place)
        answers = encoded.located(answers) if self.spec.tags else answers  # type: ignore[attr-defined]
        answers = by(answers, BY_BOTH) if self.spec.words else answers
        return seen(answers, encoded.status) if self.spec.picture else answers  # type: ignore[attr-defined]
