"""The stage before the categories: masked words of all texts, so that the encoder learns the language of the catalog."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cataloger.config import TrainConfig
from cataloger.data.batching import IntArray, Tokens
from cataloger.data.text import load_tokenizer, mask_token
from cataloger.training.order import Order, Shuffled
from cataloger.training.stages import Machine
from cataloger.training.tuning import default_learning_rate

# Devlin et al. 2019, section 3.1: of these tokens, 80% are masked, 10% replaced, 10% left as they are.
CHOSEN = 0.15


class MaskedWords:
    """Guess hidden tokens of all texts."""

    name = "pretrain"

    def __init__(self, config: TrainConfig, network: Any, texts: Tokens, base: Path, machine: Machine) -> None:
        self.texts, self.machine, self.config = texts, machine, config
        self.epochs, self.rows = config.pretrain_epochs, len(texts)
        self.network = MaskedLanguageModel(network.base_model)
        tokenizer = load_tokenizer(base, config.max_tokens)
        special = [token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]
        self.special = torch.tensor(special, device=machine.device)
        self.mask, self.vocabulary = mask_token(tokenizer) or 0, tokenizer.get_vocab_size()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All of the encoder, whatever --fine-tune says of the categories; its pooler takes no part."""
        rate = self.config.learning_rate or default_learning_rate(self.network, self.config.batch_size)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_("pooler" not in name)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "peak": rate, "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "peak": rate, "weight_decay": 0.0},
        ]

    def entered(self) -> None:
        pass

    def prepare_epoch(self, seeds: Sequence[int]) -> dict[str, float]:
        return {}

    def begin_epoch(self, rng: np.random.Generator) -> tuple[Tokens, Order]:
        return self.texts, Shuffled(len(self.texts), rng)

    def losses(self, model: Any, rows: IntArray) -> torch.Tensor:
        """The mean cross-entropy of each row's chosen words; 0 where none was chosen."""
        batch = self.machine.batch(self.texts, rows)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        chosen = (torch.rand(ids.shape) < CHOSEN).to(ids.device) & mask & ~torch.isin(ids, self.special)
        fate = torch.rand(ids.shape).to(ids.device)
        shown = torch.where(chosen & (fate < 0.8), self.mask, ids)
        others = torch.randint(self.vocabulary, ids.shape).to(ids.device)
        shown = torch.where(chosen & (fate >= 0.9), others, shown)
        with self.machine.arithmetic():
            logits = model(shown, mask, chosen)
        each = F.cross_entropy(logits.float(), ids[chosen], reduction="none")
        row = chosen.nonzero()[:, 0]
        sums = each.new_zeros(len(ids)).index_add(0, row, each)
        return sums / chosen.sum(dim=1).clamp(min=1)

    def step(self, backward: Callable[[], torch.Tensor], update: Callable[[], None]) -> torch.Tensor:
        loss = backward()
        update()
        return loss

    def end_epoch(self) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {"model": self.network.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])


class MaskedLanguageModel(nn.Module):
    """An encoder with the head of BERT's masked language model: dense, GELU, norm, and the word embeddings once more."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        words = encoder.get_input_embeddings()
        # ALBERT's word embeddings are narrower than what it makes of them.
        self.dense = nn.Linear(encoder.config.hidden_size, words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """[chosen tokens, vocabulary] logits of [rows, tokens] ids."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[chosen]
        hidden = self.norm(F.gelu(self.dense(hidden)))
        return F.linear(hidden, self.encoder.get_input_embeddings().weight, self.bias)
