"""A bundle whose network knows fewer tokens: those that its catalog's texts are made of, and what any text can be made of.

All else is as it was: a text whose tokens are all kept is cut into the same ones, and their vectors are the same to the last bit.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel

from cataloger.bundle import network_shape, read_spec
from cataloger.errors import ConfigError
from cataloger.model.network import copy_tokenizer, load_network, quiet_transformers, save_bundle
from cataloger.model.student import HEAD

TOKENIZER, ABOUT_TOKENIZER = "tokenizer.json", "tokenizer_config.json"
# Of the old vocabulary, what is kept at least: pieces that are frequent in the language at large make up the number, as the catalog of
# tomorrow has words that this one has not.
LEAST_KEPT = 1 / 6
# What the tokenizers of WordPiece and of SentencePiece put before a piece, which is no character of a text.
KINDS = ("WordPiece", "Unigram")
POOLING = Path("1_Pooling", "config.json")
CONTINUES, BEGINS = "##", "\u2581"


@dataclass(frozen=True)
class Cut:
    """How many tokens a vocabulary had, and has."""

    before: int
    after: int


def cut_vocabulary(folder: Path, target: Path, used: npt.NDArray[np.bool_]) -> Cut:
    """Write the bundle in `folder` to `target` with the tokens that are `used` [vocabulary], special ones, single characters of the
    same scripts, and so many other pieces of these that a sixth is there. Their order stays, and so does the number of the padding token.

    Raises ConfigError where the tokenizer is of a kind that cannot be cut.
    """
    tokenizer, kept = _chosen(folder, used)
    network = load_network(folder, torch.float32)
    _cut_network(network, kept)
    save_bundle(target, network, folder, read_spec(folder))
    _write_tokenizer(target, tokenizer, kept)
    return Cut(len(kept), int(kept.sum()))


def cut_base_model(folder: Path, target: Path, used: npt.NDArray[np.bool_]) -> Cut:
    """The same of a base model; what lies beside it comes along."""
    tokenizer, kept = _chosen(folder, used)
    with quiet_transformers():
        network = AutoModel.from_pretrained(folder, dtype=torch.float32)
        _cut_network(network, kept)
        network.save_pretrained(target)
    copy_tokenizer(folder, target)
    _write_tokenizer(target, tokenizer, kept)
    for name in (POOLING, Path(HEAD)):
        if (folder / name).exists():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(folder / name, target / name)
    return Cut(len(kept), int(kept.sum()))


def can_be_cut(folder: Path) -> bool:
    """Whether its tokenizer is of a kind that can."""
    return _kind(folder) in KINDS


def check_can_be_cut(folder: Path) -> None:
    """Raises ConfigError."""
    if not can_be_cut(folder):
        raise ConfigError(
            f"--prune-vocabulary: the model's tokenizer is of the kind {_kind(folder)}, which is not cut; leave the flag out"
        )


def _kind(folder: Path) -> str | None:
    file = folder / TOKENIZER
    return json.loads(file.read_text())["model"].get("type") if file.exists() else None


def _chosen(folder: Path, used: npt.NDArray[np.bool_]) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
    """(the tokenizer, which of its tokens stay)"""
    check_can_be_cut(folder)
    tokenizer = json.loads((folder / TOKENIZER).read_text())
    return tokenizer, _kept(_pieces(tokenizer), used, _specials(tokenizer), network_shape(folder)[0])


def _write_tokenizer(target: Path, tokenizer: dict[str, Any], kept: npt.NDArray[np.bool_]) -> None:
    renumbered = _renumbered(tokenizer, _numbers(kept))
    (target / TOKENIZER).write_text(json.dumps(renumbered, ensure_ascii=False))
    if (target / ABOUT_TOKENIZER).exists():
        about = json.loads((target / ABOUT_TOKENIZER).read_text())
        about.pop("added_tokens_decoder", None)  # by their old numbers; tokenizer.json has the new ones
        (target / ABOUT_TOKENIZER).write_text(json.dumps(about, ensure_ascii=False, indent=1))
    (target / "vocab.txt").unlink(missing_ok=True)


def _numbers(kept: npt.NDArray[np.bool_]) -> dict[int, int]:
    """The new number of each old one that stays."""
    return {int(old): new for new, old in enumerate(np.flatnonzero(kept))}


def _pieces(tokenizer: dict[str, Any]) -> list[str]:
    """Of each token, what it is written as."""
    kind, vocabulary = tokenizer["model"].get("type"), tokenizer["model"].get("vocab")
    numbered = (
        {number: piece for piece, number in vocabulary.items()}
        if kind == "WordPiece"
        else dict(enumerate(piece for piece, _ in vocabulary))
    )
    # Some stand behind all pieces.
    numbered |= {int(added["id"]): added["content"] for added in tokenizer.get("added_tokens") or ()}
    return [numbered.get(number, "") for number in range(1 + max(numbered))]


def _specials(tokenizer: dict[str, Any]) -> set[int]:
    return {int(added["id"]) for added in tokenizer.get("added_tokens") or ()}


def _kept(pieces: list[str], used: npt.NDArray[np.bool_], specials: set[int], padding: int) -> npt.NDArray[np.bool_]:
    kept = np.zeros(len(pieces), bool)
    kept[: min(len(used), len(pieces))] = used[: len(pieces)]
    # What a text of the catalog's scripts may be made of: single characters of all scripts would be most of what is left of a
    # vocabulary of a hundred languages.
    blocks = [_blocks(piece) for piece in pieces]
    scripts = {0}.union(*(blocks[number] for number in np.flatnonzero(kept)))
    alike = np.array([found <= scripts for found in blocks])
    kept |= alike & np.array([len(_written(piece)) <= 1 for piece in pieces])
    kept[[number for number in specials if number < len(kept)]] = True
    kept[: padding + 1] = True  # where it begins, some networks count their places from
    # A vocabulary is sorted by how frequent its pieces are, in WordPiece and Unigram alike.
    spare = np.flatnonzero(alike & ~kept)
    kept[spare[: max(0, int(len(pieces) * LEAST_KEPT) - int(kept.sum()))]] = True
    return kept


def _written(piece: str) -> str:
    """The characters of a text that a piece is."""
    return piece.removeprefix(CONTINUES).replace(BEGINS, "")


def _blocks(piece: str) -> set[int]:
    """Of 256 characters each, those that its characters lie in."""
    return {ord(character) >> 8 for character in _written(piece)}


def _cut_network(network: Any, kept: npt.NDArray[np.bool_]) -> None:
    words, numbers = network.get_input_embeddings(), _numbers(kept)
    rows = torch.zeros(words.num_embeddings, dtype=torch.bool)
    rows[: len(kept)] = torch.from_numpy(kept)
    smaller = torch.nn.Embedding(len(numbers), words.embedding_dim, padding_idx=words.padding_idx)
    smaller.weight.data = words.weight.data[rows].clone()
    network.set_input_embeddings(smaller)
    for config in _configs(network):
        for name in config:
            if name == "vocab_size":
                config[name] = len(numbers)
            elif name.endswith("_token_id") and config[name] in numbers:
                config[name] = numbers[config[name]]


def _configs(network: Any) -> Iterator[Any]:
    """Those that say how many tokens there are: the network's, and that of the encoder that it wraps."""
    yield vars(network.config)
    inner = getattr(network.config, "encoder", None)
    if isinstance(inner, dict):
        yield inner


def _renumbered(tokenizer: dict[str, Any], numbers: dict[int, int]) -> dict[str, Any]:
    """The tokenizer with the pieces that have a new number, by it."""
    model = dict(tokenizer["model"])
    if model["type"] == "WordPiece":
        model["vocab"] = {piece: numbers[old] for piece, old in model["vocab"].items() if old in numbers}
    else:
        model["vocab"] = [pair for old, pair in enumerate(model["vocab"]) if old in numbers]
        unknown = model.get("unk_id")
        model["unk_id"] = None if unknown is None else numbers[unknown]
    found = {**tokenizer, "model": model}
    found["added_tokens"] = [
        {**added, "id": numbers[added["id"]]} for added in tokenizer.get("added_tokens") or () if added["id"] in numbers
    ]
    if tokenizer.get("padding"):
        found["padding"] = {**tokenizer["padding"], "pad_id": numbers[tokenizer["padding"]["pad_id"]]}
    if tokenizer.get("post_processor"):
        found["post_processor"] = _processor(tokenizer["post_processor"], numbers)
    return found


def _processor(processor: dict[str, Any], numbers: dict[int, int]) -> dict[str, Any]:
    """What puts special tokens around a text, by their new numbers."""
    found = dict(processor)
    if processor.get("type") == "Sequence":
        found["processors"] = [_processor(one, numbers) for one in processor["processors"]]
    for name in ("sep", "cls"):  # of BERT and RoBERTa: (token, number)
        if isinstance(processor.get(name), list):
            found[name] = [processor[name][0], numbers[processor[name][1]]]
    special = processor.get("special_tokens")
    if isinstance(special, dict):  # of a template
        found["special_tokens"] = {name: {**one, "ids": _all_of(one["ids"], numbers)} for name, one in special.items()}
    return found


def _all_of(old: Iterable[int], numbers: dict[int, int]) -> list[int]:
    return [numbers[number] for number in old]
