"""The columns that the files of a catalog must have, and the type that each is read as."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from cataloger.data.kinds import OF_TAGS, is_binary, is_list, is_picture, is_string, is_untold, label_kind
from cataloger.errors import CatalogError


def check_columns(
    file: tuple[str, pa.Schema],
    first: tuple[str, pa.Schema],
    id_column: str,
    plain: Mapping[str, str],
    labels: Mapping[str, tuple[str, pa.DataType]],
    image_column: str | None,
) -> None:
    """Raises CatalogError where a file, its path and its schema, lacks a column, or has it of another type than it must have, or than the
    first file has it: of a label column the first that has labels (`told`)."""
    (path, schema), (first_path, first_schema) = file, first
    wanted = [(id_column, "--id-column"), *plain.items()]
    wanted += [(name, "--label-column") for name in labels]
    wanted += [(image_column, "--image-column")] if image_column else []
    for name, flag in wanted:
        if schema.names.count(name) > 1:
            raise CatalogError(
                f"catalog file {path}: has {schema.names.count(name)} columns {name!r}, and which one is meant cannot be told; "
                f"rename them, or name another one with {flag}"
            )
        if name not in schema.names:
            raise CatalogError(
                f"catalog file {path}: no column {name!r}; it has {', '.join(schema.names)}; name the right one with {flag}"
            )
    for name, flag in plain.items():
        found = schema.field(name).type
        if not (
            is_string(found) or pa.types.is_primitive(found) or pa.types.is_decimal(found) or pa.types.is_null(found)
        ):
            raise CatalogError(
                f"catalog file {path}: column {name!r} is {found}, expected a string or a number; name another one with {flag}"
            )
    for label_column, (other_path, in_other) in labels.items():
        found = schema.field(label_column).type
        kind = label_kind(found)
        if is_untold(found) and not is_untold(in_other):
            continue
        if kind is None:
            raise CatalogError(
                f"catalog file {path}: column {label_column!r} is {found}, expected strings such as 'A > B', lists of them, or tags: "
                "lists of structs of field, start, end and name, or of name and value; name it with --label-column"
            )
        if kind != label_kind(in_other):
            raise CatalogError(
                f"catalog file {path}: column {label_column!r} is {found}, but {in_other} in {other_path}; write one type in all files"
            )
    if image_column:
        found, in_first = (one.field(image_column).type for one in (schema, first_schema))
        if not is_picture(found):
            raise CatalogError(
                f"catalog file {path}: column {image_column!r} is {found}, expected bytes, structs of bytes and path, or strings that "
                "say where each picture lies; name another one with --image-column"
            )
        if pa.null() not in (found, in_first) and _picture_kind(found) != _picture_kind(in_first):
            raise CatalogError(
                f"catalog file {path}: column {image_column!r} is {found}, but {in_first} in {first_path}; write one type in all files"
            )
    found, expected = schema.field(id_column).type, first_schema.field(id_column).type
    if not (is_string(found) or pa.types.is_integer(found)):
        raise CatalogError(
            f"catalog file {path}: column {id_column!r} is {found}, expected a string or an integer; name it with --id-column"
        )
    if is_string(found) != is_string(expected):
        raise CatalogError(
            f"catalog file {path}: column {id_column!r} is {found}, but {expected} in {first_path}; write one type in all files"
        )


def told(label_columns: Sequence[str], files: Sequence[tuple[str, pa.Schema]]) -> dict[str, tuple[str, pa.DataType]]:
    """For each label column the first of these files that has labels in it, or the first of all, with the column's type there."""
    found: dict[str, tuple[str, pa.DataType]] = {}
    for name in label_columns:
        there = [(path, schema.field(name).type) for path, schema in files if schema.names.count(name) == 1]
        found[name] = next((one for one in there if not is_untold(one[1])), (there or [("", pa.null())])[0])
    return found


def common_type(types: set[pa.DataType]) -> pa.DataType:
    """The type to read a column as that has these in its files; dictionaries as their values, for all parts of a run alike."""
    types = {kind.value_type if pa.types.is_dictionary(kind) else kind for kind in types}
    types = {kind for kind in types if not is_untold(kind)} or types - {pa.null()} or types
    if len(types) == 1:
        return next(iter(types))
    if all(is_binary(kind) for kind in types):
        return pa.large_binary()
    if all(pa.types.is_struct(kind) for kind in types):
        names = [field.name for field in next(iter(types))]
        return pa.struct([(name, pa.large_binary() if name == "bytes" else pa.large_string()) for name in names])
    if all(is_list(kind) and pa.types.is_struct(kind.value_type) for kind in types):
        names = [name for name in OF_TAGS if all(kind.value_type.get_field_index(name) >= 0 for kind in types)]
        numbers = ("start", "end")
        return pa.list_(pa.struct([(name, pa.int64() if name in numbers else pa.large_string()) for name in names]))
    if all(is_list(kind) for kind in types):
        return pa.list_(pa.large_string())
    if all(pa.types.is_integer(kind) for kind in types) and pa.uint64() not in types:
        return pa.int64()
    return pa.large_string()


def _picture_kind(kind: pa.DataType) -> str:
    return (
        " ".join(field.name for field in kind) if pa.types.is_struct(kind) else "text" if is_string(kind) else "bytes"
    )
