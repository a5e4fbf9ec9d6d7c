"""A base model out of trained ones, to begin a training with: some layers of one, or the mean of several."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cataloger.bundle import read_spec
from cataloger.errors import ConfigError
from cataloger.model.network import copy_tokenizer, load_network, quiet_transformers

# What the trained network has behind its encoder, beside the base model that is made of the rest.
HEAD = "classifier.safetensors"


def write_student(folder: Path, target: Path, layers: int | None) -> None:
    """A base model in `target`: so many layers of the bundle in `folder`, or all, evenly spread from the first to the last, its embeddings,
    its tokenizer, and its head in a file beside them.

    Raises ConfigError where there are not more than that, or where they cannot be told apart.
    """
    network = load_network(folder, torch.float32)
    if layers is not None:
        _take_layers(network.base_model, layers)
    _write(network, folder, target)


def _take_layers(encoder: Any, layers: int) -> None:
    stack = _stack(encoder)
    if stack is None:
        raise ConfigError("--layers: the model's layers share their weights or cannot be told apart; leave it out")
    if not 1 <= layers < len(stack):
        raise ConfigError(f"--layers {layers}: the model has {len(stack)}; name fewer")
    count = len(stack)
    places = np.linspace(0, count - 1, layers).round().astype(int).tolist() if layers > 1 else [count - 1]
    kept = [stack[place] for place in places]
    del stack[:]
    stack.extend(kept)
    changed: dict[str, Any] = {"num_hidden_layers": layers}
    # Some configurations say of each layer what it is.
    for name, value in encoder.config.to_dict().items():
        if isinstance(value, list) and len(value) == count and name.startswith("layer"):
            changed[name] = [value[place] for place in places]
    vars(encoder.config).update(changed)


def write_average(folders: Sequence[Path], target: Path) -> None:
    """A base model in `target`: the mean of the weights of bundles that were trained from the same one (Wortsman et al. 2022), with the
    tokenizer of the first, and the mean of their heads. Raises ConfigError where they have other shapes or tokens.
    """
    first, *others = folders
    network = load_network(first, torch.float32)
    total = network.state_dict()
    for folder in others:
        theirs = load_network(folder, torch.float32).state_dict()
        same = (folder / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
        shapes = [{name: tensor.shape for name, tensor in one.items()} for one in (total, theirs)]
        if not same or shapes[0] != shapes[1]:
            raise ConfigError(
                "--average-models: not all of these models were trained from the same base model; name those that were"
            )
        total = {
            name: tensor + theirs[name] if tensor.is_floating_point() else tensor for name, tensor in total.items()
        }
    network.load_state_dict(
        {name: tensor / len(folders) if tensor.is_floating_point() else tensor for name, tensor in total.items()}
    )
    _write(network, first, target)


def _write(network: Any, folder: Path, target: Path) -> None:
    """The network of the bundle in `folder`, changed, as a base model with its head."""
    with quiet_transformers():
        network.base_model.save_pretrained(target)
    copy_tokenizer(folder, target)
    spec = read_spec(folder)
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": spec.pooling == "mean"}))
    about = {"categories": json.dumps(spec.classes)}
    save_file({name: tensor.contiguous() for name, tensor in _head(network).items()}, target / HEAD, about)


def with_head(network: Any, base: Path) -> list[int]:
    """Give a network that is made of such a base model what the head that lies beside it knows of the categories that both have: the
    numbers of these."""
    if not (base / HEAD).exists():
        return []
    with safe_open(base / HEAD, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        about = file.metadata() or {}
    own = _head(network)
    theirs, ours = json.loads(about.get("categories", "[]")), list(network.config.id2label.values())
    place = {path: number for number, path in enumerate(theirs)}
    both = [(number, place[path]) for number, path in enumerate(ours) if path in place]
    # Earlier versions did not say which categories a head is of: it was that of the same ones.
    same = theirs in ([], ours)
    for name, tensor in own.items():
        found = kept.get(name)
        if found is None:
            continue
        if not same and (len(found), len(tensor)) == (len(theirs), len(ours)) and found.shape[1:] == tensor.shape[1:]:
            for number, other in both:
                tensor[number] = found[other]
        elif found.shape == tensor.shape:
            tensor.copy_(found)
    network.load_state_dict(own, strict=False)
    return list(range(len(ours))) if same else [number for number, _ in both]


def _head(network: Any) -> dict[str, torch.Tensor]:
    """All that is not of its base model."""
    before = f"{network.base_model_prefix}."
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(before)}


def _stack(encoder: Any) -> Any:
    """The list of its layers; None where there is none of that length."""
    layers = getattr(encoder.config, "num_hidden_layers", None)
    lists = [
        module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    return lists[0] if len(lists) == 1 else None
