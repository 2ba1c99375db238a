"""How results and errors become responses, and which line of the log a request leaves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from conetd import __version__
from conetd.api.bodies import BODY_MAX
from conetd.api.errors import BadRequest, MethodNotAllowed, TooLarge, UnknownPath
from conetd.errors import ConetError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LOG = logging.getLogger(__name__)
_SERVER = f"conetd/{__version__}"
HEADERS = {"Content-Type": "application/json", "Server": _SERVER}
_BARE_HEADERS = {"Server": _SERVER}
# Escapes all but ASCII, so that any string there is can be answered.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def answer(document: Any, status: int = 200) -> web.Response:
    """The document as JSON, with a line end for those who read it in a terminal."""
    return web.Response(body=_encode(document).encode() + b"\n", status=status, headers=HEADERS)


def no_content() -> web.Response:
    """204: done, and there is nothing to say."""
    return web.Response(status=204, headers=_BARE_HEADERS)


def refusal(error: ConetError) -> web.Response:
    """`{"error": {"code", "message", "fields"?}}` and what details the error has, with its status."""
    told: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.fields:
        told["fields"] = error.fields
    return answer({"error": told | error.details}, error.status)


Refuse = Callable[[ConetError, web.HTTPException | None], web.Response]
"""Makes the response to an error; the second is what aiohttp raised, where it was aiohttp."""


def refuse(error: ConetError, raised: web.HTTPException | None = None) -> web.Response:
    """A refusal in conetd's own words."""
    response = refusal(error)
    if isinstance(raised, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = raised.headers["Allow"]
    return response


def speaking(refuse_for: Callable[[web.Request], Refuse]) -> Middleware:
    """A middleware that turns whatever goes wrong in a handler into a refusal, as `refuse_for` the request words it,
    and logs the request.
    """

    @web.middleware
    async def speak(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        refuse = refuse_for(request)
        try:
            response = await handler(request)
        except ConetError as err:
            response = refuse(err, None)
            _log_request(request, response.status, started, err)
        except web.HTTPException as err:
            # what aiohttp itself refuses: no route, another method, a body beyond client_max_size
            error = _of_aiohttp(request, err)
            response = refuse(error, err)
            _log_request(request, response.status, started, error)
        except web.RequestPayloadError as err:
            response = refuse(BadRequest(f"the body cannot be read: {err}"), None)
        except ConnectionError:
            # The peer went away in the middle of its request. Raised on, this would be logged with a traceback:
            # whoever waited for the handler's task is gone as well. The answer is written to nobody.
            response = refuse(BadRequest("the connection was closed before the request ended"), None)
        except Exception:
            _LOG.exception("request failed", extra=_keys(request, 500, started))
            response = refuse(ConetError("conetd failed in a way it did not expect; its log says how"), None)
        else:
            if request.method != "GET":
                _log_request(request, response.status, started)
        return response

    return speak


speak_json = speaking(lambda request: refuse)


def _of_aiohttp(request: web.Request, err: web.HTTPException) -> ConetError:
    if isinstance(err, web.HTTPNotFound):
        return UnknownPath(f"there is nothing at {request.path}")
    if isinstance(err, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"{request.path} takes {', '.join(sorted(err.allowed_methods))}, not {err.method}")
    if isinstance(err, web.HTTPRequestEntityTooLarge):
        return TooLarge(f"the body is larger than the {BODY_MAX} bytes allowed")
    return BadRequest(err.reason)


def _log_request(request: web.Request, status: int, started: float, error: ConetError | None = None) -> None:
    # Garden's door answers 500 to everything, so what the error is by itself decides
    level = logging.WARNING if (status if error is None else error.status) >= 500 else logging.DEBUG
    if _LOG.isEnabledFor(level):
        keys = _keys(request, status, started)
        if error is not None:
            keys |= {"code": error.code, "reason": error.message}
        _LOG.log(level, "request" if error is None else "request refused", extra=keys)


def _keys(request: web.Request, status: int, started: float) -> dict[str, Any]:
    milliseconds = round((time.perf_counter() - started) * 1000, 1)
    return {"method": request.method, "path": request.path, "status": status, "ms": milliseconds}
