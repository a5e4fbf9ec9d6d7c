"""Whether what is asked for can be done: all that can be known before any work."""

from collections.abc import Sequence

from cataloger.bundle import read_spec
from cataloger.compression import precision
from cataloger.config import CompressConfig
from cataloger.data.catalog import Catalog, grouped, open_catalog
from cataloger.data.kinds import label_kind
from cataloger.errors import ConfigError
from cataloger.heads.columns import columns_of
from cataloger.model.ensemble import SPLIT
from cataloger.model.registry import ModelSource
from cataloger.spec import TAGS, Spec


def check(config: CompressConfig, spec: Spec, sources: Sequence[ModelSource]) -> None:
    """Raises ConfigError."""
    names = " ".join(config.average_models or config.model)
    if len(config.average_models) == 1 or (config.average_models and config.layers):
        reason = "is of several models; name more" if not config.layers else "has no layers fewer; leave out --layers"
        raise ConfigError(f"--average-models {names}: {reason}")
    if not spec.network:
        raise ConfigError(f"model {names}: words alone have no network to make cheaper")
    for other in sources[1:]:
        theirs = read_spec(other.folder)
        if (theirs.categories, theirs.head) != (spec.categories, spec.head):
            raise ConfigError(
                f"model {other.uri}: answers with other categories than {sources[0].uri}; teachers need the same"
            )
    for name in ("layers", "epochs"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"--{name} {getattr(config, name)}: must be at least 1")
    if not 0 <= config.target_precision <= 1:
        raise ConfigError(f"--target-precision {config.target_precision}: must be from 0 to 1")
    if config.tier_risk is not None and not 0 < config.tier_risk < 1:
        raise ConfigError(f"--tier-risk {config.tier_risk}: must be above 0 and below 1")
    if config.layers or len(sources) > 1:
        what = "--average-models" if config.average_models else "--layers" if config.layers else "several models"
        specs = [read_spec(one.folder) for one in sources]
        if any(one.tags or one.others for one in specs):
            raise ConfigError(f"{what}: is for models that answer with categories alone; leave it out")
        if any(one.picture or not one.network for one in specs):
            raise ConfigError(f"{what}: is for networks that read texts alone; leave it out")
        _check_alike(sources, specs, config)
    else:
        for name in ("epochs", "tier_risk"):
            if getattr(config, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}: nothing is trained; add --layers, or leave it out")
    if config.prune_vocabulary and not spec.text_columns:
        raise ConfigError("--prune-vocabulary: the model reads no text; leave it out")
    if config.prune_vocabulary:
        # Imported here: nothing else that is checked needs torch.
        from cataloger.model.vocabulary import check_can_be_cut

        check_can_be_cut(sources[0].folder)
    if config.precision == "int8":
        precision.check_possible()


def _check_alike(sources: Sequence[ModelSource], specs: Sequence[Spec], config: CompressConfig) -> None:
    """Teachers read the same of a row, and what is averaged has left the same rows out: those that its mean is judged by."""
    first = specs[0]
    for one, spec in zip(sources, specs, strict=True):
        if (spec.text_columns, spec.max_tokens) != (first.text_columns, first.max_tokens):
            raise ConfigError(
                f"model {one.uri}: reads other columns than {sources[0].uri}, or more or fewer tokens; both need the same"
            )
        if not config.average_models:
            continue
        split = SPLIT if config.eval_catalog else (*SPLIT, "validation_fraction")
        if any(getattr(spec, name) != getattr(first, name) for name in split):
            raise ConfigError(
                f"--average-models: {one.uri} has learnt from other rows than {sources[0].uri}; name models of the same split"
            )
    if not first.validation_fraction and not config.eval_catalog:
        raise ConfigError(
            f"model {sources[0].uri}: holds no rows of --catalog back that could judge (validated on another catalog, trained with --fold-back, "
            "or not written down); name that catalog with --eval-catalog, or one of products that the model has not seen"
        )
    if config.average_models and config.model != CompressConfig.model:
        raise ConfigError("--model: is for other ways than --average-models; leave one of them out")
    if config.average_models and config.epochs is not None:
        raise ConfigError("--epochs: a mean is not trained; leave it out")


def opened(uri: str, config: CompressConfig, spec: Spec) -> Catalog:
    """A catalog, with its categories where it has some."""
    group = grouped(spec.group_column)
    catalog = open_catalog(uri, config.id_column, spec.text_columns, picture=spec.picture)
    names = set.intersection(*(set(schema.names) for schema in catalog.schemas))
    labels = (config.label_column,) if config.label_column in names and spec.head != TAGS else ()
    trained = config.layers or len(config.average_models or config.model) > 1
    if trained and not labels:
        raise ConfigError(
            f"catalog {uri}: has no column {config.label_column!r} in all of its files; a new model is judged by rows whose category "
            "is known, and learns words from them: name another --label-column"
        )
    others = group if trained or all(name in names for name in group) else {}
    found = open_catalog(uri, config.id_column, spec.text_columns, labels, others, spec.picture)
    if labels and not columns_of(spec).fits(found.schema.field(config.label_column)):
        raise ConfigError(
            f"--label-column {config.label_column}: has {label_kind(found.schema.field(config.label_column).type)}, which is not what the "
            "model answers; name another column"
        )
    return found
