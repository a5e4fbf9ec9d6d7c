"""Products as JSON, and the answers to them: what a request may say, and how the row of published labels is written."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from cataloger.data.album import TOKENS_PER_PICTURE
from cataloger.data.given import picture, pictures, written
from cataloger.explaining.occlusion import Explanation
from cataloger.model.tiers import Labelled
from cataloger.spec import Spec

Product = Mapping[str, Any]
MOST_PRODUCTS = 1_000
# The model is asked about each of these up to 130 times.
MOST_EXPLAINED = 20
# A request of more bytes than this for each token takes more room among those that wait.
BYTES_PER_TOKEN = 256


class BadRequest(Exception):
    """What is wrong with a request, in one sentence, and its HTTP status."""

    def __init__(self, sentence: str, status: int = 422) -> None:
        super().__init__(sentence)
        self.status = status


def is_allowed(reference: Any, sources: Sequence[str]) -> bool:
    """Whether a picture may be fetched from there: below one of the sources, and by no way that leads out of it."""
    if not isinstance(reference, str) or not reference.startswith(tuple(sources)):
        return False
    path = reference.partition("://")[2].partition("?")[0]
    while (plain := unquote(path)) != path:  # some servers decode twice
        path = plain
    steps = (step.partition(";")[0] for step in path.replace("\\", "/").split("/"))
    return not {"..", "."} & set(steps)


def parse(
    body: bytes, spec: Spec, id_column: str, most: int = MOST_PRODUCTS, sources: Sequence[str] = ()
) -> tuple[list[Product], bool]:
    """(products, whether it was a single one, not in a list); pictures may be named that lie below the `sources`. Raises BadRequest."""
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of encodings as well
        raise BadRequest(f"the body is not JSON: {error}", 400) from error
    single = not isinstance(found, list)
    products = [found] if single else found
    if not products:
        raise BadRequest("the list is empty; send one product or more")
    if len(products) > most:
        raise BadRequest(f"{len(products):,} products are too many for one request; send at most {most:,}", 413)
    for number, product in enumerate(products, 1):
        _check(product, "the product" if single else f"product {number}", spec, id_column, sources)
    return products, single


def _check(product: Any, who: str, spec: Spec, id_column: str, sources: Sequence[str]) -> None:
    if not isinstance(product, dict):
        raise BadRequest(f"{who} is {_kind(product)}; send a JSON object with the fields {_columns(spec)}")
    if not product.keys() & set(columns_of(spec)):
        raise BadRequest(f"{who} has none of the fields that the model reads: {_columns(spec)}")
    for name in (id_column, *columns_of(spec)):
        value = product.get(name)
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            raise BadRequest(f"{who}: {name} is {_kind(value)}; send text or a number")
        if isinstance(value, str) and not _is_unicode(value):
            raise BadRequest(f"{who}: {name} has half of a surrogate pair, which no text in UTF-8 has")
    sent = product.get(spec.picture.column) if spec.picture else None
    if spec.picture and sent and not is_allowed(sent, sources) and picture(sent) is None:
        below = f", nor below one of {', '.join(sources)}" if sources else ""
        raise BadRequest(f"{who}: {spec.picture.column} is not a picture in base64{below}")


def columns_of(spec: Spec) -> tuple[str, ...]:
    """What the model reads, in its order."""
    return (*spec.text_columns, *([spec.picture.column] if spec.picture else []))


def table(products: Sequence[Product], spec: Spec, sources: Sequence[str] = ()) -> pa.Table:
    """[products] the columns that the model reads; further fields are left out."""
    columns = {name: pa.array([_text(one.get(name)) for one in products], pa.string()) for name in spec.text_columns}
    if spec.picture:
        given = [one.get(spec.picture.column) for one in products]
        places = [one if is_allowed(one, sources) else None for one in given]
        contents = pictures(None if place else one for one, place in zip(given, places, strict=True))
        # Bytes and places, as a catalog may have both.
        both = pa.StructArray.from_arrays([contents, pa.array(places, pa.large_string())], ["bytes", "path"])
        columns[spec.picture.column] = both if sources else contents
    return pa.table(columns)


def fields(products: Sequence[Product], names: Iterable[str]) -> pa.Table:
    """[products] further columns, as text; those that a product lacks are null."""
    columns = {name: pa.array([_text(one.get(name)) for one in products], pa.string()) for name in names}
    return pa.table(columns) if columns else pa.table({"": pa.nulls(len(products))})


def _text(value: Any) -> str | None:
    """Of a product that was checked for another model it may be anything."""
    return (
        None
        if isinstance(value, list | dict) or (isinstance(value, str) and not _is_unicode(value))
        else written(value)
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def answers(products: Sequence[Product], labelled: Labelled, id_column: str) -> list[dict[str, Any]]:
    """As `label.py` publishes them; of a product without an answer its id and the reason, as among the rejects."""
    reasons = labelled.reasons.to_pylist()
    return [
        {"id": product.get(id_column), **(label if reason is None else {"reason": reason})}
        for product, label, reason in zip(products, labelled.labels.to_pylist(), reasons, strict=True)
    ]


def explanations(
    products: Sequence[Product], labelled: Labelled, found: Sequence[Sequence[Explanation]], id_column: str
) -> list[dict[str, Any]]:
    """Of each product its id and one explanation for each of its categories, or the reason why there is none."""
    reasons = labelled.reasons.to_pylist()
    return [
        {"id": product.get(id_column), **({"explanations": list(map(asdict, own))} if own else {"reason": reason})}
        for product, own, reason in zip(products, found, reasons, strict=True)
    ]


def size_of(products: Sequence[Product], spec: Spec, sent: int) -> int:
    """About how many tokens they have: what a forward pass costs goes by those, and to count them takes a tokenizer. Of a request of many
    bytes it is more, as they take memory while they wait."""
    characters = (sum(len(str(one.get(name) or "")) for name in spec.text_columns) for one in products)
    pictured = TOKENS_PER_PICTURE if spec.picture else 0
    return max(
        sent // BYTES_PER_TOKEN, sum(min(spec.max_tokens, 2 + letters // 4) + pictured for letters in characters)
    )


def _columns(spec: Spec) -> str:
    return ", ".join(columns_of(spec))


def _kind(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
