"""Products as JSON."""

import base64
import json

import pytest

from cataloger.live.products import MOST_PRODUCTS, BadRequest, is_allowed, parse, size_of, table
from cataloger.spec import Picture, Spec

SPEC = Spec(("A", "B"), ("title", "brand"), 16, "mean", "none")
SEES = Spec(("A", "B"), ("title",), 16, "mean", "none", picture=Picture("image", 32))


def test_one_product_and_a_list_of_them() -> None:
    product = {"id": 7, "title": "red shoes", "price": 3.5, "tags": ["new"]}
    assert parse(json.dumps(product).encode(), SPEC, "id") == ([product], True)
    assert parse(json.dumps([product, product]).encode(), SPEC, "id") == ([product, product], False)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 200_000, 400, "the body is not JSON"),
        (b'{"title": NaN}', 400, "NaN is not a number in JSON"),
        (b'{"title": 1e400}', 422, "the product: title is a number"),
        (b'{"id": {"a": 1}, "title": "a"}', 422, "the product: id is an object; send text or a number"),
        (b'{"title": "\\ud800"}', 422, "the product: title has half of a surrogate pair"),
        (b'{"id": "\xed\xa0\x80", "title": "a"}', 422, "the product: id has half of a surrogate pair"),
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
        parse(body, SPEC, "id")
    assert problem.value.status == status


def test_numbers_are_written_as_a_catalog_has_them() -> None:
    found = table([{"title": 5, "brand": 0.5}, {"title": True}, {"title": None, "brand": "x"}], SPEC)
    assert found.to_pydict() == {"title": ["5", "true", None], "brand": ["0.5", None, "x"]}


def test_a_product_that_was_checked_for_another_model_has_nothing_in_what_cannot_be_read() -> None:
    assert table([{"title": ["a"], "brand": "\ud800"}], SPEC).to_pydict() == {"title": [None], "brand": [None]}


def test_a_request_of_many_bytes_takes_room_while_it_waits() -> None:
    assert size_of([{"title": "red shoes"}], SPEC, 30) == 4
    assert size_of([{"title": "red shoes", "page": "x" * 1_000_000}], SPEC, 1_000_000) == 3_906


def test_pictures_come_in_base64_and_from_nowhere_else() -> None:
    sent = base64.b64encode(b"a picture").decode()
    found = table(
        [{"image": sent}, {"image": f"data:image/png;base64,{sent}"}, {"image": "https://inside/secret"}, {}], SEES
    )
    assert found.column("image").to_pylist() == [b"a picture", b"a picture", None, None]
    wrapped = base64.encodebytes(b"a picture" * 20).decode()
    assert "\n" in wrapped
    assert table([{"image": wrapped}], SEES).column("image").to_pylist() == [b"a picture" * 20]
    for image in (5, "https://inside/secret"):
        with pytest.raises(BadRequest, match="image is not a picture in base64"):
            parse(json.dumps({"image": image}).encode(), SEES, "id")


SOURCES = ("https://images.shop.example/", "s3://shop/images/")


@pytest.mark.parametrize(
    ("reference", "allowed"),
    [
        ("https://images.shop.example/a/b.jpg?size=9", True),
        ("s3://shop/images/a.jpg", True),
        ("s3://shop/other/a.jpg", False),
        ("https://images.shop.example.evil.example/a.jpg", False),
        ("https://images.shop.example/../a.jpg", False),
        ("https://images.shop.example/%2e%2E/a.jpg", False),
        ("https://images.shop.example/%252e%252e/a.jpg", False),
        ("https://images.shop.example/a/..;/b.jpg", False),
        ("s3://shop/images/..\\a.jpg", False),
        ("/etc/passwd", False),
        ("file:///etc/passwd", False),
        (None, False),
        (7, False),
    ],
)
def test_pictures_are_fetched_from_where_they_may_be_and_nowhere_else(reference: object, allowed: bool) -> None:
    assert is_allowed(reference, SOURCES) == allowed
    assert not is_allowed(reference, ())


def test_a_picture_is_sent_or_named() -> None:
    sent, named = base64.b64encode(b"a picture").decode(), "s3://shop/images/a.jpg"
    body = json.dumps([{"image": sent}, {"image": named}, {"title": "red"}]).encode()
    products, _ = parse(body, SEES, "id", sources=SOURCES)
    assert table(products, SEES, SOURCES).column("image").to_pylist() == [
        {"bytes": b"a picture", "path": None},
        {"bytes": None, "path": named},
        {"bytes": None, "path": None},
    ]
    with pytest.raises(BadRequest, match="image is not a picture in base64, nor below one of https://images"):
        parse(b'{"image": "s3://other/a.jpg"}', SEES, "id", sources=SOURCES)
    with pytest.raises(BadRequest, match="product 2: image is not a picture in base64$"):
        parse(body, SEES, "id")
