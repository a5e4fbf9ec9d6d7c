"""Whom to ask: accuracy after so many reviewed products, chosen by jobs/review.py and by chance, of words alone.

The categories of a catalog are hidden but for a few; each round reveals those of the products that are asked about, and fits words anew.

python benchmarks/review.py
"""

import itertools
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.curation.candidates import LEAST, PER_QUESTION
from cataloger.curation.choosing import choose
from cataloger.data.batching import Ragged
from cataloger.data.ngrams import ngrams
from cataloger.model.words import Vocabulary
from cataloger.training.linear import fit_categories
from quality import REAL
from yardsticks import report

ROUND = 500
TEMPERATURES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("instacart",)
    seeds: tuple[int, ...] = (0, 1, 2)
    start: int = 500
    """Products whose category is known at first."""
    reviewed: int = 2_000
    by_chance: int = 5_000
    """So many are reviewed by chance, to see how many it takes."""


@dataclass(frozen=True)
class Catalog:
    titles: pa.Array
    labels: npt.NDArray[np.int64]
    categories: int

    @classmethod
    def read(cls, name: str) -> "Catalog":
        table = pq.read_table(REAL / f"{name}.parquet", columns=["title", "category_path"])
        names, labels = np.unique(np.array(table.column("category_path").to_pylist()), return_inverse=True)
        return cls(table.column("title").combine_chunks().cast(pa.large_string()), labels, len(names))


class Learner:
    """Words that have learnt some rows of a catalog."""

    def __init__(self, catalog: Catalog, counts: object, rows: Rows, rng: np.random.Generator) -> None:
        self.catalog, self.counts = catalog, counts
        rows = rng.permutation(rows)
        held = len(rows) // 5
        self._fit(rows[held:])
        self.temperature = min(TEMPERATURES, key=lambda one: self._loss(rows[:held], one))
        self._fit(rows)

    def _fit(self, rows: Rows) -> None:
        catalog, counts = self.catalog, self.counts[rows]  # type: ignore[index]
        self.known = np.unique(catalog.labels[rows])
        self.vocabulary = Vocabulary.of(counts, 2)
        sets = Ragged(catalog.labels[rows].astype(np.int32), np.arange(len(rows) + 1))
        self.weights, self.bias = fit_categories(self.vocabulary.weigh(counts), sets, self.known, catalog.categories)

    def probabilities(self, rows: Rows, temperature: float | None = None) -> npt.NDArray[np.float64]:
        scores = (self.vocabulary.weigh(self.counts[rows]) @ self.weights).toarray() + self.bias  # type: ignore[index]
        scores = scores / (temperature or self.temperature)
        found = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def says(self, rows: Rows) -> npt.NDArray[np.int64]:
        return np.asarray(self.known[self.probabilities(rows).argmax(axis=1)])

    def _loss(self, rows: Rows, temperature: float) -> float:
        right = self.known[None, :] == self.catalog.labels[rows][:, None]
        own = (self.probabilities(rows, temperature) * right).sum(axis=1)
        return float(-np.log(np.maximum(own, 1e-6)).mean())


def ask(how: str, catalog: Catalog, learner: Learner, pool: Rows, rng: np.random.Generator) -> Rows:
    """One round's products."""
    _, once = np.unique(np.array(catalog.titles.take(pa.array(pool)).to_pylist()), return_index=True)
    pool = pool[once]
    if how == "by chance":
        return np.asarray(rng.choice(pool, ROUND, replace=False))
    best = np.sort(learner.probabilities(pool), axis=1)
    worth = 1 - (best[:, -1] - best[:, -2])
    order = np.argsort(-worth, kind="stable")
    if how == "the least sure":
        return np.asarray(pool[order[:ROUND]])
    order = order[: max(LEAST, PER_QUESTION * ROUND)]
    return np.asarray(pool[order[choose(catalog.titles.take(pa.array(pool[order])), worth[order], ROUND)]])


def simulate(name: str, seed: int, how: str, config: Config) -> list[tuple[int, float, float, float]]:
    """(reviewed, accuracy of the model on a fifth that nobody reviews, accuracy of the other labels with reviewed ones, seconds to choose)"""
    catalog, rng = Catalog.read(name), np.random.default_rng(seed)
    counts = ngrams(catalog.titles)
    rows = np.random.default_rng(7).permutation(len(catalog.labels))
    test, rest = np.split(rows, [len(rows) // 5])
    known = rng.permutation(rest)[: config.start]
    found, seconds = [], 0.0
    most = config.by_chance if how == "by chance" else config.reviewed
    for reviewed in range(0, most + 1, ROUND):
        learner = Learner(catalog, counts, known, rng)
        right = learner.says(rest) == catalog.labels[rest]
        right |= np.isin(rest, known)  # people are right
        found.append(
            (reviewed, float((learner.says(test) == catalog.labels[test]).mean()), float(right.mean()), seconds)
        )
        started = time.perf_counter()
        known = np.concatenate([known, ask(how, catalog, learner, np.setdiff1d(rest, known), rng)])
        seconds = time.perf_counter() - started
    return found


def needed(curve: list[tuple[int, float]], accuracy: float) -> float:
    """How many reviewed rows reach an accuracy, between the two measured points; infinite where none does."""
    for (before, low), (after, high) in itertools.pairwise(curve):
        if low <= accuracy <= high:
            return before + (after - before) * (accuracy - low) / max(1e-9, high - low)
    return float("inf")


def main() -> None:
    config, rows = tyro.cli(Config), list[dict[str, object]]()
    for name in config.sets:
        runs = {
            how: np.mean([simulate(name, seed, how, config) for seed in config.seeds], axis=0)
            for how in ("by chance", "the least sure", "jobs/review.py")
        }
        chance = runs["by chance"]
        for how, run in runs.items():
            for reviewed, test, labels, seconds in run:
                rows.append(
                    {
                        "catalog": name,
                        "asked": how,
                        "reviewed": int(reviewed),
                        "accuracy of the model": test,
                        "rows by chance for that": needed([(int(one[0]), one[1]) for one in chance], test),
                        "accuracy of the labels": labels,
                        "rows by chance for these": needed([(int(one[0]), one[2]) for one in chance], labels),
                        "seconds to choose": seconds,
                    }
                )
    report("review", f"Reviewed products, {len(config.seeds)} starts of {config.start:,} known ones each", rows)


if __name__ == "__main__":
    main()
