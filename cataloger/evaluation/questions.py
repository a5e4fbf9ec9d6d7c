"""The answers of a model that an evaluation scores, and the columns of the catalog with the true ones."""

import logging
from dataclasses import dataclass

import pyarrow as pa

from cataloger.config import EvaluateConfig
from cataloger.data.catalog import Catalog
from cataloger.data.kinds import is_untold, label_kind
from cataloger.data.truth import count_labels, normalise_labels
from cataloger.errors import CatalogError, ConfigError
from cataloger.evaluation.predictions import SLICE, WRITTEN
from cataloger.evaluation.tagging import OWN
from cataloger.heads.columns import answer_in, columns_of
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Spec

log = logging.getLogger(__name__)
ANSWERS = {ONE_CATEGORY: "one category", MANY_CATEGORIES: "any number of categories", TAGS: "tags"}
# Of labels, what is of the product and not of an answer.
OF_ALL = ("row", "id", "text", "seen")


@dataclass(frozen=True)
class Question:
    """An answer of the model, and the column of the catalog with the true one."""

    number: int
    spec: Spec
    column: str
    kind: str
    names: dict[str, str]

    @property
    def written(self) -> str:
        """The name of that column among the labels."""
        return f"{WRITTEN}.{self.number}" if self.number else WRITTEN

    @property
    def before(self) -> str:
        """What the names of metrics begin with."""
        return self.spec.prefix if self.number else ""

    def of(self, labels: pa.Table) -> pa.Table:
        """Labels as they would be if this answer were the only one, with its true ones as `WRITTEN`."""
        if not self.number:
            return labels
        found = answer_in(labels, self.spec.label_column)
        for name in labels.column_names:
            if name in (*OF_ALL, self.written) or name.startswith((SLICE, OWN)):
                found = found.append_column(WRITTEN if name == self.written else name, labels.column(name))
        return found


def label_columns(config: EvaluateConfig, spec: Spec, catalog: Catalog) -> list[str]:
    """The column for each answer: as they are named, and then, where the catalog has it, the one that the answer was learnt from."""
    if not config.label_column:
        raise ConfigError("--label-column: name at least one column")
    if len(config.label_column) > len(spec.answers):
        raise ConfigError(
            f"--label-column: has {len(config.label_column)} names, but the model has {len(spec.answers)} answers; leave some out"
        )
    columns = list(config.label_column)
    if columns == list(EvaluateConfig.label_column) and spec.head == TAGS:
        columns = [spec.label_column]  # nobody has named another one
    for answer in spec.answers[len(columns) :]:
        there = all(answer.label_column in schema.names for schema in catalog.schemas)
        there = there and not all(is_untold(schema.field(answer.label_column).type) for schema in catalog.schemas)
        columns.append(answer.label_column if there else "")
        if not there:
            log.info("no column %r in %s: that answer is not scored", answer.label_column, config.catalog)
    return columns


def question_of(number: int, spec: Spec, column: str, catalog: Catalog, config: EvaluateConfig) -> Question:
    kind = catalog.schema.field(column)
    if not columns_of(spec).fits(kind):
        raise CatalogError(
            f"catalog {config.catalog}: column {column!r} has {label_kind(kind.type)}, but model {' '.join(config.model)} gives a product "
            f"{ANSWERS[spec.head]}; name another --label-column"
        )
    counts = count_labels(catalog, column, config.id_column)
    names = {} if spec.head == TAGS else normalise_labels(counts, config.catalog, column)[0]
    return Question(number, spec, column, str(label_kind(kind.type)), names)
