"""What people corrected, for training: it wins over the label in the catalog, and products that are not in the catalog come to it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.config import TrainConfig
from cataloger.curation.pins import Pins, SharedPins, read_pins
from cataloger.data.catalog import Catalog
from cataloger.data.ids import Lookup
from cataloger.data.kinds import is_list, is_tags, label_kind
from cataloger.data.reading import read_units
from cataloger.data.units import plan_reads, plan_units
from cataloger.errors import ConfigError

# Before a category that people gave: it is of the tree that is learnt, and the catalog's may be of another (`--tree-map`).
GIVEN = "\0"


@dataclass(frozen=True)
class Corrections:
    """Pins, of which those of further products are `rows` as well, with the columns of the training catalog."""

    pins: Pins
    rows: pa.Table

    @property
    def digest(self) -> str:
        """Of all that is learnt from them."""
        return hashlib.sha256(repr((self.pins.digest, self.rows.to_pylist())).encode()).hexdigest()[:16]

    @property
    def counts(self) -> Counter[str]:
        """How often each category is given."""
        column = self.pins.table.column("category_path").combine_chunks()
        return Counter((column.flatten() if self.pins.lists else column).to_pylist())


def read_corrections(uri: str, catalog: Catalog, config: TrainConfig) -> Corrections:
    """Raises CatalogerError for corrections that are none, or not of the first label column's kind."""
    label = config.label_column[0]
    kind = catalog.schema.field(label).type
    if is_tags(kind):
        raise ConfigError(f"--corrections: are categories, and column {label!r} has tags; leave it out")
    read = (*config.text_columns, *filter(None, [config.image_column, config.group_column]))
    pins = read_pins(uri, "--corrections", read)
    if pins.lists != is_list(kind):
        has = "lists of categories" if pins.lists else "one category for each product"
        raise ConfigError(
            f"--corrections {uri}: has {has}, and column {label!r} of the catalog has {label_kind(kind)}; both need the same"
        )
    known = np.zeros(len(pins.table), bool)
    lookup = Lookup.of(pins.table.column("id").combine_chunks())
    schema = pa.schema([catalog.schema.field(config.id_column)])
    for task in plan_reads(plan_units(catalog)):
        for _, table in read_units(catalog.location.filesystem, task.units, schema):
            known[lookup.find(table.column(0))[0]] = True
    return Corrections(pins, _rows(pins.table.filter(pa.array(~known)), catalog, config, read))


def _rows(table: pa.Table, catalog: Catalog, config: TrainConfig, read: Sequence[str]) -> pa.Table:
    """With the columns of the catalog; what a correction does not say is null."""
    columns = {}
    for field in catalog.schema:
        kind = field.type
        if field.name == config.id_column:
            # For people alone: an id need not be a number.
            columns[field.name] = table.column("id")
        elif field.name == config.label_column[0]:
            columns[field.name] = _marked(table.column("category_path").combine_chunks())
        elif field.name in read and field.name in table.column_names:
            try:
                columns[field.name] = table.column(field.name).cast(kind, safe=False)
            except pa.ArrowException as error:
                found = table.schema.field(field.name).type
                raise ConfigError(
                    f"--corrections {config.corrections}: column {field.name!r} is {found}, and {kind} in the catalog; write one type in both"
                ) from error
        else:
            columns[field.name] = pa.nulls(len(table), kind)
    return pa.table(columns)


def _marked(paths: pa.Array) -> pa.Array:
    """Paths, or lists of them, each behind the sign of those that people gave."""
    if not is_list(paths.type):
        sign, nothing = (pa.scalar(text, pa.large_string()) for text in (GIVEN, ""))
        return pc.binary_join_element_wise(sign, paths.cast(pa.large_string()), nothing)
    rows = [None if row is None else [GIVEN + path for path in row] for row in paths.to_pylist()]
    return pa.array(rows, pa.list_(pa.large_string()))


def corrected(table: pa.Table, pins: SharedPins, config: TrainConfig) -> pa.Table:
    """Rows of the catalog with the categories that people gave."""
    label = config.label_column[0]
    found, own = pins.find(table.column(config.id_column)), table.column(label).combine_chunks()
    if found.null_count == len(found):
        return table
    if pa.types.is_dictionary(own.type):
        own = own.cast(own.type.value_type)
    both = pa.concat_arrays([own, _marked(found).cast(own.type)])
    rows = np.arange(len(table))
    there = found.is_valid().to_numpy(zero_copy_only=False)
    return table.set_column(table.column_names.index(label), label, both.take(pa.array(rows + len(rows) * there)))
