"""Rows in a training worker's memory, and which of them an epoch goes through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from cataloger.config import LongTail
from cataloger.data.batching import IntArray, Ragged, Together, Tokens
from cataloger.spec import Spec
from cataloger.training.archive import stored
from cataloger.training.gallery import load_pictured
from cataloger.training.order import Order, Shuffled

# What the ingest has a row for.
TRAINING, VALIDATION, UNLABELLED = range(3)


@dataclass(frozen=True)
class Examples:
    """N rows as they are encoded for the network, and their label ids, as many as the row has; -1 is a category the model does not know."""

    inputs: Any
    sets: Any
    """`Ragged`; of several answers `Together`."""
    groups: npt.NDArray[np.int64] | None = None
    """[N] the number of the group that each row belongs to, where groups are balanced."""
    keys: npt.NDArray[np.uint64] | None = None
    """[N] what decides a row's side of the split: the same for rows that belong together."""

    @classmethod
    def of_one_category(cls, inputs: Any, labels: IntArray) -> "Examples":
        """Rows that have one label each."""
        return cls(inputs, Ragged(labels.astype(np.int32), np.arange(len(labels) + 1)))

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: IntArray) -> "Examples":
        groups = None if self.groups is None else self.groups[rows]
        keys = None if self.keys is None else self.keys[rows]
        return Examples(self.inputs.take(rows), self.sets.take(rows), groups, keys)

    def and_these(self, others: "Examples") -> "Examples":
        """Of rows that have texts alone."""
        return Examples(Tokens.joined([self.inputs, others.inputs]), Ragged.joined([self.sets, others.sets]))


def load_examples(
    blocks: Sequence[Any], key: str, spec: Spec, given: Any, fold_back: bool = False
) -> tuple[Examples, Examples, Examples]:
    """(training, validation, unlabelled) rows of the ingest's tables; `given` is what read them, `key` that of the training."""
    uses = (TRAINING, VALIDATION, UNLABELLED)
    labels = ["labels", *(f"labels.{number}" for number in range(1, 1 + len(spec.others)))]
    groups = {"key": np.uint64, **({"group": np.uint64} if "group" in ray.get(blocks[0]).column_names else {})}
    of_texts = not spec.picture and not spec.tags
    # What is learnt with labels and without them is joined, at times, or what is learnt and what judges; with both, one is a copy.
    together = ((TRAINING, VALIDATION), (UNLABELLED,)) if fold_back else ((TRAINING, UNLABELLED), (VALIDATION,))
    found = stored(blocks, key, [*labels, *(["tokens"] if of_texts else [])], groups, together)
    if of_texts:
        pad_id = given.example().pad_id
        inputs: dict[int, Any] = {}
        for use, own in found.items():
            inputs[use] = Tokens(own.lists["tokens"].flat, own.lists["tokens"].offsets, pad_id)
    else:
        inputs = _in_memory(blocks, key, uses, spec, given)

    def examples(use: int) -> Examples:
        first, *others = (found[use].lists[name] for name in labels)
        assert len(inputs[use]) == len(first), "each row has its labels"
        of_groups = None
        if "group" in groups:
            of_groups = np.unique(found[use].numbers["group"], return_inverse=True)[1].astype(np.int64)
        sets = Together((first, *others)) if others else first
        return Examples(inputs[use], sets, of_groups, found[use].numbers["key"])

    return examples(TRAINING), examples(VALIDATION), examples(UNLABELLED)


def _in_memory(blocks: Sequence[Any], key: str, uses: Sequence[int], spec: Spec, given: Any) -> dict[int, Any]:
    """By use, rows with pictures, which lie in a file of their own, or with words that are tagged."""
    columns = [*(["tokens"] if spec.text_columns else []), *(["picture"] if spec.picture else [])]
    columns += ["words", "origins"] if spec.tags else []
    # Copied block by block: what stays of one would keep all of it in Ray's memory.
    table = pa.concat_tables([copied(ray.get(block), [*columns, "use"]) for block in blocks])
    use, pictured = table.column("use").to_numpy(), load_pictured(blocks, key, table, given) if spec.picture else None

    def rows(wanted: int) -> Any:
        chosen = np.flatnonzero(use == wanted)
        return given.from_arrow(table.take(pa.array(chosen))) if pictured is None else pictured.take(chosen)

    return {wanted: rows(wanted) for wanted in uses}


def copied(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """These columns of one of the ingest's tables, in memory of their own."""
    return table.select(list(columns)).take(pa.array(np.arange(len(table))))


def draw(
    examples: Examples,
    categories: int,
    long_tail: LongTail,
    rng: np.random.Generator,
    alter: Callable[[npt.NDArray[np.int32], np.random.Generator], npt.NDArray[np.int32]],
) -> tuple[Examples, Order]:
    """(rows, the order of one epoch's draws from them): every row once, or as many draws that favour rare categories.

    Rows are then drawn such that a category counts by its square root (Mahajan et al. 2018, section 2.2). With
    augmentation, every draw of a row after its first in the epoch is altered.
    """
    if long_tail not in ("sampling", "augmentation"):
        return examples, Shuffled(len(examples), rng)
    labels = examples.sets.first()
    chances = 1 / np.sqrt(np.bincount(labels, minlength=categories)[labels])
    drawn = rng.choice(len(examples), len(examples), p=chances / chances.sum())
    if long_tail == "sampling":
        return examples, drawn
    again = np.ones(len(drawn), bool)
    again[np.unique(drawn, return_index=True)[1]] = False
    chosen = examples.take(drawn)
    texts = np.split(chosen.inputs.flat, chosen.inputs.offsets[1:-1])
    texts = [alter(text, rng) if repeated else text for text, repeated in zip(texts, again, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    altered = replace(chosen.inputs, flat=np.concatenate(texts), offsets=offsets)
    return Examples(altered, chosen.sets), np.arange(len(drawn))
