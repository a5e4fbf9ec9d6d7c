"""What a training is to do, checked as a whole before any work."""

import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from cataloger.bundle import MANY_CATEGORIES, MOST_TOKENS, NO_NETWORK, Picture, Spec, Words
from cataloger.config import SampleConfig, TrainConfig
from cataloger.data import sample
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.data.text import load_tokenizer, mask_token
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError, ConfigError
from cataloger.heads.columns import head_for
from cataloger.infra import places
from cataloger.infra.storage import Location, check_writable, locate
from cataloger.model.pretrained import checked_base_model, resolve_pooling
from cataloger.model.sight import sight_of
from cataloger.taxonomy import Taxonomy
from cataloger.training.defaults import settled
from cataloger.training.examples import TRAINING, UNLABELLED, VALIDATION
from cataloger.training.rows import Source, wants_unlabelled

log = logging.getLogger(__name__)
# Flags that mean nothing to words alone.
OF_NETWORKS = (
    *("pooling", "fine_tune", "layer_decay", "dropout", "adversarial", "average_decay", "long_tail", "level_weights"),
    *("label_smoothing", "pretrain_epochs", "pseudo_labels", "tier_agreement"),
)


@dataclass(frozen=True)
class Plan:
    """A configuration with its catalogs opened: the training catalog is the first source."""

    config: TrainConfig
    spec: Spec
    sources: tuple[Source, ...]
    storage: Location


def plan(config: TrainConfig) -> Plan:
    """Raises CatalogerError that says what is wrong, where, and what to do."""
    _check(config)
    pooling, picture = NO_NETWORK, None
    if config.image_column:
        _check_pictures(config)
        sight = sight_of(config.image_model)
        picture = sight.picture(config.image_column)
        if sight.folder == Path(config.image_model).expanduser():
            config = replace(config, image_model=str(sight.folder.resolve()))
    if config.base_model == NO_NETWORK:
        _check_words_alone(config)
    elif not config.text_columns:
        pooling = "mean"  # of the places of a picture
    else:
        folder = checked_base_model(config.base_model)
        if folder == Path(config.base_model).expanduser():
            # Workers have working folders of their own.
            config = replace(config, base_model=str(folder.resolve()))
        _check_base(config, folder)
        pooling = resolve_pooling(folder, config.pooling)
    taxonomy, sources, labelled = _open(config, picture)
    head = head_for(sources[0].catalog.schema.field(config.label_column))
    if head == MANY_CATEGORIES:
        _check_many_categories(config)
    if pooling != NO_NETWORK:
        held_out = 0.0 if config.eval_catalog else config.validation_fraction
        config, chosen = settled(config, round(labelled * (1 - config.test_fraction) * (1 - held_out)), head)
        if config.adversarial and picture:
            raise ConfigError("--adversarial: is for networks that read alone; leave it out with --image-column")
        if chosen:
            log.info("%s", chosen)
    spec = Spec(
        categories=taxonomy.categories,
        text_columns=config.text_columns,
        max_tokens=config.max_tokens,
        pooling=pooling,
        catalog_fingerprint=sources[0].catalog.fingerprint,
        test_fraction=config.test_fraction,
        test_start=config.test_start,
        head=head,
        group_column=config.group_column,
        words=Words() if pooling == NO_NETWORK else None,
        picture=picture,
    )
    storage = locate(places.place(config.storage, "--storage"))
    check_writable(storage)
    return Plan(config, spec, tuple(sources), storage)


def _check(config: TrainConfig) -> None:
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
    for name in ("checkpoint_minutes", "adversarial", "pretrain_epochs"):
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
    if not config.text_columns and not config.image_column:
        raise ConfigError("--text-columns: name at least one column, or an --image-column")


def _check_words_alone(config: TrainConfig) -> None:
    for name in OF_NETWORKS:
        if getattr(config, name) != getattr(TrainConfig, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for a network; leave it out with --base-model {NO_NETWORK}"
            )


def _check_pictures(config: TrainConfig) -> None:
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


def _check_many_categories(config: TrainConfig) -> None:
    if config.long_tail not in ("off", "focal"):
        raise ConfigError(
            f"--long-tail {config.long_tail}: is for one category per product; with lists of them use off or focal"
        )
    for name in ("level_weights", "label_smoothing", "pseudo_labels"):
        if getattr(config, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: is for one category per product; leave it out where they have lists of them"
            )


def _check_base(config: TrainConfig, base: Path) -> None:
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


def _open(config: TrainConfig, picture: Picture | None) -> tuple[Taxonomy, list[Source], int]:
    """(the taxonomy of the training catalog, the catalogs to read, rows with a category). Raises CatalogError."""
    uri = config.catalog or _sample_catalog()
    opened = [(TRAINING, *_count(uri, config, picture))]
    if config.eval_catalog:
        opened.append((VALIDATION, *_count(config.eval_catalog, config, picture)))
        first, second = (one[1].schema.field(config.label_column) for one in opened)
        if head_for(first) != head_for(second):
            raise CatalogError(
                f"catalog {config.eval_catalog}: column {config.label_column!r} is {second.type}, that of --catalog {first.type}; "
                "both need one category per row, or lists of them"
            )
    names, rows = opened[0][2:]
    if len(rows) < 2:
        found = f"only one category, {next(iter(rows))!r}" if rows else "no category"
        raise CatalogError(
            f"catalog {uri}: column {config.label_column!r} has {found}; a classifier needs at least two"
        )
    single = sum(count == 1 for count in rows.values())
    if single:
        log.info("%s of %s categories have a single product: kept, but hardly learnable", single, len(rows))
    taxonomy = Taxonomy.from_paths(rows)
    upper, weights = taxonomy.depth - 1, len(config.level_weights or ())
    if config.level_weights != "auto" and weights > 1 and weights != upper:
        raise ConfigError(
            f"--level-weights: has {weights} numbers, but the categories have {upper} upper levels; give one for each, or one for all"
        )
    sources = []
    for use, catalog, names, rows in opened:
        unknown = [path for path in rows if path not in taxonomy.label_ids]
        if unknown:
            log.info(
                "%s: %s categories do not occur in the training catalog; their rows count as errors",
                catalog.location,
                len(unknown),
            )
        label_ids = {written: taxonomy.label_ids.get(path, -1) for written, path in names.items()}
        sources.append(Source(catalog, label_ids, use))
    if config.unlabelled_catalog:
        catalog = open_catalog(
            config.unlabelled_catalog, config.id_column, config.text_columns, others=grouped(config.group_column)
        )
        sources.append(Source(catalog, {}, UNLABELLED))
    # Of lists of categories, each is counted; a row is one all the same.
    return taxonomy, sources, min(sum(opened[0][3].values()), opened[0][1].rows)


def _count(uri: str, config: TrainConfig, picture: Picture | None) -> tuple[Catalog, dict[str, str], dict[str, int]]:
    catalog = open_catalog(
        uri, config.id_column, config.text_columns, config.label_column, grouped(config.group_column), picture
    )
    names, rows = normalise_labels(
        count_labels(catalog, config.label_column, config.id_column), uri, config.label_column
    )
    return catalog, names, rows


def _sample_catalog() -> str:
    folder = Path("sample-catalog/labelled")
    if not folder.exists():
        log.info("no --catalog: generating a sample catalog in %s", folder)
        sample.generate(SampleConfig(output=str(folder), labelled=True))
    return str(folder)
