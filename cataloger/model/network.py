"""The network of a bundle: make it from a base model, save it, load it."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cataloger.bundle import SPEC, read_spec, write_spec
from cataloger.errors import ModelError
from cataloger.model.fusion import FusionConfig, FusionForSequenceClassification, width_of
from cataloger.model.mean_pooling import MeanPoolingConfig, MeanPoolingForSequenceClassification
from cataloger.model.several import SeveralConfig, SeveralForTokenClassification
from cataloger.model.sight import Sight, load_sight
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Picture, Spec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
# For pipelines elsewhere: softmax or sigmoid.
PROBLEM_TYPES = {ONE_CATEGORY: "single_label_classification", MANY_CATEGORIES: "multi_label_classification"}


def new_classifier(folder: Path, spec: Spec, sight: Sight | None = None) -> PreTrainedModel:
    """The base model with a fresh classification head, joined with the network that sees where there is one.

    Raises ModelError when the folder holds no usable encoder.
    """
    labels: dict[str, Any] = {"id2label": dict(enumerate(spec.classes)), "problem_type": PROBLEM_TYPES.get(spec.head)}
    labels["label2id"] = {path: label for label, path in enumerate(spec.classes)}
    with quiet_transformers():
        if sight:
            return _new_fusion(folder, spec, sight, labels)
        if spec.tags or spec.others:
            encoder, inner = _encoder(folder)
            sizes: Any = {
                of_words: [len(one.classes) for one in spec.answers if (one.head == TAGS) == of_words]
                for of_words in (False, True)
            }
            several = SeveralConfig(
                encoder=inner, pooling=spec.pooling, texts=sizes[False], words=sizes[True], **labels
            )
            tagger = SeveralForTokenClassification(several)
            tagger.encoder = encoder
            return tagger
        try:
            if spec.pooling == "cls":
                return AutoModelForSequenceClassification.from_pretrained(
                    folder, ignore_mismatched_sizes=True, **labels
                )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"base model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error
        encoder, inner = _encoder(folder)
        model = MeanPoolingForSequenceClassification(MeanPoolingConfig(encoder=inner, **labels))
        model.encoder = encoder
        return model


def _new_fusion(folder: Path, spec: Spec, sight: Sight, labels: dict[str, Any]) -> PreTrainedModel:
    seeing, about = load_sight(sight)
    encoder, inner = _encoder(folder) if spec.text_columns else (None, {})
    config = FusionConfig(
        encoder=inner, picture=about, pooling=spec.pooling, image_mean=sight.mean, image_std=sight.std, **labels
    )
    model = FusionForSequenceClassification(config)
    assert width_of(seeing) == width_of(model.picture)
    model.picture, model.encoder = seeing, encoder
    return model


def _encoder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(a base model without its pooler, its configuration). Raises ModelError."""
    try:
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"base model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error
    encoder.pooler = None
    # The inner dtype would override the one a bundle is loaded with.
    return encoder, {
        key: value for key, value in encoder.config.to_dict().items() if key not in ("dtype", "_name_or_path")
    }


def without_weights(folder: Path) -> PreTrainedModel:
    """The base model's encoder in its shape alone, on no device. Raises ModelError."""
    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModel.from_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"base model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error


def save_bundle(folder: Path, model: PreTrainedModel, base: Path, spec: Spec) -> None:
    """Write the bundle; `base` is the folder the tokenizer comes from, of a base model or of a bundle. No file in it is a pickle."""
    if spec.picture:
        FusionConfig.register_for_auto_class()
        FusionForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    elif spec.tags or spec.others:
        SeveralConfig.register_for_auto_class()
        SeveralForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
    elif spec.pooling == "mean":
        MeanPoolingConfig.register_for_auto_class()
        MeanPoolingForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    with quiet_transformers():
        model.save_pretrained(folder)
        if (base / SPEC).exists():
            copy_tokenizer(base, folder)
        elif spec.text_columns:
            tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True)
            tokenizer.model_max_length = spec.max_tokens
            tokenizer.save_pretrained(folder)
    if spec.picture:
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(spec.picture), indent=1))
    write_spec(folder, spec)


def copy_tokenizer(source: Path, target: Path) -> None:
    """That of one bundle, or base model, to another: transformers would want to run the code of the first to read it."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def _processor(picture: Picture) -> dict[str, Any]:
    """For an image processor of transformers: the network takes whole numbers from 0 to 255, and scales them itself."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(picture.size / picture.crop)},
        "do_center_crop": True,
        "crop_size": {"height": picture.size, "width": picture.size},
        "resample": {"bilinear": 2, "bicubic": 3}[picture.resample],
        "do_rescale": False,
        "do_normalize": False,
    }


def load_network(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The network of a bundle. Raises ModelError. No code is loaded from the folder: cataloger has the class."""
    spec = read_spec(folder)
    mean = MeanPoolingForSequenceClassification if spec.pooling == "mean" else AutoModelForSequenceClassification
    cls = FusionForSequenceClassification if spec.picture else mean
    cls = SeveralForTokenClassification if spec.tags or spec.others else cls
    try:
        with quiet_transformers():
            return cls.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:  # the last where weights are not of the shape of config.json
        raise ModelError(f"model {folder}: cannot be loaded: {str(error).splitlines()[0]}") from error


class quiet_transformers:
    """Silence what transformers says of loading and tracing: a fresh head is what we want, and its loss is not used."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
