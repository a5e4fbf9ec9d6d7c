"""Values that a program hands over, as a catalog would have them."""

import base64
from collections.abc import Iterable
from typing import Any

import pyarrow as pa


def written(value: Any) -> str | None:
    """As Arrow writes a column of this type; a whole number of any size."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return pa.array([value], from_pandas=True).cast(pa.large_string())[0].as_py()  # type: ignore[no-any-return]


def picture(value: Any) -> bytes | None:
    """Of bytes, the same in base64, or a struct with them; nothing where it is neither: nobody can have a service fetch what lies
    elsewhere."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode("".join(value.rpartition(";base64,")[2].split()), validate=True)
    except ValueError:
        return None


def pictures(values: Iterable[Any]) -> pa.Array:
    return pa.array([picture(value) for value in values], pa.large_binary())
