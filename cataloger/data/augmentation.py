"""Texts changed a little, as token ids: words dropped and swapped, a field left out. Needs no network."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cataloger.data.text import SEPARATOR, load_tokenizer

Ids = npt.NDArray[np.int32]
# Share of words that are dropped, and of neighbours that are swapped (Wei & Zou 2019, section 3, alpha = 0.1).
SHARE = 0.1


class Augmenter:
    """Changes token lists of one tokenizer."""

    def __init__(self, folder: Path) -> None:
        tokenizer = load_tokenizer(folder, 8)
        names = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
        pieces = any(name.startswith("##") for name in names)
        # WordPiece marks what goes on with a word, SentencePiece and byte-level BPE what begins one.
        self.begins = np.array([not name.startswith("##") if pieces else name[:1] in ("▁", "Ġ") for name in names])
        self.special = np.zeros(len(names), bool)
        self.special[[token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special]] = True
        self.separator = tokenizer.encode(SEPARATOR.strip(), add_special_tokens=False).ids

    def __call__(self, tokens: Ids, rng: np.random.Generator) -> Ids:
        """One text, special tokens included. It keeps at least one word; special tokens stay where they are."""
        words = np.flatnonzero(~self.special[tokens])
        if not len(words):
            return tokens
        head, body, tail = tokens[: words[0]], tokens[words[0] : words[-1] + 1], tokens[words[-1] + 1 :]
        starts = np.flatnonzero(self.begins[body])
        kept = self._drop_field(np.split(body, starts[starts > 0]), rng)
        kept = [word for word in kept if rng.random() >= SHARE] or kept[:1]
        for place in np.flatnonzero(rng.random(len(kept) - 1) < SHARE):
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
        return np.concatenate([head, *kept, tail])

    def _drop_field(self, words: list[Ids], rng: np.random.Generator) -> list[Ids]:
        """Leave out one field with the separator beside it, every other time."""
        bars = [place for place, word in enumerate(words) if word.tolist() == self.separator]
        if not bars or rng.random() < 0.5:
            return words
        fields = list(pairwise([-1, *bars, len(words)]))
        start, stop = fields[rng.integers(len(fields))]
        # Where a bar has a field on one side alone, nothing may be left.
        return (words[:start] + words[stop:] if start >= 0 else words[stop + 1 :]) or words
