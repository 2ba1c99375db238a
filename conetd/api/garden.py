"""Which of Garden's requests the private socket answers, in Garden's own form: bodies, errors, statuses, line ends."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any
from urllib.parse import unquote_plus

from aiohttp import web

from conetd.api.answers import HEADERS
from conetd.api.calls import body_as, call_of, change, read
from conetd.api.errors import Forbidden
from conetd.api.service import Service
from conetd.errors import ConetError, Invalid
from conetd.garden import gojson, wire
from conetd.garden.answers import UnknownHandle, error_object, error_status
from conetd.model import check_handle

PREFIX = "/garden/"


def garden_routes(service: Service, reads: Executor) -> list[web.RouteDef]:
    """The routes below `/garden/`."""
    routes = _Routes(service, reads)
    container = "/garden/containers/{handle:[^/]+}"
    return [
        web.post(f"{container}/net/in", routes.net_in),
        web.post(f"{container}/net/out", routes.net_out),
        web.post(f"{container}/net/out/bulk", routes.bulk_net_out),
        web.get(f"{container}/limits/bandwidth", routes.bandwidth),
        web.get(f"{container}/info", routes.info),
        web.get(f"{container}/metrics", routes.metrics),
        web.get("/garden/containers/bulk_info", routes.bulk_info),
        web.get("/garden/containers/bulk_metrics", routes.bulk_metrics),
    ]


def refuse(error: ConetError, raised: web.HTTPException | None) -> web.Response:
    """A refusal as Garden's server words it: what its router refuses is plain text, all else the error object."""
    if isinstance(raised, web.HTTPNotFound):
        return _plain(404, "404 page not found")
    if isinstance(raised, web.HTTPMethodNotAllowed):
        return _plain(405, "Method Not Allowed", {"Allow": ", ".join(sorted(raised.allowed_methods))})
    status = error.status if isinstance(error, Forbidden) else error_status(error)
    return _answer(error_object(error), status)


class _Routes:
    def __init__(self, service: Service, reads: Executor) -> None:
        self._service = service
        self._reads = reads

    # The body is decoded first and the container looked up second, so a bad body is told of whatever the handle.

    async def net_in(self, request: web.Request) -> web.Response:
        asked = await body_as(request, self._reads, wire.net_in_request)
        return _answer(await change(self._service.net_in(_handle_of(request), asked, call_of(request))))

    async def net_out(self, request: web.Request) -> web.Response:
        rule = await body_as(request, self._reads, wire.net_out_request)
        await change(self._service.net_out(_handle_of(request), (rule,), bulk=False))
        return _answer({})

    async def bulk_net_out(self, request: web.Request) -> web.Response:
        rules = await body_as(request, self._reads, wire.bulk_net_out_request)
        await change(self._service.net_out(_handle_of(request), rules, bulk=True))
        return _answer({})

    async def bandwidth(self, request: web.Request) -> web.Response:
        await read(self._reads, self._service.info, _handle_of(request))
        return _answer({})  # whatever was asked for when the container was made: Guardian limits nothing

    async def info(self, request: web.Request) -> web.Response:
        return _answer(await read(self._reads, self._service.info, _handle_of(request)))

    async def metrics(self, request: web.Request) -> web.Response:
        return _answer(await read(self._reads, self._service.metrics, _handle_of(request)))

    async def bulk_info(self, request: web.Request) -> web.Response:
        return _answer(await read(self._reads, self._service.bulk_info, _handles_of(request)))

    async def bulk_metrics(self, request: web.Request) -> web.Response:
        return _answer(await read(self._reads, self._service.bulk_metrics, _handles_of(request)))


def _handle_of(request: web.Request) -> str:
    """The handle in the path, decoded as Garden's router does: `+` is a space, and `%2F` does not end the segment.

    Raises UnknownHandle for one that no container can have.
    """
    handle = unquote_plus(request.rel_url.raw_path.split("/")[3])
    try:
        return check_handle(handle)
    except Invalid as err:
        raise UnknownHandle(handle) from err


def _handles_of(request: web.Request) -> list[str]:
    handles = request.query.get("handles", "")
    return handles.split(",") if handles else []


def _answer(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=gojson.encode(document), status=status, headers=HEADERS)


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    # as net/http's Error writes it
    told = {"Server": HEADERS["Server"], "X-Content-Type-Options": "nosniff", **(headers or {})}
    return web.Response(text=text + "\n", status=status, headers=told)
