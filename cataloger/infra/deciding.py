"""What of the code and its libraries decides a label: part of a run's id and of the keys of what nodes keep.

A mistake that is mended in one of these modules, or another version of one of these libraries, makes another run. Comments
and docstrings do not count.
"""

import ast
import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
MODULES = (
    "bundle",
    "data.album",
    "data.batching",
    "data.catalog",
    "data.fetching",
    "data.fields",
    "data.footers",
    "data.images",
    "data.inputs",
    "data.kinds",
    "data.ngrams",
    "data.pictures",
    "data.reading",
    "data.schemas",
    "data.spans",
    "data.tagging",
    "data.text",
    "data.texts",
    "data.units",
    "data.values",
    "data.windows",
    "heads.arrays",
    "heads.base",
    "heads.category_columns",
    "heads.columns",
    "heads.many_categories",
    "heads.one_category",
    "heads.ranked",
    "heads.several",
    "heads.tag_columns",
    "heads.tags",
    "labeling.labeler",
    "labeling.reading",
    "labeling.reuse",
    "labeling.stream",
    "model.engines",
    "model.fusion",
    "model.mean_pooling",
    "model.network",
    "model.predictor",
    "model.several",
    "model.tiers",
    "model.words",
    "spec",
    "taxonomy",
)
# Those that decide which rows a table has, where the catalog is one.
TABLES = ("lakes.delta", "lakes.iceberg", "lakes.tables")
# Those that decide why a label is what it is, where that is published as well.
EXPLAINING = ("explaining.occlusion", "explaining.words")
# Those that put pins and rules in the place of what a model says, where there are any.
CURATING = (
    "curation.conditions",
    "curation.decisions",
    "curation.matching",
    "curation.outcome",
    "curation.pins",
    "curation.rules",
    "curation.tables",
    "curation.verdicts",
    "data.ids",
)
LIBRARIES = ("numpy", "openvino", "pillow", "pyarrow", "scipy", "timm", "tokenizers", "torch", "transformers")


@functools.cache
def digest(explained: bool = False) -> str:
    """16 hex digits that change with the code that decides what a model says, and with the versions of its libraries."""
    return _digest(MODULES + EXPLAINING * explained)


@functools.cache
def digest_of_tables() -> str:
    """The same for the rows of tables."""
    return _digest(TABLES)


@functools.cache
def digest_of_first_weights() -> str:
    """The same for what trainings begin with that go on from a model, or learn from it."""
    return _digest(("model.network", "model.student"))


@functools.cache
def digest_of_decisions() -> str:
    """The same for what is made of pins and rules."""
    return _digest(CURATING)


def _digest(modules: tuple[str, ...]) -> str:
    total = hashlib.sha256(repr(libraries()).encode())
    for name in modules:
        total.update(name.encode() + _meaning((PACKAGE / f"{name.replace('.', '/')}.py").read_text()))
    return total.hexdigest()[:16]


def libraries() -> dict[str, str]:
    """The versions of the libraries that decide a label; of those that are there."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _meaning(source: str) -> bytes:
    """A module without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            del body[0]
    return ast.dump(tree).encode()
