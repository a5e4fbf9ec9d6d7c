"""What the types of a catalog's columns mean."""

import pyarrow as pa

# Tags of words: stretches of a text, or values that stand somewhere in it.
SPANS, VALUES = "stretches", "values"
OF_TAGS = ("field", "start", "end", "name", "value")


def is_picture(kind: pa.DataType) -> bool:
    """Whether such a column may hold pictures: bytes, where they lie, or a struct of both as Hugging Face datasets have it."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        contents, path = fields.get("bytes", pa.string()), fields.get("path", pa.string())
        return (is_binary(contents) or _is_null(contents)) and (is_string(path) or _is_null(path))
    return is_binary(kind) or is_string(kind) or _is_null(kind)


def _is_null(kind: pa.DataType) -> bool:
    """Of a column, or a part of one, that nothing is written in."""
    return bool(pa.types.is_null(kind))


def is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_untold(kind: pa.DataType) -> bool:
    """Whether no row of a file says what a label column has: its writer saw nulls or empty lists alone."""
    return _is_null(kind) or (is_list(kind) and _is_null(kind.value_type))


def label_kind(kind: pa.DataType) -> str | None:
    """What a label column has: one path per row, lists of paths, or tags as SPANS (lists of structs of field, start, end and name) or
    VALUES (of name and value); None where it has none of them."""
    if is_string(kind):
        return "one path per row"
    if not is_list(kind):
        return None
    if is_string(kind.value_type):
        return "lists of paths"
    if not pa.types.is_struct(kind.value_type):
        return None
    fields = {field.name: field.type for field in kind.value_type}
    texts = {name for name, one in fields.items() if is_string(one)}
    numbers = {name for name, one in fields.items() if pa.types.is_integer(one)}
    if {"field", "name"} <= texts and {"start", "end"} <= numbers:
        return SPANS
    return VALUES if {"name", "value"} <= texts else None


def is_tags(kind: pa.DataType) -> bool:
    """Whether a label column has tags of words."""
    return label_kind(kind) in (SPANS, VALUES)
