"""How the two applications are served on their sockets, and how they stop."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from conetd.api.answers import refusal
from conetd.api.errors import BadRequest
from conetd.api.sockets import BACKLOG, ListeningSocket

_LOG = logging.getLogger(__name__)


class Doors:
    """Applications served on listening sockets, from `open` to `close`."""

    def __init__(self, *, patience_s: float) -> None:
        """`patience_s`: how long `close` waits for requests under way."""
        self._patience_s = patience_s
        self._listening: list[asyncio.Server] = []
        self._runners: list[web.AppRunner] = []

    async def open(self, app: web.Application, listening: ListeningSocket, line_max: int = 8190) -> None:
        """Answer requests on the socket, those also that came since it listens. `line_max`: bytes of a request line."""
        loop = asyncio.get_running_loop()
        runner = web.AppRunner(app, shutdown_timeout=self._patience_s)
        await runner.setup()
        self._runners.append(runner)
        manager = runner.server
        assert manager is not None

        def connection() -> asyncio.BaseProtocol:
            # No access log, and None is how to say so: the middleware writes an event for what changes something.
            return _Connection(manager, loop=loop, access_log=None, logger=_LOG, max_line_size=line_max)  # type: ignore[arg-type]

        self._listening.append(await loop.create_server(connection, sock=listening.socket, backlog=BACKLOG))

    async def close(self) -> None:
        """Accept nothing more, let requests under way end, and close all connections.

        A request that outlasts the patience loses its answer; the work behind it goes on.
        """
        loop = asyncio.get_running_loop()
        for server in self._listening:
            for sock in server.sockets:
                loop.remove_reader(sock)
        # A connection accepted in this turn gets its protocol in the next. On a server that is closed by then asyncio
        # loses it: neither served nor closed.
        await asyncio.sleep(0)
        for server in self._listening:
            server.close()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))
        self._listening.clear()
        self._runners.clear()


class _Connection(web.RequestHandler):
    """A connection on which what is no HTTP is refused in the words of all other refusals.

    Such a request never reaches an application; aiohttp would answer in plain text and log a traceback.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != 400 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        reason = next(iter((message or "").split("\n")), "").strip(" :") or "it cannot be parsed"
        _LOG.debug("request refused", extra={"status": status, "reason": reason})
        response = refusal(BadRequest(f"the request is not HTTP as conetd takes it: {reason}"))
        response.force_close()  # where the next request would begin is unknown
        return response
