"""Dropout for training on CPUs, where PyTorch's own takes a third of the time: it draws number by number, on one thread."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "cataloger_cpu_training"


def set_dropout(model: Any, rate: float | None, device: str) -> None:
    """Dropout in the encoder and before the head alike, by default at the base model's rates; in the fast way on a CPU."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    for name in names:
        dropout = model.get_submodule(name)
        dropout.p = dropout.p if rate is None else rate
        if device == "cpu":
            model.set_submodule(name, FastDropout(dropout.p))
    encoder = model.base_model
    if device == "cpu" and getattr(encoder, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, eager_mask)
        encoder.set_attn_implementation(NAME)


class FastDropout(nn.Module):
    """`nn.Dropout` with a rate of whole 256ths."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * _mask(values, self.p) if self.training and self.p else values


def _mask(values: torch.Tensor, rate: float) -> torch.Tensor:
    """What to multiply `values` by: 0 with this chance, else the number that keeps their mean."""
    count, dropped = values.numel(), min(round(256 * rate), 255)
    # Eight masks per draw, seeded by PyTorch's generator: the same seed gives the same masks.
    seed = int(torch.empty((), dtype=torch.int64).random_())
    drawn = np.random.SFC64(seed).random_raw(-(-count // 8)).view(np.uint8)[:count]
    return (torch.from_numpy(drawn) >= dropped).to(values.dtype).mul_(256 / (256 - dropped)).view(values.shape)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: [rows, heads, tokens, width] in, [rows, tokens, heads, width] out."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)
    if dropout:
        weights = weights * _mask(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
