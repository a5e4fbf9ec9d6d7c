"""A linear model of words as training makes it, of a few texts and without Ray."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse

from cataloger.data.ngrams import ngrams
from cataloger.model.words import Vocabulary, WordModel
from cataloger.training.linear import fit_one

TEXTS = (
    *("red running shoes", "blue running shoes 42", "white shoes of canvas", "winter boots with laces", "rubber boots"),
    *("green tea 250g", "black tea leaves", "绿茶 tea", "herbal tea bags", "denim jeans", "blue denim jeans, slim"),
)
LABELS = (0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3)
CATEGORIES = ("Shoes", "Shoes > Boots", "Tea", "Trousers > Jeans")  # as the labels have them


def word_model(texts: Sequence[str] = TEXTS, labels: Sequence[int] = LABELS) -> WordModel:
    """Of texts with one category each; of any text that has one of these, it gives its category the highest score."""
    counts = ngrams(pa.array(texts))
    vocabulary = Vocabulary.of(counts, 1)
    matrix, own = vocabulary.weigh(counts), np.array(labels)
    weights, bias = zip(*(fit_one(matrix, own == label) for label in range(own.max() + 1)), strict=True)
    return WordModel(vocabulary, sparse.csr_matrix(np.stack(weights, axis=1)), np.array(bias, np.float32))
