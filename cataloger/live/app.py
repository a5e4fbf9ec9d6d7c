"""The HTTP side of a service: its addresses, what they take, and which status they answer with."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cataloger import __version__
from cataloger.errors import ConfigError
from cataloger.live.batches import Batches, Overloaded
from cataloger.live.following import Followed
from cataloger.live.measures import Measures
from cataloger.live.products import MOST_EXPLAINED, MOST_PRODUCTS, BadRequest, Product, columns_of, parse, size_of
from cataloger.spec import Spec

# Bytes of a request: of texts, and of pictures in base64.
MOST_BYTES, MOST_BYTES_WITH_PICTURES = 4 << 20, 64 << 20
MOST_DISCARDED = 4
LARGE = 64 << 10
# A caller that has not been answered by then is told so.
SECONDS = 30.0
# What anybody may ask.
OPEN = ("/health",)
COUNTED = ("/categorize", "/explain")
PROBLEMS = {
    "400": "The body is not JSON.",
    "401": "The token is missing, or wrong.",
    "413": "The body, or the list, is too large.",
    "422": "A product has none of the model's fields, or nothing to read in them.",
    "429": "Too many products wait; Retry-After says when to ask again.",
    "503": "There was no answer in time; ask again.",
}


def application(
    model: Followed, batches: Batches, explaining: Batches, measures: Measures, token_sha256: str | None
) -> ASGIApp:
    """The service of a model. With the digest of a token, only those who send it are answered."""
    answering = model.answering
    app = FastAPI(title="cataloger", version=__version__, docs_url="/docs", redoc_url=None)

    async def parsed(body: bytes, spec: Spec, most: int) -> tuple[list[Product], bool]:
        arguments = body, spec, answering.id_column, most, answering.image_sources
        # A large one would keep all others waiting.
        return await asyncio.to_thread(parse, *arguments) if len(body) > LARGE else parse(*arguments)

    @app.post("/categorize", openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}}}})
    async def categorize(request: Request) -> Response:
        """The category of one product, or of each product of a list, in its order. Further fields are ignored."""
        spec = model.now.spec
        body = await _body(request, MOST_BYTES_WITH_PICTURES if spec.picture else MOST_BYTES)
        products, single = await parsed(body, spec, MOST_PRODUCTS)
        found = await asyncio.wait_for(batches.ask(products, size_of(products, spec, len(body))), SECONDS)
        if single and "reason" in found[0]:
            raise BadRequest(f"the product cannot be categorized: {found[0]['reason']}")
        return _json(found[0] if single else found)

    @app.post("/explain", openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}}}})
    async def explain(request: Request) -> Response:
        """Why one product has its category, or each product of a short list: the words, and parts of the picture, that speak for it."""
        spec = model.now.spec
        body = await _body(request, MOST_BYTES_WITH_PICTURES if spec.picture else MOST_BYTES)
        products, single = await parsed(body, spec, MOST_EXPLAINED)
        found = await asyncio.wait_for(explaining.ask(products, len(products)), SECONDS)
        if single and "reason" in found[0]:
            raise BadRequest(f"the product cannot be categorized: {found[0]['reason']}")
        return _json(found[0] if single else found)

    @app.get("/model")
    def about() -> Response:
        """Which model answers."""
        now = model.now
        return _json(
            {
                "model": model.uri,
                "version": now.source.version,
                "refused": model.refused,
                "fingerprint": now.digest,
                "columns": list(columns_of(now.spec)),
                "answers": now.tiers.columns.answer,
                "categories": list(now.spec.categories),
            }
        )

    @app.get("/health")
    def health() -> Response:
        """Whether the service is ready."""
        return _json({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus: of all replicas."""
        return PlainTextResponse(await asyncio.to_thread(measures.text))

    def refused(status: int, sentence: str, **headers: str) -> Response:
        return JSONResponse(
            {"detail": sentence}, status, {name.replace("_", "-"): value for name, value in headers.items()}
        )

    async def on_bad_request(_: Request, problem: Any) -> Response:
        return refused(problem.status, str(problem))

    async def on_config(_: Request, problem: Any) -> Response:
        return refused(422, str(problem))

    async def on_overload(_: Request, problem: Any) -> Response:
        return refused(429, str(problem), Retry_After=str(problem.seconds))

    async def on_timeout(_: Request, __: Any) -> Response:
        return refused(503, f"no answer within {SECONDS:.0f} s; ask again", Retry_After="1")

    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        BadRequest: on_bad_request,
        ConfigError: on_config,
        Overloaded: on_overload,
        TimeoutError: on_timeout,
    }
    for problem, handler in handlers.items():
        app.add_exception_handler(problem, handler)
    app.openapi = lambda: _openapi(app, model)  # type: ignore[method-assign]  # as FastAPI has it
    return Measured(Guarded(app, token_sha256), measures)


async def _body(request: Request, most: int) -> bytes:
    """Raises BadRequest for one that is too large; the rest of it is read, as callers listen when they have sent all, but not kept."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            body += chunk
        elif size > MOST_DISCARDED * most:
            break
    if size > most:
        raise BadRequest(f"the body is larger than {most >> 20} MiB; send fewer products at a time", 413)
    return bytes(body)


def _json(content: Any) -> Response:
    return Response(
        json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")), media_type="application/json"
    )


def _openapi(app: FastAPI, model: Followed) -> dict[str, Any]:
    """With a product, and the answer that this model has for it."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    product, answer = model.now.example
    fields = {
        name: {"type": ["string", "number", "null"]}
        if name in model.now.spec.text_columns
        else {"type": ["string", "null"]}
        for name in columns_of(model.now.spec)
    }
    one = {"type": "object", "properties": {model.answering.id_column: {}, **fields}}
    for path, most, given, about in (
        ("/categorize", MOST_PRODUCTS, answer, "The published columns."),
        ("/explain", MOST_EXPLAINED, model.now.explained, "An explanation for each category of the product."),
    ):
        operation = schema["paths"][path]["post"]
        operation["requestBody"]["content"]["application/json"] = {
            "schema": {"oneOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": most}]},
            "examples": {"one product": {"value": product}, "a list": {"value": [product]}},
        }
        operation["responses"] = {
            "200": {"description": about, "content": {"application/json": {"example": given}}},
            **{
                status: {
                    "description": why,
                    "content": {"application/json": {"schema": {"properties": {"detail": {"type": "string"}}}}},
                }
                for status, why in PROBLEMS.items()
            },
        }
    return schema


class Guarded:
    """Lets those in who send the token, and everybody to what is open."""

    def __init__(self, app: ASGIApp, token_sha256: str | None) -> None:
        self.app, self.expected = app, token_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.expected and scope["path"] not in OPEN:
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            known = hmac.compare_digest(hashlib.sha256(given.strip()).hexdigest(), self.expected)
            if scheme.lower() != b"bearer" or not known:
                sentence = "send the token of this service as `Authorization: Bearer TOKEN`"
                refused = JSONResponse({"detail": sentence}, 401, {"WWW-Authenticate": "Bearer"})
                await refused(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Measured:
    """Counts requests by their status, and how long they took."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in COUNTED:
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            self.measures.answered(scope["path"], status, time.monotonic() - started)
