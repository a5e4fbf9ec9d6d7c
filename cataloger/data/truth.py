"""The true categories of a labelled catalog, as written and as the model learns them."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cataloger.data.catalog import Catalog
from cataloger.data.kinds import is_list, is_string
from cataloger.data.reading import read_units
from cataloger.data.text import undecodable
from cataloger.data.units import Read, Unit, plan_reads, plan_units
from cataloger.errors import CatalogError
from cataloger.taxonomy import SEPARATOR, parse_path


def count_labels(catalog: Catalog, label_column: str, id_column: str) -> Counter[str | None]:
    """Rows per category path as written in the file, of all paths of a row where it has a list; None counts rows without one. Of tags,
    their names are counted.

    Raises CatalogError naming the first row whose category is not valid UTF-8.
    """
    counts: Counter[str | None] = Counter()

    schema = pa.schema([catalog.schema.field(label_column)])

    def count(read: Read) -> Counter[str | None]:
        found: Counter[str | None] = Counter()
        for unit, table in read_units(catalog.location.filesystem, read.units, schema):
            values = table.column(0).combine_chunks()
            if is_list(values.type):
                values = values.flatten()
            if any(undecodable(strings).any() for strings in _strings(values)):
                raise _not_utf8(catalog, unit, label_column, id_column)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "name")
            for pair in pc.value_counts(values.cast(pa.large_string())).to_pylist():
                found[pair["values"]] += pair["counts"]
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(count, plan_reads(plan_units(catalog))):
            counts.update(found)
    return counts


def _not_utf8(catalog: Catalog, unit: Unit, label_column: str, id_column: str) -> CatalogError:
    ((_, table),) = read_units(catalog.location.filesystem, [unit], catalog.schema)
    written = table.column(label_column).combine_chunks()
    if is_list(written.type):
        bad = np.any([undecodable(strings) for strings in _strings(written.flatten())], axis=0)
        row = pc.list_parent_indices(written)[int(bad.argmax())].as_py()
    else:
        row = int(undecodable(written).argmax())
    where = unit.name_of(row, table.column(id_column))
    return CatalogError(
        f"catalog {catalog.location}: column {label_column!r} of {where} is not valid UTF-8; mend it there"
    )


def _strings(values: pa.Array) -> list[pa.Array]:
    """The strings of labels: those of all fields, where they are structs."""
    if not pa.types.is_struct(values.type):
        return [values]
    return [pc.struct_field(values, field.name) for field in values.type if is_string(field.type)]


def normalise_names(counts: Counter[str | None]) -> tuple[dict[str, str], Counter[str]]:
    """(name of tags as written → without white space around it, tags per such name)"""
    names = {written: written.strip() for written in counts if written and written.strip()}
    rows: Counter[str] = Counter()
    for written, name in names.items():
        rows[name] += counts[written]
    return names, rows


def normalise_labels(
    counts: Counter[str | None], catalog: str, label_column: str
) -> tuple[dict[str, str], Counter[str]]:
    """(path as written → normalised path, rows per normalised path). Raises CatalogError naming malformed paths."""
    names: dict[str, str] = {}
    rows: Counter[str] = Counter()
    malformed = []
    for written, count in counts.items():
        if written is None or not written.strip():
            continue
        try:
            names[written] = SEPARATOR.join(parse_path(written))
            rows[names[written]] += count
        except ValueError as problem:
            malformed.append((written, str(problem), count))
    if malformed:
        example, what, _ = malformed[0]
        raise CatalogError(
            f"catalog {catalog}: column {label_column!r} has malformed category paths in {sum(m[2] for m in malformed)} rows, "
            f"for example {example!r} ({what}); write levels as 'A > B > C'"
        )
    return names, rows
