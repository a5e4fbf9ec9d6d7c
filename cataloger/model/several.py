"""A network with several answers from one reading: classes of the whole text, and classes of each of its words.

transformers copies this file into the bundles of such models, so it may import nothing but torch and transformers. A bundle whose
only answers are tags works elsewhere as `pipeline("token-classification", folder, trust_remote_code=True)`.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

# Of a word that there is not, every class but the first has this logit.
NEVER = -1e4


class SeveralConfig(PreTrainedConfig):
    """`encoder` is the configuration of the encoder, as a dict with its `model_type`; `pooling` is mean or cls. `texts` are how many
    classes each answer about the whole text has, `words` those of each answer about words, whose first one is "no tag"."""

    model_type = "several_answers_classifier"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        pooling: str = "mean",
        texts: tuple[int, ...] = (),
        words: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        self.encoder, self.pooling = encoder or {}, pooling
        self.texts, self.words = list(texts), list(words)
        super().__init__(**kwargs)


class SeveralForTokenClassification(PreTrainedModel):
    """Encoder → dropout → a linear map for each answer: of the pooled tokens, or of the first token of each word."""

    config_class = SeveralConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: SeveralConfig) -> None:
        super().__init__(config)
        inner = AutoConfig.for_model(**config.encoder)
        self.encoder = AutoModel.from_config(inner)
        self.encoder.pooler = None
        self.dropout = nn.Dropout(getattr(inner, "hidden_dropout_prob", 0.1))
        self.texts = nn.ModuleList(nn.Linear(inner.hidden_size, size) for size in config.texts)
        self.words = nn.ModuleList(nn.Linear(inner.hidden_size, size) for size in config.words)
        # The logarithm of how uncertain each answer is; training weighs its loss by it, and nothing else has use for it.
        self.uncertainty = nn.Parameter(torch.zeros(len(config.texts) + len(config.words)))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        word_index: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """`input_ids` and `attention_mask` are [windows, tokens]. `word_index` [rows, 1 + words] has the place of each row's first
        token in both, flattened, and then of the first token of each of its words, -1 for none.

        The logits are [rows, classes of all texts' answers + words * classes of all words' answers]. Without `word_index` each window
        is a row; they are those of all texts' answers, or, where there is none, of the first answer about words for each token,
        [rows, tokens, classes].
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if word_index is None and not len(self.texts):
            return TokenClassifierOutput(logits=self.words[0](self.dropout(hidden)))
        answers = []
        if len(self.texts):
            pooled = self._pooled(hidden, attention_mask)
            if word_index is not None:
                pooled = pooled[torch.div(word_index[:, 0], input_ids.shape[1], rounding_mode="floor")]
            pooled = self.dropout(pooled)
            answers += [answer(pooled) for answer in self.texts]
        if len(self.words) and word_index is not None:
            index = word_index[:, 1:]
            words = self.dropout(hidden.flatten(0, 1)[index.clamp_min(0)])
            nowhere = (index < 0).unsqueeze(-1)
            for answer in self.words:
                logits = answer(words)
                outside = torch.full_like(logits[:1, :1], NEVER)
                outside[..., 0] = 0
                answers.append(torch.where(nowhere, outside, logits).flatten(1))
        return TokenClassifierOutput(logits=torch.cat(answers, dim=1))

    def _pooled(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.config.pooling == "cls":
            return hidden[:, 0]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
