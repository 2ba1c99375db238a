"""How a handler asks the service: reads on threads of their own, changes by their future, bodies bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from aiohttp import web

from conetd.api.bodies import BODY_MAX, parse_object
from conetd.api.errors import BadRequest, TooLarge
from conetd.model import JSON, check_handle

T = TypeVar("T")
# What is parsed in place holds the event loop for a millisecond or two; longer bodies are parsed beside it.
_PARSED_AT_ONCE = 128 << 10  # bytes of JSON, which take about 10 ns each
_WIRE_AT_ONCE = 16 << 10  # bytes of Garden's wire forms, which take about 100 ns each
_CALL_MOST = 255  # characters


async def read(reads: Executor, function: Callable[..., T], *args: Any) -> T:
    """What the function returns, called on one of the threads for reading."""
    return await asyncio.get_running_loop().run_in_executor(reads, function, *args)


async def change(future: Future[T]) -> T:
    """What the change results in. It goes on to its end also when nobody waits for it any more."""
    return await asyncio.shield(asyncio.wrap_future(future))


async def body_object(request: web.Request, reads: Executor) -> JSON:
    """The JSON object in the request's body, whatever content type it claims (curl -d claims a form's).

    Raises TooLarge, MalformedJson, Invalid.
    """
    return await body_as(request, reads, parse_object, _PARSED_AT_ONCE)


async def body_as(
    request: web.Request, reads: Executor, parse: Callable[[bytes], T], at_once: int = _WIRE_AT_ONCE
) -> T:
    """What `parse` makes of the request's body; one of more than `at_once` bytes is parsed beside the event loop.

    Raises TooLarge.
    """
    # Told by the header, the refusal need not wait for the rest; without one `read` counts.
    if request.content_length is not None and request.content_length > BODY_MAX:
        raise TooLarge(f"the body of {request.content_length} bytes is larger than the {BODY_MAX} allowed")
    body = await request.read()
    if len(body) > at_once:
        return await asyncio.get_running_loop().run_in_executor(reads, parse, body)
    return parse(body)


def handle_of(request: web.Request) -> str:
    """The handle in the request's path, percent-decoded once. Raises Invalid."""
    return check_handle(request.match_info["handle"])


def call_of(request: web.Request) -> str | None:
    """How the caller names this one request, so that asking again does nothing twice. Raises BadRequest."""
    name = request.headers.get("Idempotency-Key")
    if name is not None and not 1 <= len(name) <= _CALL_MOST:
        raise BadRequest(f"Idempotency-Key has 1 to {_CALL_MOST} characters, not {len(name)}")
    if name is not None and not name.isascii():
        raise BadRequest(f"Idempotency-Key is ASCII text, not {name!a}")
    return name
