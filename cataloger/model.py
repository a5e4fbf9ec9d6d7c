"""A loaded bundle: tokens in, calibrated categories out."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cataloger.batching import Tokens, pack
from cataloger.bundle import network_shape, read_spec
from cataloger.config import Precision
from cataloger.engines import load_engine
from cataloger.levels import Levels

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Calibrated answers for N rows, K alternatives and D levels; `levels` is NaN below the depth of the category."""

    labels: npt.NDArray[np.int64]  # [N] label ids, the most probable category
    confidence: FloatArray  # [N]
    levels: FloatArray  # [N, D] probability of the category's ancestor at each level
    alternatives: npt.NDArray[np.int64]  # [N, K] label ids of the runners-up, most probable first
    alternative_confidence: FloatArray  # [N, K]


class Bundle:
    """A loaded bundle, ready to predict on one device. Several threads may predict at once: the engine takes their batches in turn."""

    def __init__(self, folder: Path, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.spec = read_spec(folder)
        self.engine = load_engine(folder, device, precision)
        self.token_budget = self.engine.token_budget
        self.halvings = 0
        self._streams = self.engine.streams
        self._turns = ThreadPoolExecutor(self._streams)
        self.pad_id, self.vocabulary = network_shape(folder)
        self._levels = Levels(self.spec.taxonomy, device)

    def predict(self, tokens: Tokens, alternatives: int = 0) -> Predictions:
        """Predictions in the order of `tokens`. A GPU that runs out of memory is given half the tokens at a time from then on.

        Raises IndexError for a token the model does not have.
        """
        budget = self.token_budget
        try:
            return self._predict(tokens, min(alternatives + 1, len(self.spec.categories)))
        except torch.OutOfMemoryError:
            if budget <= int(tokens.lengths.max()):
                raise
        if budget == self.token_budget:  # no other thread was first
            self.token_budget, self.halvings = budget // 2, self.halvings + 1
        torch.cuda.empty_cache()
        return self.predict(tokens, alternatives)

    def logits(self, tokens: Tokens) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
        """(row numbers, float32 logits [rows, categories] on the device) batch by batch, in the packer's order."""
        # The engine has its fill while the caller looks at the batch that came out and the next one is padded.
        ahead: deque[tuple[npt.NDArray[np.int64], Future[torch.Tensor]]] = deque()
        for rows in pack(tokens.lengths, self.token_budget):
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

    def _predict(self, tokens: Tokens, best: int) -> Predictions:
        # On the device until the end: nothing waits for a batch while the next one is being packed.
        order, labels, scores, levels = [], [], [], []
        for rows, logits in self.logits(tokens):
            probabilities = torch.softmax(logits / self.spec.temperature, dim=1)
            top = torch.topk(probabilities, best, dim=1)
            order.append(rows)
            labels.append(top.indices)
            scores.append(top.values)
            levels.append(self._levels.confidences(probabilities, top.indices[:, 0]))
        if not order:
            nothing = np.empty((0, best), np.float32)
            none = np.empty((0, best), np.int64)
            return Predictions(
                none[:, 0],
                nothing[:, 0],
                np.empty((0, len(self._levels.groups)), np.float32),
                none[:, 1:],
                nothing[:, 1:],
            )
        back = np.empty(len(tokens), np.int64)
        back[np.concatenate(order)] = np.arange(len(tokens))
        label, score, level = (torch.cat(column).cpu().numpy()[back] for column in (labels, scores, levels))
        return Predictions(label[:, 0], score[:, 0], level, label[:, 1:], score[:, 1:])
