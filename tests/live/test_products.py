"""Products as JSON."""

import base64
import json

import pytest

from cataloger.live.products import MOST_PRODUCTS, BadRequest, parse, table
from cataloger.spec import Picture, Spec

SPEC = Spec(("A", "B"), ("title", "brand"), 16, "mean", "none")
SEES = Spec(("A", "B"), ("title",), 16, "mean", "none", picture=Picture("image", 32))


def test_one_product_and_a_list_of_them() -> None:
    product = {"id": 7, "title": "red shoes", "price": 3.5, "tags": ["new"]}
    assert parse(json.dumps(product).encode(), SPEC) == ([product], True)
    assert parse(json.dumps([product, product]).encode(), SPEC) == ([product, product], False)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[]", 422, "the list is empty; send one product or more"),
        (b'"red shoes"', 422, "the product is text; send a JSON object with the fields title, brand"),
        (b'[{"title": "a"}, 5]', 422, "product 2 is a number; send a JSON object"),
        (b'{"name": "red shoes"}', 422, "the product has none of the fields that the model reads: title, brand"),
        (b'[{"title": "a"}, {"title": ["b"]}]', 422, "product 2: title is a list; send text or a number"),
        (
            json.dumps([{"title": "a"}] * (MOST_PRODUCTS + 1)).encode(),
            413,
            "1,001 products are too many for one request",
        ),
    ],
)
def test_what_cannot_be_read_is_said(body: bytes, status: int, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence) as problem:
        parse(body, SPEC)
    assert problem.value.status == status


def test_numbers_are_written_as_a_catalog_has_them() -> None:
    found = table([{"title": 5, "brand": 0.5}, {"title": True}, {"title": None, "brand": "x"}], SPEC)
    assert found.to_pydict() == {"title": ["5", "true", None], "brand": ["0.5", None, "x"]}


def test_pictures_come_in_base64_and_from_nowhere_else() -> None:
    sent = base64.b64encode(b"a picture").decode()
    found = table(
        [{"image": sent}, {"image": f"data:image/png;base64,{sent}"}, {"image": "https://inside/secret"}, {}], SEES
    )
    assert found.column("image").to_pylist() == [b"a picture", b"a picture", None, None]
    with pytest.raises(BadRequest, match="image is a number; send the picture in base64"):
        parse(b'{"image": 5}', SEES)
