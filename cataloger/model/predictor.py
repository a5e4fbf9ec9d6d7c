"""A loaded bundle: tokens in, calibrated categories out."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cataloger.bundle import network_shape, read_spec
from cataloger.config import Precision
from cataloger.data.batching import Tokens, most_rows, pack
from cataloger.heads.heads import head_of
from cataloger.model.engines import load_engine


class Bundle:
    """A loaded bundle, ready to predict on one device. Several threads may predict at once: the engine takes their batches in turn."""

    def __init__(self, folder: Path, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.spec = read_spec(folder)
        self.engine = load_engine(folder, device, precision)
        self.token_budget = self.engine.token_budget
        self.row_budget = most_rows(len(self.spec.categories), self.engine.streams)
        self.halvings = 0
        self._streams = self.engine.streams
        self._turns = ThreadPoolExecutor(self._streams)
        self.pad_id, self.vocabulary = network_shape(folder)
        self._head, self._device = head_of(self.spec, device), device

    def predict(self, tokens: Tokens, alternatives: int = 0) -> Any:
        """Predictions in the order of `tokens`, or SetPredictions of a multi-label model. A GPU that runs out of memory is given half as much at a time from then on.

        Raises IndexError for a token the model does not have.
        """
        budget = self.token_budget
        try:
            return self._predict(tokens, alternatives)
        except torch.OutOfMemoryError:
            if budget <= int(tokens.lengths.max()):
                raise
        if budget == self.token_budget:  # no other thread was first
            self.token_budget, self.row_budget = budget // 2, max(1, self.row_budget // 2)
            self.halvings += 1
        torch.cuda.empty_cache()
        return self.predict(tokens, alternatives)

    def logits(self, tokens: Tokens) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
        """(row numbers, float32 logits [rows, categories] on the device) batch by batch, in the packer's order."""
        # The engine has its fill while the caller looks at the batch that came out and the next one is padded.
        ahead: deque[tuple[npt.NDArray[np.int64], Future[torch.Tensor]]] = deque()
        for rows in pack(tokens.lengths, self.token_budget, self.row_budget):
            ids, mask = tokens.padded(rows, self.pad_id)
            if ids.max() >= self.vocabulary:
                # Checked here: on a GPU it would take the whole process down.
                raise IndexError(f"token {ids.max()} is not in the model's vocabulary of {self.vocabulary}")
            ahead.append((rows, self._turns.submit(self.engine, ids, mask)))
            if len(ahead) > self._streams:
                done, logits = ahead.popleft()
                yield done, logits.result()
        for done, logits in ahead:
            yield done, logits.result()

    def works(self) -> bool:
        """Whether the engine answers two tokens that every model has.

        If not, what failed was no fault of its input: a GPU that had a fault fails its process at everything from then on.
        """
        try:
            # Back from the device: a GPU says what went wrong when it is waited for.
            self._turns.submit(self.engine, np.zeros((1, 2), np.int64), np.ones((1, 2), np.bool_)).result().cpu()
        except Exception:  # every engine has errors of its own
            return False
        return True

    def _predict(self, tokens: Tokens, alternatives: int) -> Any:
        # On the device until the end.
        order, batches = [np.empty(0, np.int64)], []
        for rows, logits in self.logits(tokens):
            order.append(rows)
            batches.append(self._head.read(logits, alternatives))
        place = np.empty(len(tokens), np.int64)
        place[np.concatenate(order)] = np.arange(len(tokens))
        nothing = torch.empty(0, len(self.spec.categories))
        return self._head.join(batches or [self._head.read(nothing.to(self._device), alternatives)], place)
