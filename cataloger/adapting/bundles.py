"""A bundle with further categories out of a bundle: its words and its network, each with new columns."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from cataloger.adapting.grafting import balance, grow
from cataloger.adapting.newcomers import Newcomers
from cataloger.bundle import INT8, INT8_WEIGHTS, WORDS, read_spec, write_spec
from cataloger.data import seen
from cataloger.data.batching import pack
from cataloger.data.inputs import Input, input_of
from cataloger.data.ngrams import ngrams
from cataloger.data.seen import Seen
from cataloger.model.words import WordModel
from cataloger.spec import Spec
from cataloger.taxonomy import Taxonomy

# In place of a threshold at levels that no old category has: nothing is trusted there.
NEVER = 2.0
TOKENS, ROWS = 1 << 13, 512


@dataclass(frozen=True)
class _Rows:
    """What the input has read: of the examples and names of new categories, each with its number, of products of old categories, and of
    those that new ones are balanced by, with the number of their category."""

    own: pa.Array
    label: npt.NDArray[np.int64]
    learnt: pa.Array
    judged: pa.Array
    truth: npt.NDArray[np.int64]


def make_bundle(
    source: Path,
    folder: Path,
    new: Newcomers,
    learnt: pa.Table,
    judged: pa.Table,
    truth: pa.ChunkedArray,
    share: float,
    apart: float,
) -> None:
    """Write a bundle to `folder` whose new categories take this share of the judged rows of old ones, in words and in the network each, or
    less where they stand further `apart` (`grafting.balance`)."""
    spec = read_spec(source)
    given = input_of(spec, source)
    rows = _read(new, learnt, judged, truth, spec, given)
    categories = tuple(sorted({*spec.categories, *new.paths}))
    place = {path: number for number, path in enumerate([*spec.categories, *new.paths])}
    order = np.array([place[path] for path in categories])
    whole = _with(spec, categories)
    folder.mkdir(parents=True)
    if spec.network:
        _extend_network(source, folder, whole, given, rows, order, share, apart)
    for file in source.iterdir():
        # Eight bits are of the old network; whatever else a bundle has stays.
        if file.is_file() and not (folder / file.name).exists() and file.name not in (INT8, INT8_WEIGHTS):
            shutil.copy(file, folder / file.name)
    if spec.words:
        _extend_words(WordModel.load(source), given, rows, order, share, apart).save(folder)
        assert (folder / WORDS).exists()
    write_spec(folder, whole)
    if saw := seen.read(source):
        examples = given.identity(given.read(new.examples).values)
        keys = seen.keys(new.examples, examples, None, spec.format_version)
        seen.write(folder, Seen.union([saw, Seen(np.unique(keys), 1)]))


def _read(
    new: Newcomers, learnt: pa.Table, judged: pa.Table, truth: pa.ChunkedArray, spec: Spec, given: Input
) -> _Rows:
    first, *others = spec.text_columns
    names = pa.table({first: new.names, **dict.fromkeys(others, pa.nulls(len(new.names), pa.string()))})
    examples, called = given.read(new.examples).values, given.read(names).values
    label = np.concatenate([new.label.to_numpy(), np.arange(len(new.names))]).astype(np.int64)
    own = pa.concat_arrays([examples.cast(called.type), called])
    read, known = given.read(judged).values, pa.array(spec.categories)
    seen_by = read.is_valid()
    number = pc.index_in(truth.combine_chunks().cast(pa.string()), known).filter(seen_by)
    return _Rows(
        own.filter(own.is_valid()),
        label[own.is_valid().to_numpy(zero_copy_only=False)],
        given.read(learnt).values.drop_null(),
        read.filter(seen_by),
        number.to_numpy(zero_copy_only=False).astype(np.int64),
    )


def _with(spec: Spec, categories: tuple[str, ...]) -> Spec:
    """The spec with these categories, and thresholds for as many levels as their tree has."""
    levels = Taxonomy(categories).depth

    def longer(values: tuple[float, ...]) -> tuple[float, ...]:
        return (*values, *(NEVER for _ in range(levels - len(values)))) if values else ()

    words = replace(spec.words, thresholds=longer(spec.words.thresholds)) if spec.words else None
    return replace(spec, categories=categories, thresholds=longer(spec.thresholds), words=words)


def _extend_words(
    model: WordModel, given: Input, rows: _Rows, order: npt.NDArray[np.int64], share: float, apart: float
) -> WordModel:
    def features(values: pa.Array) -> sparse.csr_matrix:
        return model.vocabulary.weigh(ngrams(given.texts(values)))

    judged = features(rows.judged)
    old = np.asarray((judged @ model.weights).toarray(), np.float32) + model.bias
    graft = grow(features(rows.own), rows.label, len(order) - len(model.bias), features(rows.learnt))
    graft = balance(graft, judged, old, old.argmax(axis=1) == rows.truth, share, apart)
    weights = sparse.hstack([model.weights, sparse.csr_matrix(graft.weights)], "csc")[:, order].tocsr()
    return WordModel(model.vocabulary, weights, np.concatenate([model.bias, graft.bias])[order])


def _extend_network(
    source: Path,
    folder: Path,
    spec: Spec,
    given: Input,
    rows: _Rows,
    order: npt.NDArray[np.int64],
    share: float,
    apart: float,
) -> None:
    import torch
    from torch import nn

    from cataloger.model.network import load_network, save_bundle

    network = load_network(source, torch.float32).eval()
    name, layer = next(
        (name, one)
        for name, one in reversed(list(network.named_modules()))
        if isinstance(one, nn.Linear) and one.out_features == network.config.num_labels
    )

    def features(values: pa.Array) -> npt.NDArray[np.float32]:
        """[N, width] what the last layer is given of each text."""
        encoded, caught = given.encode(values), list[torch.Tensor]()
        found = np.empty((len(values), layer.in_features), np.float32)
        hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        with torch.inference_mode():
            for batch in pack(encoded.costs, TOKENS, ROWS):
                network(**{key: torch.from_numpy(value) for key, value in encoded.batch(batch).items()})
                found[batch] = caught.pop().reshape(len(batch), -1).numpy()
        hook.remove()
        return found

    learnt, judged, own = features(rows.learnt), features(rows.judged), features(rows.own)
    weights, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
    length = np.linalg.norm(learnt, axis=1).mean()
    old = judged @ weights.T + bias
    graft = grow(own / length, rows.label, len(order) - len(bias), learnt / length)
    # As far from each other as the scores of the other columns are.
    spread = (learnt @ weights.T + bias).std(axis=0).mean() / max(
        1e-9, graft.scores(learnt / length).std(axis=0).mean()
    )
    graft = balance(graft.scaled(spread), judged / length, old, old.argmax(axis=1) == rows.truth, share, apart)
    new = nn.Linear(layer.in_features, len(order))
    with torch.no_grad():
        new.weight.copy_(torch.from_numpy(np.concatenate([weights, graft.weights.T / length])[order]))
        new.bias.copy_(torch.from_numpy(np.concatenate([bias, graft.bias])[order]))
    parent: Any = network.get_submodule(name.rpartition(".")[0]) if "." in name else network
    setattr(parent, name.rpartition(".")[2], new)
    network.config.id2label = dict(enumerate(spec.categories))
    network.config.label2id = {path: number for number, path in enumerate(spec.categories)}
    network.num_labels = len(spec.categories)
    save_bundle(folder, network, source, spec)
