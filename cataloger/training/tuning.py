"""Which weights are trained, how fast, and how steadily."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cataloger.config import TrainConfig

# The head and low-rank adapters are new, the encoder is not.
NEW_RATE = 10.0
LORA_RANK = 16
# The parameters of the network that sees, and its rate, as a multiple of that of the encoder (docs/quality.md).
SEEING, SEEING_RATE = "picture.", 1.0
# The layers of EfficientNet-Lite0 that see a grid of 28 pixels or more stay as they are: edges and colours are the same in every
# shop. A step takes half the time.
EARLY = re.compile(r"picture\.(conv_stem|bn0|blocks\.[0-4])\.")
# `encoder.layer.0.` of BERT, `layers.0.` of ModernBERT.
LAYER = re.compile(r"\blayers?\.(\d+)\.")
# Whatever stands in a list: shared by several layers in ALBERT's `albert_layer_groups.0.albert_layers.0.`.
LISTED = re.compile(r"\.\d+\.")


def layers_of(model: torch.nn.Module) -> dict[str, int | None]:
    """The encoder layer of each parameter: -1 for the embeddings, the last one for what follows the layers, None for the head."""
    reading = model.base_model
    encoder = {id(parameter) for parameter in reading.parameters()} if reading is not None else set()  # type: ignore[union-attr]
    layers: dict[str, int | None] = {}
    reached = -1
    for name, parameter in model.named_parameters():
        if id(parameter) in encoder:
            found = LAYER.search(name)
            reached = int(found.group(1)) if found else reached
            layers[name] = reached
        else:
            layers[name] = None
    return layers


def layers_of_their_own(encoder: Any) -> int:
    """How many layers a base model has, 0 where their weights cannot be told apart: they share them, as ALBERT's do."""
    layers = int(encoder.config.num_hidden_layers)
    return layers if set(layers_of(encoder).values()) == {-1, *range(layers)} else 0


def adaptable(model: Any) -> list[str]:
    """The linear maps of the encoder's layers, by name: those that low-rank adapters can be put on."""
    encoder = {id(module) for module in model.base_model.modules()}
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) in encoder
    ]
    return sorted(name for name in linear if LISTED.search(name))


def parameter_groups(model: torch.nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups, by layer and by kind: matrices have weight decay, vectors have none. `peak` is a group's highest rate.

    Freezes what is not trained; `--fine-tune lora` puts low-rank adapters into all layers and trains these and the head.
    With a layer decay d, a layer n below the head learns at d^n of the rate.
    """
    lora = config.fine_tune == "lora"
    if lora and not any("lora_" in name for name, _ in model.named_parameters()):
        _add_adapters(model)
    layers, rate = layers_of(model), config.learning_rate or default_learning_rate(model, config.batch_size)
    last = max((layer for layer in layers.values() if layer is not None), default=-1)
    lowest = {"all": -1, "head": last + 1, "lora": last + 1}.get(config.fine_tune)
    lowest = last + 1 - int(config.fine_tune) if lowest is None else lowest
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer, matrix = layers[name], parameter.ndim > 1
        if name.startswith(SEEING):
            # What stands for a hidden part of a picture has no part in the answer: DDP would wait for its gradient.
            unused = EARLY.match(name) or name.endswith("mask_token")
            parameter.requires_grad_(config.fine_tune != "head" and not unused)
            factor = SEEING_RATE
        else:
            parameter.requires_grad_(layer is None or layer >= lowest or "lora_" in name)
            factor = NEW_RATE if lora or layer is None else config.layer_decay ** (last - layer)
        if parameter.requires_grad:
            groups.setdefault((factor, matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": rate * factor,
            "lr": 0.0,
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (factor, matrix), parameters in groups.items()
    ]


def default_learning_rate(model: torch.nn.Module, batch_size: int | None) -> float:
    """3e-4 for MiniLM's width of 384 and batches of 32 rows, falling with the square of the width: 7.5e-5 for BERT-base.

    It rises with the square root of the batch (Malladi et al. 2022, for Adam).
    """
    encoders = (getattr(model, name, None) for name in ("encoder", "base_model"))
    widths = (getattr(encoder.config, "hidden_size", None) for encoder in encoders if encoder is not None)
    width = next(filter(None, widths), 384)
    return 3e-4 * (384 / width) ** 2 * math.sqrt((batch_size or 32) / 32)


def _add_adapters(model: torch.nn.Module) -> None:
    """Low-rank adapters (Hu et al. 2022) on every linear map of every encoder layer, in place; layers that share a map share one."""
    from peft import LoraConfig, inject_adapter_in_model

    adapters = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=adaptable(model))
    inject_adapter_in_model(adapters, model)


def merged(model: Any) -> Any:
    """The model with its adapters, where it has any, worked into its weights; a copy then."""
    names = [name for name, module in model.named_modules() if hasattr(module, "get_base_layer")]
    if not names:
        return model
    model = copy.deepcopy(model)
    for name in names:
        adapted = model.get_submodule(name)
        adapted.merge()
        model.set_submodule(name, adapted.get_base_layer())
    return model


def averaged(model: torch.nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it as an exponential moving average of its weights, one step at a time."""
    # Buffers are copied: an average of position numbers, which are whole, would lose some.
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)  # type: ignore[no-untyped-call]


@contextmanager
def adversarial(embeddings: torch.nn.Parameter, size: float) -> Iterator[None]:
    """Move the word embeddings by `size` along their gradient, where the loss rises fastest, for as long as the block runs.

    The fast gradient method of Miyato et al. 2017, equation 8, on the embedding matrix as a whole.
    """
    gradient = embeddings.grad
    norm = 0.0 if gradient is None else float(gradient.norm())
    if gradient is None or not norm:
        yield
        return
    before = embeddings.detach().clone()
    with torch.no_grad():
        embeddings.add_(gradient, alpha=size / norm)
    try:
        yield
    finally:
        with torch.no_grad():
            embeddings.copy_(before)
