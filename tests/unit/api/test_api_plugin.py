"""What Guardian's network plugin asks beside up and down: Garden's values, in conetd's own form of answers."""

from __future__ import annotations

from typing import Any

import pytest

from conetd.api import private
from conetd.errors import Conflict, Exhausted, Invalid, Unavailable
from conetd.garden.answers import UnknownHandle
from conetd.garden.wire import NetIn, NetOutRule

ACTIONS = ["net-in", "net-out", "bulk-net-out"]


def test_net_in_asks_for_a_port_and_prints_what_guardian_reads(doors: Any) -> None:
    doors.service.results["net_in"] = {"host_port": 61001, "container_port": 61001}
    body = b'{"HostIP":"192.0.2.1","HostPort":0,"ContainerIP":"10.0.0.2","ContainerPort":0}'
    reply = doors.private.ask("POST", "/containers/web/net-in", body, {"Idempotency-Key": "7-1"})
    assert doors.service.calls == [("net_in", "web", NetIn(), "7-1")]
    assert (reply.status, reply.body) == (200, b'{"host_port":61001,"container_port":61001}\n')


def test_net_out_hands_over_one_rule(doors: Any) -> None:
    body = b'{"container_ip":"10.0.0.2","netout_rule":{"protocol":1}}'
    reply = doors.private.ask("POST", "/containers/web/net-out", body)
    assert doors.service.calls == [("net_out", "web", (NetOutRule(1),), ("bulk", False))]
    assert (reply.status, reply.body) == (200, b"{}\n")


@pytest.mark.parametrize(
    ("rules", "wanted"), [(b'[{"protocol":1},{}]', (NetOutRule(1), NetOutRule())), (b"[]", ()), (b"null", ())]
)
def test_bulk_net_out_hands_over_a_list(doors: Any, rules: bytes, wanted: Any) -> None:
    body = b'{"container_ip":"10.0.0.2","netout_rules":%s}' % rules
    reply = doors.private.ask("POST", "/containers/web/bulk-net-out", body)
    assert doors.service.calls == [("net_out", "web", wanted, ("bulk", True))]
    assert (reply.status, reply.body) == (200, b"{}\n")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownHandle("web"), 404, "not_found"),
        (Invalid("invalid protocol: 52"), 422, "invalid"),
        (Conflict("held"), 409, "conflict"),
        (Exhausted("port pool is exhausted"), 507, "exhausted"),
        (Unavailable("stopping"), 503, "unavailable"),
    ],
)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_the_service_refuses_is_told_in_conetd_s_form(
    doors: Any, action: str, error: Any, status: int, code: str
) -> None:
    doors.service.results |= {"net_in": error, "net_out": error}
    reply = doors.private.ask("POST", f"/containers/web/{action}", b"{}")
    assert (reply.status, reply.error) == (status, {"code": code, "message": error.message})


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("body", "message"), [(b"", "EOF"), (b"{", "unexpected EOF")])
def test_a_body_that_is_no_json_is_400(doors: Any, action: str, body: bytes, message: str) -> None:
    reply = doors.private.ask("POST", f"/containers/web/{action}", body)
    assert (reply.status, reply.error) == (400, {"code": "malformed_json", "message": message})


def test_a_wrong_value_is_422_and_named_by_its_path(doors: Any) -> None:
    body = b'{"netout_rules":[{},{"networks":[{"end":"::g"}]}]}'
    reply = doors.private.ask("POST", "/containers/web/bulk-net-out", body)
    assert (reply.status, reply.error["code"]) == (422, "invalid")
    assert reply.error["message"] == "invalid IP address: ::g"
    assert reply.error["fields"] == {"netout_rules[1].networks[0].end": "is not an IP address (got ::g)"}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_handle_is_refused_before_the_body_is_looked_at(doors: Any, action: str) -> None:
    reply = doors.private.ask("POST", f"/containers/a%20b/{action}", b"{")
    assert (reply.status, reply.error["code"]) == (422, "invalid")


@pytest.mark.parametrize("action", ACTIONS)
def test_another_method_is_405_in_conetd_s_form(doors: Any, action: str) -> None:
    reply = doors.private.ask("GET", f"/containers/web/{action}")
    assert (reply.status, reply.error["code"], reply.headers["Allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("action", ACTIONS)
def test_the_public_socket_has_none_of_them(doors: Any, action: str) -> None:
    assert doors.public.ask("POST", f"/containers/web/{action}", b"{}").status == 404


@pytest.mark.parametrize("action", ACTIONS)
def test_they_answer_nobody_but_root_and_ourselves(doors: Any, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "peer_uid", lambda sock: 4711)
    reply = doors.private.ask("POST", f"/containers/web/{action}", b"{}")
    assert (reply.status, reply.error["code"]) == (403, "forbidden")
    assert doors.service.calls == []
