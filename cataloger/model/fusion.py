"""A classifier of products by their picture, and by their text where it reads one.

transformers copies this file into every bundle that sees, so it may import nothing but torch and transformers:
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` then works where cataloger is not installed.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

EFFICIENTNET_LITE = "efficientnet_lite"
# Of EfficientNet-Lite (Tan & Le 2019, without squeeze-and-excitation and with ReLU6): kernel, stride, expansion, channels, repeats.
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4))
LAST = (3, 1, 6, 320, 1)
STEM, FEATURES = 32, 1_280


class FusionConfig(PreTrainedConfig):
    """`encoder` and `picture` are the configurations of the two networks as dicts with their `model_type`, `encoder` empty where no text
    is read; `pooling` is mean or cls; `image_mean` and `image_std` are of values from 0 to 1; `width` is that of the joined vector."""

    model_type = "fusion_classifier"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        picture: dict[str, Any] | None = None,
        pooling: str = "mean",
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        width: int = 512,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.picture, self.pooling = encoder or {}, picture or {}, pooling
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.width, self.dropout = width, dropout
        super().__init__(**kwargs)


class FusionForSequenceClassification(PreTrainedModel):
    """Both vectors normalised, side by side → linear → GELU → dropout → linear. A row without a picture has a learned vector instead."""

    config_class = FusionConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.picture = picture_network(config.picture)
        seen = width_of(self.picture)
        self.encoder: Any = None
        self.missing = nn.Parameter(torch.zeros(seen))
        self.picture_norm, joined = nn.LayerNorm(seen), seen
        if config.encoder:
            inner = AutoConfig.for_model(**config.encoder)
            self.encoder = AutoModel.from_config(inner)
            self.encoder.pooler = None
            self.text_norm = nn.LayerNorm(inner.hidden_size)
            self.join, joined = nn.Linear(inner.hidden_size + seen, config.width), config.width
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(joined, config.num_labels)
        self.post_init()

    def train(self, mode: bool = True) -> "FusionForSequenceClassification":
        """The statistics of a picture network's batch norms stay those it was trained with: a batch of few pictures, shared out to
        several workers, has none of its own."""
        super().train(mode)
        for module in self.picture.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings() if self.encoder else None  # type: ignore[return-value]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits [rows, labels].

        `input_ids` and `attention_mask` are [rows, tokens]; `pixel_values` are [pictures, 3, height, width] from 0 to 255, red first;
        `image_index` [rows] says which picture is a row's, from 1 on, 0 for none. Without it row n has picture n.
        """
        if pixel_values is None:
            assert input_ids is not None, "a text, a picture or both"
            seen = self.missing.unsqueeze(0).expand(len(input_ids), -1)
        else:
            seen = self._see(pixel_values, image_index)
        seen = self.picture_norm(seen)
        if self.encoder is not None:
            assert input_ids is not None, "the texts, which may be empty"
            text = self.text_norm(self._read(input_ids, attention_mask))
            seen = functional.gelu(self.join(torch.cat([text, seen], dim=1)))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(seen)))

    def _see(self, pixels: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        dtype = self.missing.dtype
        # Of the configuration, in float32: as buffers they would have the precision that the bundle is loaded with.
        mean, std = (
            torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
            for values in (self.config.image_mean, self.config.image_std)
        )
        values = (pixels.to(torch.float32) / 255 - mean) / std
        # Channels last in memory: on CPUs convolutions are half as fast again.
        output = self.picture(values.to(dtype).contiguous(memory_format=torch.channels_last))
        seen = pooled(output).to(dtype)
        if index is None:
            return seen
        return torch.cat([self.missing.unsqueeze(0), seen])[index]

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.config.pooling == "cls":
            return hidden[:, 0]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def picture_network(config: dict[str, Any]) -> Any:
    """Of a configuration, without weights."""
    if config["model_type"] == EFFICIENTNET_LITE:
        return EfficientNetLite()
    return without_pooler(AutoModel.from_config(AutoConfig.for_model(**config)))


def without_pooler(network: Any) -> Any:
    """A transformer's pooler has weights, and no part in the answer: with several workers every weight must have one."""
    pooler = getattr(network, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        network.pooler = None
    return network


def pooled(output: Any) -> torch.Tensor:
    """One vector per picture: what the network itself makes of a feature map, or the first token of a transformer."""
    if isinstance(output, torch.Tensor):
        return output
    if output.pooler_output is not None:
        return output.pooler_output.flatten(1)  # type: ignore[no-any-return]
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[:, 0]


def width_of(network: Any) -> int:
    """Of the vectors of `pooled`."""
    if isinstance(network, EfficientNetLite):
        return FEATURES
    config = network.config
    if hasattr(network, "timm_model"):
        return int(getattr(network.timm_model, "head_hidden_size", None) or network.timm_model.num_features)
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else config.hidden_size)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its classifier: float [pictures, 3, height, width] → [pictures, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, 2), _norm(STEM)
        blocks, channels = [], STEM
        for kernel, stride, expansion, width, repeats in (*STAGES, LAST):
            for number in range(repeats):
                blocks.append(_Block(channels, width, kernel, 1 if number else stride, expansion))
                channels = width
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = SameConv(channels, FEATURES, 1, 1), _norm(FEATURES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu6(self.bn0(self.conv_stem(pixels)))
        for block in self.blocks:
            hidden = block(hidden)
        return functional.relu6(self.bn1(self.conv_head(hidden))).mean(dim=(2, 3))


class _Block(nn.Module):
    """Widen, look around in every channel, narrow (Sandler et al. 2018)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skips, self.expands = stride == 1 and channels == width, expansion > 1
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(channels, inner, 1, 1), _norm(inner)
        self.depthwise_conv, self.bn1 = SameConv(inner, inner, kernel, stride, inner), _norm(inner)
        self.project_conv, self.bn2 = SameConv(inner, width, 1, 1), _norm(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        before = hidden
        if self.expands:
            hidden = functional.relu6(self.bn0(self.expand_conv(hidden)))
        hidden = functional.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return hidden + before if self.skips else hidden


class SameConv(nn.Conv2d):
    """Padded as TensorFlow's SAME, where these weights were trained: of an odd padding, more below and on the right."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, groups=groups, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        kernel, stride = int(self.kernel_size[0]), int(self.stride[0])
        down, across = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size in (hidden.shape[2], hidden.shape[3])
        )
        if down or across:
            hidden = functional.pad(hidden, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(hidden)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
