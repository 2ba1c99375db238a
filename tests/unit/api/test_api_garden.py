"""Garden's requests on the private socket: what the service is asked, and the bytes that come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conetd.garden.wire import ICMPControl, NetIn, NetOutRule, PortRange

CONTAINER = "/garden/containers/web"
EVERY_REQUEST = [
    ("POST", f"{CONTAINER}/net/in", b"{}", "net_in"),
    ("POST", f"{CONTAINER}/net/out", b"{}", "net_out"),
    ("POST", f"{CONTAINER}/net/out/bulk", b"[]", "net_out"),
    ("GET", f"{CONTAINER}/limits/bandwidth", None, "info"),
    ("GET", f"{CONTAINER}/info", None, "info"),
    ("GET", f"{CONTAINER}/metrics", None, "metrics"),
    ("GET", "/garden/containers/bulk_info?handles=web", None, "bulk_info"),
    ("GET", "/garden/containers/bulk_metrics?handles=web", None, "bulk_metrics"),
]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"{}", NetIn()),
        (b"null", NetIn()),
        (b'{"handle":"other","host_port":7000,"container_port":80}', NetIn(7000, 80)),
        (b'{"Host_Port":7000} and more', NetIn(7000, 0)),
        (b'{"host_port":4294967295}', NetIn(4294967295, 0)),
    ],
)
def test_net_in_asks_for_a_port_of_the_container_in_the_path(doors: Any, body: bytes, asked: NetIn) -> None:
    doors.service.results["net_in"] = {"host_port": 61001, "container_port": 8080}
    reply = doors.private.ask("POST", f"{CONTAINER}/net/in", body)
    assert doors.service.calls == [("net_in", "web", asked, None)]
    assert (reply.status, reply.body) == (200, b'{"host_port":61001,"container_port":8080}\n')


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"{}", NetOutRule()),
        (b"null", NetOutRule()),
        (b'{"protocol":1,"ports":[{"start":53,"end":53}]}', NetOutRule(1, ports=(PortRange(53, 53),))),
        (b'{"protocol":3,"icmps":{"type":3,"code":0},"log":true}', NetOutRule(3, icmps=ICMPControl(3, 0), log=True)),
    ],
)
def test_net_out_hands_over_one_rule(doors: Any, body: bytes, rule: NetOutRule) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/net/out", body)
    assert doors.service.calls == [("net_out", "web", (rule,), ("bulk", False))]
    assert (reply.status, reply.body) == (200, b"{}\n")


@pytest.mark.parametrize(
    ("body", "rules"),
    [(b"[]", ()), (b"null", ()), (b'[{"protocol":1},{"protocol":2}]', (NetOutRule(1), NetOutRule(2)))],
)
def test_bulk_net_out_hands_over_a_list(doors: Any, body: bytes, rules: Any) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/net/out/bulk", body)
    assert doors.service.calls == [("net_out", "web", rules, ("bulk", True))]
    assert (reply.status, reply.body) == (200, b"{}\n")


def test_three_thousand_rules_go_in_one_request(doors: Any) -> None:
    rule = {"protocol": 1, "networks": [{"start": "10.0.0.1", "end": "10.0.0.9"}], "ports": [{"start": 1, "end": 9}]}
    assert doors.private.ask("POST", f"{CONTAINER}/net/out/bulk", [rule] * 3000).status == 200
    [(_, _, rules, _)] = doors.service.calls
    assert len(rules) == 3000


@pytest.mark.parametrize("name", ["info", "metrics"])
def test_what_is_told_of_a_container_is_one_line_as_go_writes_it(doors: Any, name: str) -> None:
    doors.service.results[name] = {"State": "active", "Events": None, "Text": "<é&>\u2028", "MappedPorts": []}
    reply = doors.private.ask("GET", f"{CONTAINER}/{name}")
    assert doors.service.calls == [(name, "web")]
    assert reply.status == 200
    assert (
        reply.body
        == rb'{"State":"active","Events":null,"Text":"\u003c'
        + "é".encode()
        + rb'\u0026\u003e\u2028","MappedPorts":[]}'
        + b"\n"
    )


@pytest.mark.parametrize("name", ["bulk_info", "bulk_metrics"])
@pytest.mark.parametrize(
    ("query", "handles"),
    [
        ("?handles=a", ["a"]),
        ("?handles=a,b,c", ["a", "b", "c"]),
        ("?handles=b,a,b", ["b", "a", "b"]),
        ("?handles=a%2Cb", ["a", "b"]),
        ("?handles=a+b,c%2Bd", ["a b", "c+d"]),
        ("?handles=a,,b,", ["a", "", "b", ""]),
        ("?handles=a&handles=b", ["a"]),
        ("?other=x&handles=a", ["a"]),
        ("?handles=", []),
        ("?handles", []),
        ("", []),
    ],
)
def test_bulk_reads_are_about_the_handles_between_the_commas(
    doors: Any, name: str, query: str, handles: list[str]
) -> None:
    doors.service.results[name] = {"a": {"Info": {}, "Err": None}}
    reply = doors.private.ask("GET", f"/garden/containers/{name}{query}")
    assert doors.service.calls == [(name, handles)]
    assert (reply.status, reply.body) == (200, b'{"a":{"Info":{},"Err":null}}\n')


def test_no_bandwidth_is_limited_whatever_the_container(doors: Any) -> None:
    doors.service.results["info"] = {"State": "active"}
    reply = doors.private.ask("GET", f"{CONTAINER}/limits/bandwidth")
    assert doors.service.calls == [("info", "web")]
    assert (reply.status, reply.body) == (200, b"{}\n")


@pytest.mark.parametrize(("method", "path", "body", "name"), EVERY_REQUEST)
def test_every_answer_is_json_on_one_line(doors: Any, method: str, path: str, body: bytes | None, name: str) -> None:
    doors.service.results[name] = {}
    reply = doors.private.ask(method, path, body)
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, "application/json", b"{}\n")


@pytest.mark.parametrize(("method", "path", "body", "name"), EVERY_REQUEST)
def test_the_public_socket_has_none_of_them(doors: Any, method: str, path: str, body: bytes | None, name: str) -> None:
    reply = doors.public.ask(method, path, body)
    assert (reply.status, reply.error["code"]) == (404, "unknown_path")
    assert doors.service.calls == []


@pytest.mark.parametrize(
    ("path", "name"), [("web/info", "info"), ("web/metrics", "metrics"), ("bulk_info?handles=web", "bulk_info")]
)
def test_head_is_get_without_a_body(doors: Any, path: str, name: str) -> None:
    doors.service.results[name] = {}
    reply = doors.private.ask("HEAD", f"/garden/containers/{path}")
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (200, "application/json", b"")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain; charset=latin-1", ""])
def test_a_body_is_json_whatever_type_it_claims(doors: Any, content_type: str) -> None:
    doors.service.results["net_in"] = {}
    headers = {"Content-Type": content_type}
    reply = doors.private.ask("POST", f"{CONTAINER}/net/in", b'{"host_port":80}', headers)
    assert (reply.status, doors.service.calls) == (200, [("net_in", "web", NetIn(80), None)])


@pytest.mark.parametrize("key", ["x", "4711-1795806000", "k" * 255])
def test_who_asks_again_may_say_that_it_is_the_same_request(doors: Any, key: str) -> None:
    doors.service.results["net_in"] = {}
    doors.private.ask("POST", f"{CONTAINER}/net/in", b"{}", {"Idempotency-Key": key})
    assert doors.service.calls == [("net_in", "web", NetIn(), key)]


@pytest.mark.parametrize(
    ("sent", "handle"),
    [
        ("web", "web"),
        ("a%2Db", "a-b"),
        ("app%40host%3A1", "app@host:1"),
        ("app@host:1", "app@host:1"),
        ("bulk_info", "bulk_info"),
        ("x" * 255, "x" * 255),
    ],
)
@pytest.mark.parametrize(("rest", "name"), [("net/in", "net_in"), ("net/out", "net_out"), ("net/out/bulk", "net_out")])
def test_the_handle_in_the_path_is_decoded_once(doors: Any, sent: str, handle: str, rest: str, name: str) -> None:
    doors.service.results[name] = {}
    assert doors.private.ask("POST", f"/garden/containers/{sent}/{rest}", b"null").status == 200
    assert [call[:2] for call in doors.service.calls] == [(name, handle)]


@pytest.mark.parametrize(
    ("sent", "handle"),
    [
        ("a%20b", "a b"),
        ("a+b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("..", ".."),
        ("%2E", "."),
        ("%C3%A9", "é"),
        ("%00", "\0"),
        ("a~b", "a~b"),
        ("x" * 256, "x" * 256),
    ],
)
@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("POST", "net/in", b"{}"),
        ("POST", "net/out", b"{}"),
        ("POST", "net/out/bulk", b"[]"),
        ("GET", "limits/bandwidth", None),
        ("GET", "info", None),
        ("GET", "metrics", None),
    ],
)
def test_a_handle_that_no_container_can_have_is_unknown(
    doors: Any, sent: str, handle: str, method: str, rest: str, body: bytes | None
) -> None:
    reply = doors.private.ask(method, f"/garden/containers/{sent}/{rest}", body)
    assert reply.status == 404
    assert json.loads(reply.body) == {
        "Type": "ContainerNotFoundError",
        "Message": f"unknown handle: {handle}",
        "Handle": handle,
        "ProcessID": "",
        "Binary": "",
    }
    assert doors.service.calls == []
