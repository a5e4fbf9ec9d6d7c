"""What texts mean, as a base model has it before any training: the mean of its last layer, of length one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cataloger.data.batching import pack
from cataloger.data.texts import TextInput
from cataloger.model.pretrained import checked_base_model

FloatArray = npt.NDArray[np.float32]
MOST_TOKENS = 64
TOKENS, ROWS = 1 << 13, 512


class Meaning:
    """A base model that was trained to set sentences side by side, such as minilm or e5."""

    def __init__(self, base_model: str) -> None:
        import torch
        from transformers import AutoModel

        from cataloger.model.network import quiet_transformers

        folder = checked_base_model(base_model)
        self.input = TextInput(folder, (), MOST_TOKENS)
        with quiet_transformers():
            self.network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def of(self, texts: Sequence[str]) -> FloatArray:
        """[N, width]; zero for an empty text."""
        import pyarrow as pa
        import torch

        encoded = self.input.encode(pa.array(texts, pa.large_string()))
        found = np.zeros((len(texts), self.network.config.hidden_size), np.float32)
        with torch.inference_mode():
            for rows in pack(encoded.costs, TOKENS, ROWS):
                batch = {key: torch.from_numpy(value) for key, value in encoded.batch(rows).items()}
                hidden = self.network(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
                found[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        found[[not text.strip() for text in texts]] = 0
        return found
