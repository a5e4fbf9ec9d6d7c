"""Which products to ask people about: those whose answers tell most of the others."""

import heapq

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.data.ngrams import ngrams
from cataloger.model.words import Vocabulary

# N-grams that fewer texts have make none of them alike.
LEAST_TEXTS = 2
# Less than that is told by what is the same in other words.
LEAST_GAIN = 1e-6
# Rows whose likeness to all others is in memory at the same time.
BLOCK = 256


def choose(texts: pa.Array, worth: npt.NDArray[np.float64], budget: int) -> npt.NDArray[np.int64]:
    """The places of at most `budget` of N texts, the most telling first; no two of the same words.

    Those that maximise the sum over all texts of worth × likeness to the most alike of the chosen ones: facility location (Wei, Iyer and
    Bilmes 2015), found greedily and lazily (Minoux 1978), so that it is at least 1 - 1/e of the best sum. Likeness is the squared cosine
    of weighted n-grams. Texts that stand for many others come first; those alike to a chosen one come late, and outliers last.
    `benchmarks/review.py` compares it with other ways.
    """
    counts = ngrams(texts)
    matrix = Vocabulary.of(counts, LEAST_TEXTS).weigh(counts).astype(np.float32)
    others = matrix.T.tocsr()
    covered = np.zeros(len(worth), np.float32)
    own = (worth / max(1e-300, float(worth.max(initial=0)))).astype(np.float32)

    def likeness(place: int) -> npt.NDArray[np.float32]:
        found = np.asarray((matrix[place] @ others).todense()).ravel() ** 2
        found[place] = 1.0  # also of a text without any n-gram that others have
        return found

    blocks = (matrix[start : start + BLOCK] for start in range(0, len(own), BLOCK))
    first = np.concatenate(
        [np.empty(0, np.float32), *(np.asarray((block @ others).todense()) ** 2 @ own for block in blocks)]
    )
    heap = [(-float(max(gain, alone)), place, 0) for place, (gain, alone) in enumerate(zip(first, own, strict=True))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < budget:
        _, place, when = heapq.heappop(heap)
        near = likeness(place)
        if when == len(chosen):
            chosen.append(place)
            covered = np.maximum(covered, near)
        elif (left := float((own * np.maximum(0, near - covered)).sum())) > LEAST_GAIN:
            heapq.heappush(heap, (-left, place, len(chosen)))
    return np.array(chosen, np.int64)
