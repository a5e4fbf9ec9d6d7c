"""Which category of another tree each old category becomes: what names, examples and the products themselves say.

A target is the mean of what its name and its examples mean (prototypes; Snell, Swersky and Zemel 2017). How near products are to the targets
says what each may be; what a category is made of is then the shares that explain all of its products best (EM; Saerens, Latinne and
Decaestecker 2002). The old name counts as a product, and an example whose old label is known as some. Where most of a category is one
target, it goes there as a whole. Otherwise it is split, and its products are told apart one by one, with these shares as what is
known beforehand.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cataloger.adapting.meaning import FloatArray, Meaning
from cataloger.adapting.trees import Tree
from cataloger.taxonomy import SEPARATOR

Kind = Literal["same", "renamed", "moved", "merged", "split", "gone"]
KINDS = ("same", "renamed", "moved", "merged", "split", "gone")
# Products of a category that vote; its name counts as so many of them, and each example with that old label as so many.
VOTERS, NAME, EXAMPLE = 200, 1.0, 3.0
TURNS = 20
# Of the softmax that makes votes of cosines, and what equal names count beside them.
TEMPERATURE, SAME_NAME = 0.05, 0.3
# A category goes to one target that has so many of the votes, and is split among those that have so many.
WHOLE, PART = 0.6, 0.01
VOTES_AT_ONCE = 4_096
SHOWN, SHOWN_CHARACTERS = 3, 120


@dataclass(frozen=True)
class Mapped:
    """What becomes of an old category with so many products: its target, or (path, share) of several; `evidence` is in words."""

    old: str
    products: int
    kind: Kind
    target: str | None
    targets: tuple[tuple[str, float], ...]
    confidence: float
    evidence: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Old:
    """The old categories: how many products each has, and the texts of some of them."""

    counts: Counter[str]
    texts: Mapping[str, list[str]]

    @classmethod
    def of(cls, parts: Iterable[tuple[pa.Array, pa.Array]]) -> "Old":
        """Of (categories, texts) of all products, part by part."""
        counts, texts = Counter[str](), defaultdict[str, list[str]](list)
        for categories, said in parts:
            coded = categories.dictionary_encode()
            names, number = coded.dictionary.to_pylist(), coded.indices.to_numpy()
            order = np.argsort(number, kind="stable")
            found = np.bincount(number, minlength=len(names))
            for name, size, end in zip(names, found.tolist(), np.cumsum(found).tolist(), strict=True):
                counts[name] += size
                rows = order[end - size : end][: max(0, VOTERS - len(texts[name]))]
                texts[name] += [text for text in said.take(pa.array(rows)).to_pylist() if text]
        return cls(counts, texts)


@dataclass(frozen=True)
class Targets:
    """The categories of the new tree, and [targets, width] what each means."""

    paths: tuple[str, ...]
    vectors: FloatArray

    @classmethod
    def of(cls, tree: Tree, texts: Sequence[str], targets: Sequence[str], meaning: Meaning) -> "Targets":
        """From the names of a tree and from examples with their targets."""
        place = {path: number for number, path in enumerate(tree.paths)}
        vectors = meaning.of([tree.name(path) for path in tree.paths])
        np.add.at(vectors, [place[target] for target in targets], meaning.of(texts))
        return cls(tree.paths, vectors / np.maximum(1e-9, np.linalg.norm(vectors, axis=1, keepdims=True)))

    def votes(self, vectors: FloatArray) -> FloatArray:
        """[N, targets], each row summing to one; zero for what means nothing."""
        found = _softmax(vectors @ self.vectors.T) * (np.abs(vectors).sum(axis=1, keepdims=True) > 0)
        return np.asarray(found, np.float32)

    def each_votes(self, vectors: FloatArray) -> Iterator[FloatArray]:
        """[targets] of each, a few at a time: of all at once there may be more numbers than memory."""
        for start in range(0, len(vectors), VOTES_AT_ONCE):
            yield from self.votes(vectors[start : start + VOTES_AT_ONCE])


def propose(
    old: Old, tree: Tree, targets: Targets, known: Mapping[str, Counter[str]], meaning: Meaning
) -> list[Mapped]:
    """A row for each old category, the one with most products first; `known` are the targets of examples by their old category."""
    place = {path: number for number, path in enumerate(tree.paths)}
    names = _by_name(list(old.counts), tree, targets, meaning)
    every = [text for category in old.counts for text in old.texts.get(category, ())]
    read, start = meaning.of(every), 0
    shares: dict[str, FloatArray] = {}
    said: dict[str, str] = {}
    for row, category in enumerate(old.counts):
        count = len(old.texts.get(category, ()))
        # One category at a time: of all products and all targets there may be more numbers than memory.
        products, start = targets.votes(read[start : start + count]), start + count
        own = np.zeros(len(tree.paths), np.float32)
        for path, times in known.get(category, Counter()).items():
            own[place[path]] += times
        shares[category] = explain(products, NAME * names[row] + EXAMPLE * own)
        said[category] = _evidence(tree.paths, names[row], products.sum(axis=0), count, own)
    chosen = {category: _decide(shares[category], tree.paths) for category in old.counts}
    to = Counter(target for target, _ in chosen.values() if target)
    found = []
    for category, count in sorted(old.counts.items(), key=lambda pair: (-pair[1], pair[0])):
        target, several = chosen[category]
        sure = float(shares[category].max()) if target else float(sum(share for _, share in several))
        examples = tuple(text[:SHOWN_CHARACTERS] for text in old.texts.get(category, [])[:SHOWN])
        found.append(
            Mapped(category, count, kind_of(category, target, to), target, several, sure, said[category], examples)
        )
    return found


def explain(products: FloatArray, known: FloatArray) -> FloatArray:
    """[targets] the shares of a category of which N products may each be so much of a target [N, targets], beside what is known [targets]."""
    products = products[products.sum(axis=1) > 0]
    shares = np.full(products.shape[1], 1 / products.shape[1], np.float32)
    for _ in range(TURNS):
        each = products * shares
        total = (each / np.maximum(1e-30, each.sum(axis=1, keepdims=True))).sum(axis=0) + known
        shares = total / max(1e-30, float(total.sum()))
    return np.asarray(shares, np.float32)


def tell_apart(votes: FloatArray, shares: Sequence[float]) -> FloatArray:
    """[N, several] how sure each product is of each of several targets, for its votes for them and their shares."""
    found = (np.asarray(votes, np.float64) + 1e-12) * np.asarray(shares) + 1e-24
    return np.asarray(found / found.sum(axis=1, keepdims=True), np.float32)


def _softmax(cosine: npt.NDArray[Any]) -> FloatArray:
    raised = np.exp((cosine - cosine.max(axis=1, keepdims=True, initial=-1)) / TEMPERATURE)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def _by_name(categories: Sequence[str], tree: Tree, targets: Targets, meaning: Meaning) -> FloatArray:
    """[old, targets] what names say: equal last steps count beside what they mean, and equal paths more."""
    cosine = meaning.of([path.replace(SEPARATOR, " ") for path in categories]) @ targets.vectors.T
    leaves = defaultdict[str, list[int]](list)
    for number, path in enumerate(tree.paths):
        leaves[_leaf(path)].append(number)
    place = {path: number for number, path in enumerate(tree.paths)}
    for row, category in enumerate(categories):
        cosine[row, leaves.get(_leaf(category), [])] += SAME_NAME
        if category in place:
            cosine[row, place[category]] += 1.0
    return _softmax(cosine)


def _decide(shares: FloatArray, paths: Sequence[str]) -> tuple[str | None, tuple[tuple[str, float], ...]]:
    order = np.argsort(-shares, kind="stable")
    several = [number for number in order if shares[number] >= PART]
    if shares[order[0]] >= WHOLE or len(several) < 2:
        return paths[order[0]], ()
    return None, tuple((paths[number], float(shares[number])) for number in several)


def kind_of(category: str, target: str | None, to: Counter[str]) -> Kind:
    """`to` is how many old categories go to each target."""
    if target is None:
        return "split"
    if target == category:
        return "same"
    if to[target] > 1:
        return "merged"
    return "moved" if _leaf(target) == _leaf(category) else "renamed"


def _leaf(path: str) -> str:
    return path.split(SEPARATOR)[-1].casefold()


def _evidence(paths: Sequence[str], names: FloatArray, products: FloatArray, count: int, own: FloatArray) -> str:
    """What speaks for what, in words."""

    def first(votes: FloatArray) -> str:
        return f"{paths[int(votes.argmax())].split(SEPARATOR)[-1]} ({votes.max() / votes.sum():.0%})"

    said = [f"its name: {first(names)}"]
    if products.sum() > 0:
        said.append(f"{count:,} of its products: {first(products)}")
    if own.any():
        said.append(f"{int(own.sum()):,} examples: {first(own)}")
    return "; ".join(said)
