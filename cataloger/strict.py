"""JSON that anybody may have written → an object whose fields have their types and whose rules hold."""

from typing import TypeVar

T = TypeVar("T")


def parse(kind: type[T], data: bytes) -> T:
    """`data` as a dataclass `kind` without its unknown keys: nothing but whole numbers as floats is converted.

    Raises ValueError that names the field and says what is wrong with it; so may `__post_init__`.
    """
    import pydantic  # a tenth of a second that not every task needs

    try:
        return pydantic.TypeAdapter(kind).validate_json(data, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        if problem["type"] == "json_invalid":
            raise ValueError("not valid JSON") from error
        if problem["type"] == "value_error":
            raise ValueError(str(problem["ctx"]["error"])) from error
        field, why = ".".join(map(str, problem["loc"])), problem["msg"]
        raise ValueError(f"{field or 'the whole'}: {why[0].lower()}{why[1:]}") from error
