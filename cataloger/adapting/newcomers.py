"""Categories that a model is to know tomorrow: their paths, what is said of them, and a few of their products."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cataloger.curation.tables import paths_of, read_table
from cataloger.errors import ConfigError
from cataloger.spec import Spec
from cataloger.taxonomy import SEPARATOR

# More examples than so many are learnt better by a training.
MOST_EXAMPLES = 1_000


@dataclass(frozen=True)
class Newcomers:
    """`paths`, sorted; `names` [paths] what each is called, with what is said of it; `examples` are rows with the model's text columns,
    and `label` [examples] the number of the path of each."""

    paths: tuple[str, ...]
    names: pa.Array
    examples: pa.Table
    label: pa.Array


def read_newcomers(uri: str, spec: Spec) -> Newcomers:
    """Of a table with `category_path`, `description` where there is one, and the model's text columns: a row for each example, or one
    without any text. Raises CatalogerError."""
    where = f"--categories {uri}"
    table = read_table(uri, "--categories", ("category_path",), ("description", *spec.text_columns))
    paths = paths_of(table, where)
    if pa.types.is_list(paths.type):
        raise ConfigError(f"{where}: has lists of categories; write one category_path in each row")
    if not len(paths):
        raise ConfigError(f"{where}: has no rows; write a row for each new category")
    known = sorted(set(paths.to_pylist()) & set(spec.categories))
    if known:
        raise ConfigError(
            f"{where}: the model knows {known[0]!r} already; to teach it more of that, train it with --corrections"
        )
    names = sorted(set(paths.to_pylist()))
    label = pc.index_in(paths, pa.array(names))
    texts = [
        table.column(name) if name in table.column_names else pa.nulls(len(table), pa.string())
        for name in spec.text_columns
    ]
    some = pa.array([False] * len(table))
    for column in texts:
        some = pc.or_(
            some, pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(column.cast(pa.large_string())), ""), False)
        )
    # A description is of the category, unless the model reads one of each product.
    of_categories = (
        "description" if "description" in table.column_names and "description" not in spec.text_columns else None
    )
    examples = pa.table(dict(zip(spec.text_columns, texts, strict=True))).filter(some)
    if len(examples) > MOST_EXAMPLES * len(names):
        raise ConfigError(
            f"{where}: has {len(examples):,} examples; train a model with so many, with --corrections for instance"
        )
    return Newcomers(tuple(names), _names(table, names, label, of_categories), examples, label.filter(some))


def _names(table: pa.Table, names: Sequence[str], label: pa.Array, description: str | None) -> pa.Array:
    """The last step of each path, and the first description that a row of it has."""
    said: dict[int, str] = {}
    if description:
        for number, text in zip(label.to_pylist(), table.column(description).to_pylist(), strict=True):
            if text and str(text).strip():
                said.setdefault(number, str(text))
    called = [
        " ".join(filter(None, (path.split(SEPARATOR)[-1], said.get(number)))) for number, path in enumerate(names)
    ]
    return pa.array(called, pa.large_string())
