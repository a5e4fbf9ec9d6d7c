"""A base model out of trained ones, to begin a training with: some layers of one, or the mean of several."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cataloger.bundle import read_spec
from cataloger.errors import ConfigError
from cataloger.model.network import copy_tokenizer, load_network, quiet_transformers

# The last linear map of the trained network, beside the base model that is made of the rest.
HEAD = "classifier.safetensors"


def write_student(folder: Path, target: Path, layers: int, all_of_them: bool = False) -> None:
    """A base model in `target`: so many layers of the bundle in `folder`, evenly spread from the first to the last, its embeddings, its
    tokenizer, and its head in a file beside them.

    Raises ConfigError where there are not more than that, unless it may have `all_of_them`, or where they cannot be told apart.
    """
    network = load_network(folder, torch.float32)
    encoder = network.base_model
    stack = _stack(encoder)
    if stack is None:
        raise ConfigError(
            f"--layers: the layers of model {folder} share their weights or cannot be told apart; leave it out"
        )
    if not 1 <= layers < len(stack) + all_of_them:
        raise ConfigError(f"--layers {layers}: model {folder} has {len(stack)}; name fewer")
    chosen = np.unique(np.linspace(0, len(stack) - 1, layers).round().astype(int)) if layers > 1 else [len(stack) - 1]
    kept = [stack[int(number)] for number in chosen]
    del stack[:]
    stack.extend(kept)
    encoder.config.num_hidden_layers = layers
    _write(network, folder, target)


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
                f"--average-models: model {folder} was not trained from the same base model as {first}; leave it out"
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
    head = getattr(network, "classifier", None)
    if isinstance(head, torch.nn.Linear):
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, target / HEAD)


def with_head(network: Any, base: Path) -> None:
    """Give a network that is made of such a base model the head that lies beside it, where it fits."""
    head = getattr(network, "classifier", None)
    if not (base / HEAD).exists() or not isinstance(head, torch.nn.Linear):
        return
    kept = load_file(base / HEAD)
    if kept["weight"].shape == head.weight.shape:
        head.load_state_dict(kept)


def _stack(encoder: Any) -> Any:
    """The list of its layers; None where there is none of that length."""
    layers = getattr(encoder.config, "num_hidden_layers", None)
    lists = [
        module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    return lists[0] if len(lists) == 1 else None
