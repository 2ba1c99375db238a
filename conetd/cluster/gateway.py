"""Which member of etcd is asked, and as whom. etcd answers JSON over HTTP by its gRPC gateway."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from conetd.cluster.answers import read_answer
from conetd.cluster.connections import Connections, Endpoint, Tls
from conetd.cluster.errors import EtcdDown, EtcdRefused, MemberFailed, TokenRefused
from conetd.model import JSON

T = TypeVar("T")

WHOLE_CALL = 3  # times the timeout of one attempt: how long a call may go from member to member
_PAUSE_S = 0.1  # between two rounds over the members


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user of etcd's own, with its password."""

    user: str
    password: str = field(repr=False)


class Gateway:
    """The members of one etcd. From any thread."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        self.endpoints = tuple(Endpoint.of(url) for url in endpoints)
        self.timeout_s = timeout_s
        self.connections = Connections(tls or Tls(), secured=any(one.tls for one in self.endpoints))
        self._credentials = credentials
        self._token: str | None = None
        # not all hosts of a cluster should ask the member that is listed first
        self._first = random.randrange(len(self.endpoints))

    def in_turn(self) -> list[Endpoint]:
        """The members, the one that answered last first."""
        first = self._first
        return [*self.endpoints[first:], *self.endpoints[:first]]

    def call(self, path: str, body: JSON) -> tuple[JSON, bool]:
        """The answer of a member, and whether an earlier attempt may have been carried out, too. Raises EtcdDown."""
        unsure: list[bool] = []

        def attempt(endpoint: Endpoint, timeout_s: float) -> JSON:
            try:
                return self.ask(endpoint, path, body, timeout_s)
            except MemberFailed as err:
                unsure.append(err.unsure)
                raise

        return self.reach(attempt), any(unsure)

    def reach(self, attempt: Callable[[Endpoint, float], T]) -> T:
        """What the first attempt gives that does not fail; it gets a member and a timeout in seconds.

        Members are asked in turn: once where none can be connected to, and else until three times the timeout is over,
        because an election takes a moment. Raises EtcdDown.
        """
        deadline = time.monotonic() + WHOLE_CALL * self.timeout_s
        reasons: dict[str, str] = {}
        while True:
            alive = False
            for endpoint in self.in_turn():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                try:
                    result = attempt(endpoint, min(self.timeout_s, left))
                except MemberFailed as err:
                    reasons[endpoint.url] = str(err)
                    alive = alive or err.alive
                else:
                    self._first = self.endpoints.index(endpoint)
                    return result
            if not alive or time.monotonic() + _PAUSE_S >= deadline:
                raise EtcdDown.of(reasons)
            time.sleep(_PAUSE_S)

    def ask(self, endpoint: Endpoint, path: str, body: JSON, timeout_s: float, *, leader: bool = True) -> JSON:
        """The answer of this member; `leader`: only if it knows one. Raises MemberFailed, or what etcd refuses by."""

        def exchange(headers: dict[str, str]) -> JSON:
            return self._exchange(endpoint, path, body, timeout_s, headers)

        return self.with_token(endpoint, timeout_s, exchange, leader=leader)

    def with_token(
        self, endpoint: Endpoint, timeout_s: float, exchange: Callable[[dict[str, str]], T], *, leader: bool = True
    ) -> T:
        """What the exchange gives; it gets the headers to send, and raises TokenRefused to get fresh ones, once."""
        # Else a member without a leader does not say so but waits for one (WithRequireLeader of etcd's own client).
        headers = {"Content-Type": "application/json"} | ({"Grpc-Metadata-hasleader": "true"} if leader else {})
        if self._credentials is None:
            try:
                return exchange(headers)
            except TokenRefused as err:
                raise EtcdRefused(str(err)) from None
        token = self._token
        if token is not None:
            try:
                return exchange(headers | _authorization(token))
            except TokenRefused:
                self._token = None
        token = self._token = self._authenticate(self._credentials, endpoint, timeout_s)
        try:
            return exchange(headers | _authorization(token))
        except TokenRefused as err:
            raise EtcdRefused(str(err)) from None

    def _authenticate(self, credentials: Credentials, endpoint: Endpoint, timeout_s: float) -> str:
        body = {"name": credentials.user, "password": credentials.password}
        try:
            return str(self._exchange(endpoint, "auth/authenticate", body, timeout_s, {})["token"])
        except EtcdRefused as err:
            if "authentication is not enabled" in err.message:
                return ""  # everybody may do everything
            raise

    def _exchange(self, endpoint: Endpoint, path: str, body: JSON, timeout_s: float, headers: dict[str, str]) -> JSON:
        with self.connections.borrow(endpoint, timeout_s) as connection:
            connection.request("POST", f"/v3/{path}", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            status, raw = response.status, response.read()
        return read_answer(status, raw, endpoint.url)


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": token} if token else {}
