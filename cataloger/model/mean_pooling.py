"""A sequence classifier that averages its encoder's token vectors (Reimers & Gurevych 2019, section 3).

transformers copies this file into every mean-pooled bundle, so it may import nothing but torch and transformers:
`pipeline("text-classification", folder, trust_remote_code=True)` then works where cataloger is not installed.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolingConfig(PreTrainedConfig):
    """`encoder` is the configuration of the encoder, as a dict with its `model_type`."""

    # A name of its own: loaded as a stock BERT, the folder would silently answer with an untrained pooler.
    model_type = "mean_pooling_classifier"

    def __init__(self, encoder: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.encoder = encoder or {}
        super().__init__(**kwargs)


class MeanPoolingForSequenceClassification(PreTrainedModel):
    """Encoder → mean over the unmasked tokens → dropout → linear."""

    config_class = MeanPoolingConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: MeanPoolingConfig) -> None:
        super().__init__(config)
        inner = AutoConfig.for_model(**config.encoder)
        self.encoder = AutoModel.from_config(inner)
        self.encoder.pooler = None
        self.dropout = nn.Dropout(getattr(inner, "hidden_dropout_prob", 0.1))
        self.classifier = nn.Linear(inner.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """`input_ids` and `attention_mask` are [rows, tokens]; the logits are [rows, labels]."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))
