"""The network of a bundle: make it from a base model, save it, load it, predict with it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cataloger.batching import Tokens, pack
from cataloger.bundle import Spec, read_spec, write_spec
from cataloger.config import Precision
from cataloger.errors import ConfigError, ModelError
from cataloger.mean_pooling import MeanPoolingConfig, MeanPoolingForSequenceClassification
from cataloger.taxonomy import Taxonomy

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Calibrated answers for N rows, K alternatives and D levels; `levels` is NaN below the depth of the category."""

    labels: npt.NDArray[np.int64]  # [N] label ids, the most probable category
    confidence: FloatArray  # [N]
    levels: FloatArray  # [N, D] probability of the category's ancestor at each level
    alternatives: npt.NDArray[np.int64]  # [N, K] label ids of the runners-up, most probable first
    alternative_confidence: FloatArray  # [N, K]


def new_classifier(folder: Path, pooling: str, taxonomy: Taxonomy) -> PreTrainedModel:
    """The base model with a fresh classification head. Raises ModelError when the folder holds no usable encoder."""
    labels: dict[str, Any] = {"id2label": dict(enumerate(taxonomy.categories)), "label2id": taxonomy.label_ids}
    with _quiet_transformers():
        try:
            if pooling == "cls":
                return AutoModelForSequenceClassification.from_pretrained(
                    folder, ignore_mismatched_sizes=True, **labels
                )
            encoder = AutoModel.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"base model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error
        # The inner dtype would override the one a bundle is loaded with.
        inner = {key: value for key, value in encoder.config.to_dict().items() if key not in ("dtype", "_name_or_path")}
        model = MeanPoolingForSequenceClassification(MeanPoolingConfig(encoder=inner, **labels))
        encoder.pooler = None
        model.encoder = encoder
        return model


def save_bundle(folder: Path, model: PreTrainedModel, base: Path, spec: Spec) -> None:
    """Write the bundle; `base` is the folder the tokenizer comes from. No file in it is a pickle."""
    if spec.pooling == "mean":
        MeanPoolingConfig.register_for_auto_class()
        MeanPoolingForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    with _quiet_transformers():
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True)
        tokenizer.model_max_length = spec.max_tokens
        tokenizer.save_pretrained(folder)
    write_spec(folder, spec)


def has_bf16(device: str) -> bool:
    """Whether bf16 is fast on this chip, not merely possible."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_dtype(precision: Precision, device: str) -> torch.dtype:
    """Raises ConfigError for bf16 on a GPU that has none."""
    if precision == "bf16" and device == "cuda" and not has_bf16(device):
        raise ConfigError("--precision bf16: this GPU has no bf16; use fp32 or auto")
    use_bf16 = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.bfloat16 if use_bf16 else torch.float32


def pad_id(model: PreTrainedModel) -> int:
    """The token that fills up a batch; a mean-pooled configuration wraps that of its encoder."""
    encoder = model.config.encoder if isinstance(model.config, MeanPoolingConfig) else model.config.to_dict()
    return int(encoder.get("pad_token_id") or 0)


class Bundle:
    """A loaded bundle, ready to predict on one device."""

    # Padded tokens per forward pass: enough to keep the chip busy, small enough for its caches (CPU) or memory (GPU).
    TOKEN_BUDGET: ClassVar = {"cpu": 8_192, "cuda": 131_072}

    def __init__(self, folder: Path, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.spec = read_spec(folder)
        self.device = device
        self.token_budget = self.TOKEN_BUDGET[device]
        self.halvings = 0
        cls = (
            MeanPoolingForSequenceClassification if self.spec.pooling == "mean" else AutoModelForSequenceClassification
        )
        try:
            with _quiet_transformers():
                model = cls.from_pretrained(folder, dtype=resolve_dtype(precision, device), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error
        self.model = model.to(device).eval()
        self.pad_id = pad_id(model)
        self.vocabulary = model.get_input_embeddings().num_embeddings
        taxonomy = self.spec.taxonomy
        self._groups = [torch.from_numpy(group).to(device) for group in taxonomy.groups]
        self._depths = torch.from_numpy(taxonomy.depths).to(device)

    def predict(self, tokens: Tokens, alternatives: int = 0) -> Predictions:
        """Predictions in the order of `tokens`. A GPU that runs out of memory is given half the tokens at a time from then on.

        Raises IndexError for a token the model does not have.
        """
        try:
            return self._predict(tokens, min(alternatives + 1, len(self.spec.categories)))
        except torch.OutOfMemoryError:
            if self.token_budget <= int(tokens.lengths.max()):
                raise
        self.token_budget, self.halvings = self.token_budget // 2, self.halvings + 1
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return self.predict(tokens, alternatives)

    def logits(self, tokens: Tokens) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
        """(row numbers, float32 logits [rows, categories] on the device) batch by batch, in the packer's order."""
        for rows in pack(tokens.lengths, self.token_budget):
            ids, mask = tokens.padded(rows, self.pad_id)
            if ids.max() >= self.vocabulary:
                # Checked here: on a GPU it would take the whole process down.
                raise IndexError(f"token {ids.max()} is not in the model's vocabulary of {self.vocabulary}")
            with torch.inference_mode():
                output = self.model(input_ids=self._put(ids), attention_mask=self._put(mask))
                yield rows, output.logits.float()

    def _predict(self, tokens: Tokens, best: int) -> Predictions:
        # On the device until the end: nothing waits for a batch while the next one is being packed.
        order, labels, scores, levels = [], [], [], []
        for rows, logits in self.logits(tokens):
            probabilities = torch.softmax(logits / self.spec.temperature, dim=1)
            top = torch.topk(probabilities, best, dim=1)
            order.append(rows)
            labels.append(top.indices)
            scores.append(top.values)
            levels.append(self._level_confidences(probabilities, top.indices[:, 0]))
        if not order:
            nothing = np.empty((0, best), np.float32)
            none = np.empty((0, best), np.int64)
            return Predictions(
                none[:, 0], nothing[:, 0], np.empty((0, len(self._groups)), np.float32), none[:, 1:], nothing[:, 1:]
            )
        back = np.empty(len(tokens), np.int64)
        back[np.concatenate(order)] = np.arange(len(tokens))
        label, score, level = (torch.cat(column).cpu().numpy()[back] for column in (labels, scores, levels))
        return Predictions(label[:, 0], score[:, 0], level, label[:, 1:], score[:, 1:])

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """On the device; to a GPU from pinned memory, without waiting."""
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _level_confidences(self, probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows, levels]: the probability mass below each ancestor of the chosen category, NaN below its depth."""
        columns = []
        for level, group in enumerate(self._groups):
            mass = probabilities.new_zeros(len(probabilities), int(group.max()) + 1).index_add_(1, group, probabilities)
            column = mass.gather(1, group[labels].unsqueeze(1)).squeeze(1)
            columns.append(column.masked_fill(self._depths[labels] <= level, math.nan))
        return torch.stack(columns, dim=1).clamp(max=1.0)


class _quiet_transformers:
    """Silence the loading report and bar of transformers: a fresh head is what we want."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
