"""How results and errors become responses, and which line of the log a request leaves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from conetd import __version__
from conetd.api.bodies import BODY_MAX
from conetd.api.errors import BadRequest, MethodNotAllowed, TooLarge, UnknownPath
from conetd.errors import ConetError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOG = logging.getLogger(__name__)
_SERVER = f"conetd/{__version__}"
_HEADERS = {"Content-Type": "application/json", "Server": _SERVER}
_BARE_HEADERS = {"Server": _SERVER}
# Escapes all but ASCII, so that any string there is can be answered.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def answer(document: Any, status: int = 200) -> web.Response:
    """The document as JSON, with a line end for those who read it in a terminal."""
    return web.Response(body=_encode(document).encode() + b"\n", status=status, headers=_HEADERS)


def no_content() -> web.Response:
    """204: done, and there is nothing to say."""
    return web.Response(status=204, headers=_BARE_HEADERS)


def refusal(error: ConetError) -> web.Response:
    """`{"error": {"code", "message", "fields"?}}` and what details the error has, with its status."""
    told: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.fields:
        told["fields"] = error.fields
    return answer({"error": told | error.details}, error.status)


@web.middleware
async def speak_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong in a handler into a refusal, and log the request."""
    started = time.perf_counter()
    try:
        response = await handler(request)
    except ConetError as err:
        response = refusal(err)
        _log_request(request, response.status, started, err)
    except web.HTTPException as err:
        # what aiohttp itself refuses: no route, another method, a body beyond client_max_size
        error = _of_aiohttp(request, err)
        response = refusal(error)
        if isinstance(err, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = err.headers["Allow"]
        _log_request(request, response.status, started, error)
    except web.RequestPayloadError as err:
        response = refusal(BadRequest(f"the body cannot be read: {err}"))
    except ConnectionError:
        # The peer went away in the middle of its request. Raised on, this would be logged with a traceback: whoever
        # waited for the handler's task is gone as well. The answer is written to nobody.
        response = refusal(BadRequest("the connection was closed before the request ended"))
    except Exception:
        _LOG.exception("request failed", extra=_keys(request, 500, started))
        response = refusal(ConetError("conetd failed in a way it did not expect; its log says how"))
    else:
        if request.method != "GET":
            _log_request(request, response.status, started)
    return response


def _of_aiohttp(request: web.Request, err: web.HTTPException) -> ConetError:
    if isinstance(err, web.HTTPNotFound):
        return UnknownPath(f"there is nothing at {request.path}")
    if isinstance(err, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"{request.path} takes {', '.join(sorted(err.allowed_methods))}, not {err.method}")
    if isinstance(err, web.HTTPRequestEntityTooLarge):
        return TooLarge(f"the body is larger than the {BODY_MAX} bytes allowed")
    return BadRequest(err.reason)


def _log_request(request: web.Request, status: int, started: float, error: ConetError | None = None) -> None:
    level = logging.WARNING if status >= 500 else logging.DEBUG
    if _LOG.isEnabledFor(level):
        keys = _keys(request, status, started)
        if error is not None:
            keys |= {"code": error.code, "reason": error.message}
        _LOG.log(level, "request" if error is None else "request refused", extra=keys)


def _keys(request: web.Request, status: int, started: float) -> dict[str, Any]:
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    return {"method": request.method, "path": request.path, "status": status, "ms": milliseconds}
