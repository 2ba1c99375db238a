"""Which requests the container engine's hook can make, as OCI hook and as Guardian's network plugin."""

from __future__ import annotations

import os
from concurrent.futures import Executor

from aiohttp import web

from conetd.api import garden
from conetd.api.answers import Handler, answer, refuse, speaking
from conetd.api.bodies import BODY_MAX
from conetd.api.calls import body_as, body_object, call_of, change, handle_of
from conetd.api.errors import Forbidden
from conetd.api.service import Service
from conetd.api.sockets import peer_uid
from conetd.garden import wire

# bytes, as in Go's net/http: Garden's bulk requests name all containers of a host in their first line
LINE_MAX = 1 << 20


def private_application(service: Service, reads: Executor) -> web.Application:
    """The private socket's application, which answers root and the daemon's own user alone."""
    routes = _Routes(service, reads)
    speak = speaking(lambda request: garden.refuse if request.path.startswith(garden.PREFIX) else refuse)
    app = web.Application(middlewares=[speak, _answer_root_alone], client_max_size=BODY_MAX)
    app.add_routes(
        [
            web.post("/containers/{handle:[^/]+}/up", routes.up),
            web.post("/containers/{handle:[^/]+}/down", routes.down),
            web.post("/containers/{handle:[^/]+}/net-in", routes.net_in),
            web.post("/containers/{handle:[^/]+}/net-out", routes.net_out),
            web.post("/containers/{handle:[^/]+}/bulk-net-out", routes.bulk_net_out),
            *garden.garden_routes(service, reads),
        ]
    )
    return app


@web.middleware
async def _answer_root_alone(request: web.Request, handler: Handler) -> web.StreamResponse:
    # The socket's mode says the same, but not for one who got hold of a connection, or when its mode was widened.
    sock = request.get_extra_info("socket")
    uid = None if sock is None else peer_uid(sock)
    if uid not in (0, os.geteuid()):
        raise Forbidden(f"the private socket is for root, not for uid {uid}")
    return await handler(request)


class _Routes:
    def __init__(self, service: Service, reads: Executor) -> None:
        self._service = service
        self._reads = reads

    async def up(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        document = await body_object(request, self._reads)
        return answer(await change(self._service.up(handle, document)))

    async def down(self, request: web.Request) -> web.Response:
        # The hook sends along whatever the engine gave it; the handle is all that is needed.
        return answer(await change(self._service.down(handle_of(request))))

    # What Guardian's network plugin is called for beside up and down; the answers are what it prints.

    async def net_in(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        asked = await body_as(request, self._reads, wire.plugin_net_in)
        return answer(await change(self._service.net_in(handle, asked, call_of(request))))

    async def net_out(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        rules = await body_as(request, self._reads, wire.plugin_net_out)
        await change(self._service.net_out(handle, rules, bulk=False))
        return answer({})

    async def bulk_net_out(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        rules = await body_as(request, self._reads, wire.plugin_bulk_net_out)
        await change(self._service.net_out(handle, rules, bulk=True))
        return answer({})
