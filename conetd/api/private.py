"""Which requests the container engine's hook can make: the private socket's routes."""

from __future__ import annotations

import os
from concurrent.futures import Executor

from aiohttp import web

from conetd.api.answers import Handler, answer, speak_json
from conetd.api.bodies import BODY_MAX
from conetd.api.calls import body_object, change, handle_of
from conetd.api.errors import Forbidden
from conetd.api.service import Service
from conetd.api.sockets import peer_uid


def private_application(service: Service, reads: Executor) -> web.Application:
    """The private socket's application, which answers root and the daemon's own user alone."""
    routes = _Routes(service, reads)
    app = web.Application(middlewares=[speak_json, _answer_root_alone], client_max_size=BODY_MAX)
    app.add_routes(
        [
            web.post("/containers/{handle:[^/]+}/up", routes.up),
            web.post("/containers/{handle:[^/]+}/down", routes.down),
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
