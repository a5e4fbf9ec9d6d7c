"""The flags of every job by intent, as `--help` shows them: the common ones first, then group by group.

A flag is a field of the job's dataclass in `cataloger.config`, which is flat. tyro groups flags by nested dataclasses only:
`nested` makes one for the command line, `flat` takes it back. The names of the flags do not change.
"""

import ast
import inspect
from dataclasses import MISSING, Field, field, fields, make_dataclass
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from cataloger.config import (
    AuditConfig,
    CompareConfig,
    CompressConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    ExtendConfig,
    ImportConfig,
    LabelConfig,
    MigrateConfig,
    PublishConfig,
    SampleConfig,
    ServeConfig,
    TrainConfig,
    VerifyConfig,
)

Config = TypeVar("Config")

# By job, then by group: `unlabelled_text` has the title "unlabelled-text options".
GROUPS: dict[type, dict[str, tuple[str, ...]]] = {
    TrainConfig: {
        "common": (
            *("catalog", "text_columns", "label_column", "base_model", "epochs", "test_fraction"),
            *("num_workers", "model_name"),
        ),
        "data": (
            "id_column",
            "group_column",
            "corrections",
            "tree_map",
            "eval_catalog",
            "validation_fraction",
            "test_start",
        ),
        "model": ("pooling", "max_tokens", "keep_old", "target_precision", "tiers", "tier_risk", "tier_agreement"),
        "picture": ("image_column", "image_model", "image_augmentation"),
        "optimisation": (
            *("fine_tune", "batch_size", "learning_rate", "layer_decay", "warmup_fraction", "patience"),
            "fold_back",
        ),
        "regularisation": ("weight_decay", "dropout", "adversarial", "average_decay"),
        "category": ("long_tail", "level_weights", "label_smoothing", "group_balance"),
        "answer": ("answer_weights", "category_attributes"),
        "unlabelled_text": ("unlabelled_catalog", "pretrain_epochs", "pseudo_labels"),
        "run": ("use_gpu", "precision", "seed", "storage", "checkpoint_minutes", "experiment", "sweep"),
    },
    ServeConfig: {
        "common": ("model", "port", "host", "token_file", "pins", "rules"),
        "data": ("id_column", "alternatives", "image_sources"),
        "run": ("replicas", "max_wait_ms", "use_gpu", "precision"),
    },
    LabelConfig: {
        "common": ("catalog", "output", "model", "pins", "rules"),
        "data": ("id_column", "text_columns", "image_column", "alternatives", "explain"),
        "publishing": (
            "publish_to",
            "max_reject_fraction",
            "max_missing_fraction",
            "max_changed_fraction",
            "publish_anyway",
        ),
        "run": ("tiers", "anew", "use_gpu", "precision", "experiment"),
    },
    EvaluateConfig: {
        "common": ("catalog", "model", "split", "predictions"),
        "data": ("id_column", "text_columns", "image_column", "label_column", "slice_columns"),
        "fairness": ("group_columns", "groups_report"),
        "run": ("tiers", "use_gpu", "precision", "experiment"),
    },
    AuditConfig: {
        "common": ("catalog", "models", "output", "corrections"),
        "data": ("id_column", "text_columns", "image_column", "label_column"),
        "run": ("use_gpu", "precision", "experiment"),
    },
    CompareConfig: {
        "common": ("runs", "model_name", "evaluate", "split", "catalog", "promote"),
        "promotion": ("metric", "max_slowdown", "protect", "rollback"),
        "data": ("id_column", "text_columns", "image_column", "label_column", "slice_columns"),
        "run": ("report", "use_gpu", "experiment"),
    },
    CompressConfig: {
        "common": ("catalog", "model", "average_models", "layers", "prune_vocabulary", "precision", "model_name"),
        "data": ("id_column", "text_columns", "image_column", "label_column", "eval_catalog"),
        "training": ("epochs", "target_precision", "tiers", "tier_risk", "num_workers", "seed"),
        "run": ("use_gpu", "storage", "experiment"),
    },
    ExplainConfig: {
        "common": ("catalog", "ids", "text", "model", "neighbours", "output"),
        "data": ("id_column", "text_columns", "image_column", "label_column"),
        "run": ("tiers",),
    },
    ExtendConfig: {
        "common": ("categories", "catalog", "model", "model_name"),
        "data": ("id_column", "label_column"),
        "run": ("experiment",),
    },
    MigrateConfig: {
        "common": ("labels", "to", "examples", "output", "apply"),
        "data": ("catalog", "model", "text_columns", "id_column", "label_column"),
        "run": ("base_model",),
    },
    ExportConfig: {
        "common": ("labels", "catalog", "output", "budget", "format"),
        "data": ("weight_column", "model", "text_columns", "image_column"),
    },
    ImportConfig: {"common": ("answers", "queue", "output")},
    SampleConfig: {"common": ("rows", "output", "labelled", "images", "seed")},
    PublishConfig: {"common": ("output", "run", "prune")},
    VerifyConfig: {"common": ("output",)},
}


def nested(config: type) -> type:
    """A dataclass with one dataclass per group, for `tyro.cli` with `tyro.conf.OmitArgPrefixes`."""
    flags, texts = {flag.name: flag for flag in fields(config)}, _texts(config)
    groups = []
    for title, names in GROUPS[config].items():
        shown = [
            (name, Annotated[flags[name].type, _shown(flags[name], texts[name])], field(default=flags[name].default))
            for name in names
        ]
        groups.append((title, make_dataclass(title, shown)))
    return make_dataclass(config.__name__, groups)


def flat(config: type[Config], parsed: Any) -> Config:
    """The job's configuration from an instance of `nested(config)`."""
    return config(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})


def _texts(config: type) -> dict[str, str]:
    """The docstring of every field, on one line. Python keeps none, and tyro finds them for a class in a file only."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        flag.target.id: " ".join(text.value.value.split())
        for flag, text in pairwise(definition.body)
        if isinstance(flag, ast.AnnAssign)
        and isinstance(flag.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _shown(flag: Field[Any], text: str) -> object:
    """How tyro shows a flag. One without a value has no default to show: its text says what happens then."""
    unset = flag.default is MISSING or flag.default is None or flag.default is False or flag.default == ()
    metavar = None if flag.type is bool else _metavar(flag.type)
    return tyro.conf.arg(help=text, help_behavior_hint="" if unset else None, metavar=metavar)


def _metavar(kind: Any) -> str:
    """What a flag takes: `STR`, `STR ...`, `{all,test}`. That nothing is a value, too, is not said."""
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..."
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_args(kind):
        return "|".join(_metavar(one) for one in get_args(kind) if one is not NoneType)
    return str(kind.__name__).upper()
