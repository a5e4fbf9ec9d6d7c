"""New columns for linear classifiers that have been trained already: of a bundle's words, and of the last layer of its network.

A column is the direction of its examples, as a trained one would begin (imprinting; Qi, Brown and Lowe 2018), and what a support vector
machine adds that tells them from products of other categories. All new columns are then shifted together, so far that they take
a given share of the products of other categories from them, and no more.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Graft:
    """Columns [features, new] and their biases [new]."""

    weights: FloatArray
    bias: FloatArray

    def scores(self, features: Any) -> FloatArray:
        """[N, new]"""
        return np.asarray(features @ self.weights, np.float32) + self.bias

    def shifted(self, by: float) -> "Graft":
        return Graft(self.weights, self.bias + np.float32(by))

    def scaled(self, by: float) -> "Graft":
        return Graft(self.weights * np.float32(by), self.bias * np.float32(by))


def grow(own: Any, label: npt.NDArray[np.int64], count: int, others: Any) -> Graft:
    """A column for each of `count` new categories, of the features [N, F] of their examples and names, whose rows have length one or about
    that, and `others` [M, F] of products that have other categories."""
    from sklearn.svm import LinearSVC

    weights, bias = np.empty((own.shape[1], count), np.float32), np.empty(count, np.float32)
    stack: Any = sparse.vstack if sparse.issparse(own) else np.vstack
    rows = stack([own, others])
    rows = rows.tocsr() if sparse.issparse(rows) else rows
    for number in range(count):
        mine = np.concatenate([label == number, np.zeros(others.shape[0], bool)])
        mean = np.asarray(own[np.flatnonzero(label == number)].mean(axis=0)).ravel()
        found: Any = LinearSVC(tol=0.1, random_state=0).fit(rows, mine)
        weights[:, number] = found.coef_[0] + mean / max(1e-9, float(np.linalg.norm(mean)))
        bias[number] = found.intercept_[0]
    return Graft(weights, bias)


def balance(
    graft: Graft, features: Any, old: FloatArray, right: npt.NDArray[np.bool_], share: float, apart: float = 0.0
) -> Graft:
    """Shifted so far that of N products of old categories, with the scores `old` [N, C] and `right` [N] where these are right, the new
    columns take at most this share; and `apart` times the spread of these scores further."""
    lead = np.sort((old.max(axis=1) - graft.scores(features).max(axis=1))[right])
    allowed = int(share * len(right))
    if allowed >= len(lead):
        return graft
    return graft.shifted(float(lead[allowed]) - 1e-6 - apart * float(old.std()))
