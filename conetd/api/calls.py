"""How a handler asks the service: reads on threads of their own, changes by their future, bodies bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

from aiohttp import web

from conetd.api.bodies import BODY_MAX, parse_object
from conetd.api.errors import TooLarge
from conetd.model import JSON, check_handle

T = TypeVar("T")
# Parsing holds the event loop for about 10 ns a byte; longer bodies are parsed beside it.
_PARSED_AT_ONCE = 128 << 10  # bytes


async def read(reads: Executor, function: Callable[..., T], *args: str) -> T:
    """What the function returns, called on one of the threads for reading."""
    return await asyncio.get_running_loop().run_in_executor(reads, function, *args)


async def change(future: Future[T]) -> T:
    """What the change results in. It goes on to its end also when nobody waits for it any more."""
    return await asyncio.shield(asyncio.wrap_future(future))


async def body_object(request: web.Request, reads: Executor) -> JSON:
    """The JSON object in the request's body, whatever content type it claims (curl -d claims a form's).

    Raises TooLarge, MalformedJson, Invalid.
    """
    # Told by the header, the refusal need not wait for the rest; without one `read` counts.
    if request.content_length is not None and request.content_length > BODY_MAX:
        raise TooLarge(f"the body of {request.content_length} bytes is larger than the {BODY_MAX} allowed")
    body = await request.read()
    if len(body) > _PARSED_AT_ONCE:
        return await asyncio.get_running_loop().run_in_executor(reads, parse_object, body)
    return parse_object(body)


def handle_of(request: web.Request) -> str:
    """The handle in the request's path, percent-decoded once. Raises Invalid."""
    return check_handle(request.match_info["handle"])
