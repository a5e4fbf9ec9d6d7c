"""The linear model of a bundle: hashed n-grams of a text in, a score for each category out."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from cataloger.bundle import WORDS
from cataloger.data.ngrams import BUCKETS, blocks_of, ngrams
from cataloger.errors import ModelError

FloatArray = npt.NDArray[np.float32]
# A matrix of all weights is five times as fast as a sparse one, as long as it is not larger than this.
DENSE_BYTES = 1 << 28
# Scores of so many numbers at once: of few rows where there are many categories.
SCORES = 1 << 22


@dataclass(frozen=True)
class Vocabulary:
    """The F buckets that occur often enough to be learnt from, and the inverse document frequency of each."""

    buckets: npt.NDArray[np.int64]
    idf: FloatArray

    @classmethod
    def of(cls, counts: sparse.csr_matrix, least: int) -> "Vocabulary":
        """Of the n-grams of the training texts; `least` texts must have a bucket."""
        found = np.bincount(counts.indices, minlength=BUCKETS)
        buckets = np.flatnonzero(found >= least)
        idf = np.log((1 + counts.shape[0]) / (1 + found[buckets])) + 1
        return cls(buckets, idf.astype(np.float32))

    @functools.cached_property
    def _place(self) -> npt.NDArray[np.int32]:
        place = np.full(BUCKETS, -1, np.int32)
        place[self.buckets] = np.arange(len(self.buckets))
        return place

    def weigh(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """[N, F]: (1 + log count) x idf, each row of length one (Salton and Buckley 1988; sublinear tf, cosine)."""
        place = self._place[counts.indices]
        known = place >= 0
        before = np.concatenate([[0], np.cumsum(known)])
        indices, starts = place[known], before[counts.indptr]
        values = (1 + np.log(counts.data[known])) * self.idf[indices]
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(starts))
        length = np.sqrt(np.bincount(rows, values * values, counts.shape[0]))
        values /= length[rows]
        return sparse.csr_matrix((values, indices, starts), shape=(counts.shape[0], len(self.buckets)))


@dataclass(frozen=True)
class WordModel:
    """Weights of the vocabulary for each category, most of them zero: float32 [F, categories]; `bias` is float32 [categories]."""

    vocabulary: Vocabulary
    weights: sparse.csr_matrix
    bias: FloatArray

    @classmethod
    def load(cls, folder: Path) -> "WordModel":
        """That of a bundle. Raises ModelError."""
        try:
            found = load_file(folder / WORDS)
            weights = found["weights"].astype(np.float32), found["categories"], found["starts"]
            buckets, idf = found["buckets"].astype(np.int64), found["idf"]
            if len(idf) != len(buckets) or not ((buckets >= 0) & (buckets < BUCKETS)).all():
                raise ValueError("its vocabulary cannot be right")
            shape = len(buckets), len(found["bias"])
            matrix = sparse.csr_matrix(weights, shape=shape)
            matrix.check_format(full_check=True)
            return cls(Vocabulary(buckets, idf), matrix, found["bias"])
        except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
            raise ModelError(
                f"model {folder}: {WORDS} cannot be read ({str(error).splitlines()[0]}); copy the folder again from where the "
                "model was trained"
            ) from error

    def save(self, folder: Path) -> None:
        """Arrays alone; weights as float16."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "buckets": self.vocabulary.buckets.astype(np.int32),
            "idf": self.vocabulary.idf,
            "starts": self.weights.indptr.astype(np.int64),
            "categories": self.weights.indices.astype(np.int32),
            "weights": self.weights.data.astype(np.float16),
            "bias": self.bias,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / WORDS)

    def rounded(self) -> "WordModel":
        """As it is read again: what is fitted on its scores must be fitted on these."""
        weights = self.weights.copy()
        weights.data = weights.data.astype(np.float16).astype(np.float32)
        return WordModel(self.vocabulary, weights, self.bias)

    @functools.cached_property
    def _matrix(self) -> Any:
        rows, columns = self.weights.shape
        return self.weights.toarray() if 4 * rows * columns <= DENSE_BYTES else self.weights

    def scores(self, texts: pa.Array) -> Iterator[FloatArray]:
        """float32 [rows, categories] of texts without nulls, block by block in their order."""
        for _, block in blocks_of(texts, max(1, SCORES // len(self.bias))):
            yield self.of_counts(ngrams(block))

    def of_counts(self, counts: sparse.csr_matrix) -> FloatArray:
        """float32 [rows, categories] of n-grams."""
        found = self.vocabulary.weigh(counts) @ self._matrix
        return np.asarray(found.toarray() if sparse.issparse(found) else found, np.float32) + self.bias
