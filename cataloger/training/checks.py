"""Whether what a training is asked for can be done: all that its flags, its base model and its answers tell."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from cataloger.config import TrainConfig
from cataloger.data.text import load_tokenizer, mask_token
from cataloger.errors import ConfigError
from cataloger.spec import MANY_CATEGORIES, MOST_TOKENS, NO_NETWORK, TAGS, Picture
from cataloger.taxonomy import Taxonomy
from cataloger.training.answers import Learnt
from cataloger.training.attributes import AUTO, OFF
from cataloger.training.rows import wants_unlabelled

# Above it, PyTorch's generators do not take what is made of a seed and the number of a step.
SEEDS = 1 << 32
# Flags that mean nothing to words alone.
OF_NETWORKS = (
    *("pooling", "fine_tune", "layer_decay", "dropout", "adversarial", "average_decay", "long_tail", "level_weights"),
    *("group_balance", "label_smoothing", "pretrain_epochs", "pseudo_labels", "tier_agreement", "tier_risk"),
    *("epochs", "batch_size", "learning_rate", "fold_back"),
)


def check_flags(config: TrainConfig) -> None:
    """Whether each number is within its limits, and flags go together."""
    for name in ("epochs", "patience", "batch_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    for name in ("validation_fraction", "test_fraction", "test_start", "warmup_fraction", "label_smoothing", "dropout"):
        if not 0 <= (getattr(config, name) or 0) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 0 and below 1")
    for name in ("average_decay", "layer_decay", "pseudo_labels", "target_precision"):
        if not 0 <= (getattr(config, name) or 0) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be from 0 to 1")
    for name in ("tier_risk", "tier_agreement"):
        if getattr(config, name) is not None and not 0 < getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be above 0 and below 1")
    if not 0 <= config.seed < SEEDS:
        raise ConfigError(f"--seed {config.seed}: must be at least 0 and below {SEEDS:,}")
    if config.learning_rate is not None and config.learning_rate <= 0:
        raise ConfigError(f"--learning-rate {config.learning_rate}: must be above 0")
    for name in ("checkpoint_minutes", "adversarial", "pretrain_epochs", "weight_decay"):
        if (getattr(config, name) or 0) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 0")
    if config.level_weights != "auto" and min(config.level_weights or (), default=0) < 0:
        raise ConfigError(f"--level-weights {min(config.level_weights or ())}: must be at least 0")
    if not 3 <= config.max_tokens <= MOST_TOKENS:
        raise ConfigError(
            f"--max-tokens {config.max_tokens}: must be at least 3, two of them are special tokens, and at most {MOST_TOKENS}"
        )
    if config.unlabelled_catalog and not wants_unlabelled(config):
        raise ConfigError(
            "--unlabelled-catalog: is of use with --pretrain-epochs or --pseudo-labels only; add one of them"
        )
    for name in ("pseudo_labels", "long_tail"):
        if config.group_balance and getattr(config, name) != getattr(TrainConfig, name):
            raise ConfigError(f"--{name.replace('_', '-')}: also weighs the rows; leave it out with --group-balance")
    for name in ("keep_old", "group_balance"):
        if config.fold_back and getattr(config, name) is not None:
            raise ConfigError(f"--fold-back: learns from all rows alike; leave it out with --{name.replace('_', '-')}")
    if config.fold_back and config.eval_catalog:
        raise ConfigError(
            "--fold-back: learns from the rows that judge; leave it out, or put those of --eval-catalog into --catalog"
        )
    if not config.text_columns and not config.image_column:
        raise ConfigError("--text-columns: name at least one column, or an --image-column")


def check_words_alone(config: TrainConfig) -> None:
    for name in OF_NETWORKS:
        if getattr(config, name) != getattr(TrainConfig, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for a network; leave it out with --base-model {NO_NETWORK}"
            )


def check_pictures(config: TrainConfig) -> None:
    """Whether a model that sees can be trained in the way that is asked for."""
    if config.base_model == NO_NETWORK:
        raise ConfigError(f"--base-model {NO_NETWORK}: words alone do not see; leave out one of it and --image-column")
    for name in ("pretrain_epochs", "pseudo_labels"):
        if getattr(config, name):
            raise ConfigError(f"--{name.replace('_', '-')}: is for texts alone; leave it out with --image-column")
    if config.long_tail == "augmentation":
        raise ConfigError("--long-tail augmentation: changes words; with --image-column use sampling")
    if config.fine_tune not in ("all", "head"):
        raise ConfigError(f"--fine-tune {config.fine_tune}: with --image-column it must be all or head")
    if not config.text_columns and config.layer_decay < 1:
        raise ConfigError("--layer-decay: is for the layers of a network that reads; leave it out")


def check_answers(config: TrainConfig, learnt: Sequence[Learnt], picture: Picture | None) -> None:
    """Whether the label columns can be learnt in the way that is asked for."""
    heads = [one.head for one in learnt]
    if MANY_CATEGORIES in heads:
        _check_many_categories(config, heads[0])
    if TAGS in heads:
        _check_tags(config, heads[0])
    if heads[0] != TAGS:
        _check_levels(learnt, config)
    if config.category_attributes not in (AUTO, OFF) and (heads[0] == TAGS or TAGS not in heads):
        raise ConfigError(
            "--category-attributes: is for categories as the first answer, and tags as another; leave it out"
        )
    _check_several(config, len(learnt))
    for name, wanted in (("keep_old", config.keep_old is not None), ("fold_back", config.fold_back)):
        if wanted and (len(learnt) > 1 or heads[0] == TAGS or picture):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for categories of texts, as the only answer; leave it out"
            )


def _check_many_categories(config: TrainConfig, first: str) -> None:
    if config.long_tail not in ("off", "focal"):
        raise ConfigError(
            f"--long-tail {config.long_tail}: is for one category per product; with lists of them use off or focal"
        )
    for name in ("level_weights", "label_smoothing", "pseudo_labels"):
        if getattr(config, name) and first == MANY_CATEGORIES:
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for one category per product; leave it out where they have lists of them"
            )


def _check_tags(config: TrainConfig, first: str) -> None:
    if config.base_model == NO_NETWORK:
        raise ConfigError(f"--base-model {NO_NETWORK}: words alone give no tags; name a network")
    if config.image_column:
        raise ConfigError("--image-column: tags are of words; leave it out")
    if config.long_tail != "off" and first == TAGS:
        raise ConfigError(f"--long-tail {config.long_tail}: is for categories; leave it out with tags")
    if config.level_weights and first == TAGS:
        raise ConfigError("--level-weights: is for categories; leave it out with tags")
    for name in ("pretrain_epochs", "pseudo_labels", "unlabelled_catalog"):
        if getattr(config, name):
            raise ConfigError(f"--{name.replace('_', '-')}: is for categories; leave it out with tags")


def _check_several(config: TrainConfig, answers: int) -> None:
    weights = len(config.answer_weights)
    if weights not in (0, answers):
        raise ConfigError(f"--answer-weights: has {weights} numbers for {answers} label columns; give one for each")
    if min(config.answer_weights, default=1.0) <= 0:
        raise ConfigError(f"--answer-weights {min(config.answer_weights)}: must be above 0")
    if answers == 1:
        return
    if config.base_model == NO_NETWORK:
        raise ConfigError(
            f"--base-model {NO_NETWORK}: words alone have one answer; name one label column, or a network"
        )
    for name in ("image_column", "pseudo_labels"):
        if getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for models of one answer; name one label column, or leave it out"
            )
    if config.long_tail in ("sampling", "augmentation"):
        raise ConfigError(
            f"--long-tail {config.long_tail}: is for models of one answer; with several use off or another loss"
        )


def check_base(config: TrainConfig, base: Path) -> None:
    """Whether the base model can be trained in the way that is asked for."""
    tokenizer, fine_tune = load_tokenizer(base, config.max_tokens), config.fine_tune
    if fine_tune == "lora" and importlib.util.find_spec("peft") is None:
        raise ConfigError("--fine-tune lora: needs the package peft; pip install '.[lora]'")
    if fine_tune not in ("all", "head") or config.layer_decay < 1:
        _check_layers(config, base)
    if config.adversarial and fine_tune != "all":
        raise ConfigError(
            f"--adversarial: moves the word embeddings, which --fine-tune {fine_tune} leaves as they are; use one of the two"
        )
    if config.pretrain_epochs and mask_token(tokenizer) is None:
        raise ConfigError(
            f"--pretrain-epochs: base model {config.base_model} has no token that masks a word; leave it out"
        )


def _check_layers(config: TrainConfig, base: Path) -> None:
    """Whether the base model has the layers that are asked for."""
    # Imported here: only these flags need the network's shape, and nothing else here needs torch.
    from cataloger.model.network import without_weights
    from cataloger.training.tuning import adaptable, layers_of_their_own

    encoder, fine_tune = without_weights(base), config.fine_tune
    if fine_tune == "lora" and not adaptable(encoder):
        raise ConfigError(
            f"--fine-tune lora: the layers of base model {config.base_model} have no linear maps; leave it out"
        )
    layers, numbered = layers_of_their_own(encoder), fine_tune not in ("all", "head", "lora")
    if not layers and (numbered or config.layer_decay < 1):
        flag = f"--fine-tune {fine_tune}" if numbered else f"--layer-decay {config.layer_decay}"
        raise ConfigError(
            f"{flag}: the layers of base model {config.base_model} share their weights or cannot be told apart; leave it out"
        )
    if numbered and not (fine_tune.isdecimal() and 1 <= int(fine_tune) <= layers):
        raise ConfigError(f"--fine-tune {fine_tune}: must be all, head, lora, or a number of layers from 1 to {layers}")


def _check_levels(learnt: Sequence[Learnt], config: TrainConfig) -> None:
    upper, weights = Taxonomy(learnt[0].categories).depth - 1, len(config.level_weights or ())
    if config.level_weights == "auto" or weights < 2:
        return
    if len(learnt) > 1:
        raise ConfigError(
            f"--level-weights: has {weights} numbers; with several label columns give one, for all levels"
        )
    if weights != upper:
        raise ConfigError(
            f"--level-weights: has {weights} numbers, but the categories have {upper} upper levels; give one for each, or one for all"
        )
