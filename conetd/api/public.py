"""Which requests clients and operators can make: the public socket's routes."""

from __future__ import annotations

from concurrent.futures import Executor

from aiohttp import web

from conetd.api.answers import answer, no_content, speak_json
from conetd.api.bodies import BODY_MAX
from conetd.api.calls import body_object, change, handle_of, read
from conetd.api.service import Service


def public_application(service: Service, reads: Executor) -> web.Application:
    """The public socket's application. `reads` is where the service's reads run."""
    routes = _Routes(service, reads)
    app = web.Application(middlewares=[speak_json], client_max_size=BODY_MAX)
    app.add_routes(
        [
            web.get("/networks", routes.networks),
            web.post("/networks", routes.create_network),
            web.get("/networks/{name:[^/]+}", routes.network),
            web.delete("/networks/{name:[^/]+}", routes.delete_network),
            web.put("/networks/{name:[^/]+}/default_policy", routes.replace_default_policy),
            web.get("/containers", routes.containers),
            web.get("/containers/{handle:[^/]+}", routes.container),
            web.delete("/containers/{handle:[^/]+}", routes.forget),
            web.put("/containers/{handle:[^/]+}/config", routes.configure),
            web.get("/containers/{handle:[^/]+}/policy", routes.policy),
            web.put("/containers/{handle:[^/]+}/policy", routes.replace_policy),
            web.delete("/cluster/hosts/{host:[^/]+}", routes.forget_host),
            web.get("/drivers", routes.drivers),
            web.get("/status", routes.status),
        ]
    )
    return app


class _Routes:
    def __init__(self, service: Service, reads: Executor) -> None:
        self._service = service
        self._reads = reads

    async def networks(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.networks))

    async def network(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.network, request.match_info["name"]))

    async def create_network(self, request: web.Request) -> web.Response:
        document = await body_object(request, self._reads)
        created, network = await change(self._service.create_network(document))
        return answer(network, 201 if created else 200)

    async def replace_default_policy(self, request: web.Request) -> web.Response:
        document = await body_object(request, self._reads)
        return answer(await change(self._service.replace_default_policy(request.match_info["name"], document)))

    async def delete_network(self, request: web.Request) -> web.Response:
        await change(self._service.delete_network(request.match_info["name"]))
        return no_content()

    async def containers(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.containers))

    async def container(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.container, handle_of(request)))

    async def configure(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        document = await body_object(request, self._reads)
        created, container = await change(self._service.configure(handle, document))
        return answer(container, 201 if created else 200)

    async def forget(self, request: web.Request) -> web.Response:
        await change(self._service.forget(handle_of(request)))
        return no_content()

    async def policy(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.policy, handle_of(request)))

    async def replace_policy(self, request: web.Request) -> web.Response:
        handle = handle_of(request)
        document = await body_object(request, self._reads)
        return answer(await change(self._service.replace_policy(handle, document)))

    async def forget_host(self, request: web.Request) -> web.Response:
        await change(self._service.forget_host(request.match_info["host"]))
        return no_content()

    async def drivers(self, request: web.Request) -> web.Response:
        return answer(await read(self._reads, self._service.drivers))

    async def status(self, request: web.Request) -> web.Response:
        healthy, document = await read(self._reads, self._service.status)
        return answer(document, 200 if healthy else 503)
