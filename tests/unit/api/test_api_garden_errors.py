"""What Garden's requests are refused with: its error object, or the plain text of its router."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from conetd.api import private
from conetd.api.bodies import BODY_MAX
from conetd.errors import Conflict, DriverTimeout, Exhausted, Invalid, KernelError, NotFound, Unavailable
from conetd.garden.answers import UnknownHandle

CONTAINER = "/garden/containers/web"
POSTS = ["net/in", "net/out", "net/out/bulk"]
GETS = ["limits/bandwidth", "info", "metrics"]


def error_object(message: str, kind: str = "", handle: str = "") -> bytes:
    """As it stands in the body; `message` without anything that JSON escapes."""
    return f'{{"Type":"{kind}","Message":"{message}","Handle":"{handle}","ProcessID":"","Binary":""}}\n'.encode()


@pytest.mark.parametrize(
    ("error", "status", "written"),
    [
        (UnknownHandle("web"), 404, error_object("unknown handle: web", "ContainerNotFoundError", "web")),
        (Unavailable("stopping"), 500, error_object("stopping", "ServiceUnavailableError")),
        (Exhausted("port pool is exhausted"), 500, error_object("port pool is exhausted")),
        (Conflict('held by "x"'), 500, error_object(r"held by \"x\"")),
        (Conflict("a <b> & c"), 500, error_object(r"a \u003cb\u003e \u0026 c")),
        (Invalid("invalid protocol: 52", fields={"protocol": "x"}), 500, error_object("invalid protocol: 52")),
        (
            Invalid("Ports cannot be specified for Protocol "),
            500,
            error_object("Ports cannot be specified for Protocol "),
        ),
        (NotFound("no"), 500, error_object("no")),
        (DriverTimeout("too slow"), 500, error_object("too slow")),
        (KernelError("create", "link x", 17), 500, error_object("could not create link x: File exists")),
    ],
)
@pytest.mark.parametrize("rest", [*POSTS, *GETS])
def test_what_the_service_refuses_is_garden_s_error_object(
    doors: Any, rest: str, error: Any, status: int, written: bytes
) -> None:
    doors.service.results |= dict.fromkeys(("net_in", "net_out", "info", "metrics"), error)
    reply = doors.private.ask("POST" if rest in POSTS else "GET", f"{CONTAINER}/{rest}", b"null")
    assert (reply.status, reply.headers["Content-Type"], reply.body) == (status, "application/json", written)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b"{", "unexpected EOF"),
        (b"]", "invalid character ']' looking for beginning of value"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    ],
)
@pytest.mark.parametrize("rest", POSTS)
def test_a_body_that_is_no_json_is_500_in_go_s_words(doors: Any, rest: str, body: bytes, message: str) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/{rest}", body)
    assert (reply.status, reply.body) == (500, error_object(message))
    assert doors.service.calls == []


@pytest.mark.parametrize(
    ("rest", "body", "message"),
    [
        (
            "net/in",
            b'{"host_port":-1}',
            "json: cannot unmarshal number -1 into Go struct field NetInRequest.host_port of type uint32",
        ),
        ("net/in", b"[]", "json: cannot unmarshal array into Go value of type transport.NetInRequest"),
        ("net/out", b"[]", "json: cannot unmarshal array into Go value of type garden.NetOutRule"),
        ("net/out", b'{"networks":[{"start":"10.0.0.256"}]}', "invalid IP address: 10.0.0.256"),
        ("net/out", b'{"networks":[{"start":"\xff"}]}', "invalid IP address: \ufffd"),
        ("net/out", rb'{"networks":[{"start":"\ud800"}]}', "invalid IP address: \ufffd"),
        ("net/out", b'{"networks":[{"start":"<&>"}]}', r"invalid IP address: \u003c\u0026\u003e"),
        ("net/out/bulk", b"{}", "json: cannot unmarshal object into Go value of type []garden.NetOutRule"),
    ],
)
def test_a_body_with_a_wrong_value_is_500_in_go_s_words(doors: Any, rest: str, body: bytes, message: str) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/{rest}", body)
    assert (reply.status, reply.body) == (500, error_object(message))
    assert doors.service.calls == []


@pytest.mark.parametrize("rest", POSTS)
@pytest.mark.parametrize("handle", ["nobody", "a%20b"])
def test_a_bad_body_is_told_before_the_handle_is_looked_at(doors: Any, handle: str, rest: str) -> None:
    doors.service.results |= {"net_in": UnknownHandle(handle), "net_out": UnknownHandle(handle)}
    reply = doors.private.ask("POST", f"/garden/containers/{handle}/{rest}", b"")
    assert (reply.status, reply.body) == (500, error_object("EOF"))


@pytest.mark.parametrize("rest", POSTS)
def test_a_body_too_large_is_500(doors: Any, rest: str) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/{rest}", b" " * (BODY_MAX + 1))
    assert reply.status == 500
    assert reply.body == error_object("the body of 8388609 bytes is larger than the 8388608 allowed")


def test_a_body_too_large_that_does_not_say_so_beforehand_is_500_too(doors: Any) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    head = f"POST {CONTAINER}/net/in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    reply = doors.private.raw(head.encode() + chunk * 9 + b"0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 500 ")
    assert reply.endswith(b"\r\n\r\n" + error_object("the body is larger than the 8388608 bytes allowed"))


@pytest.mark.parametrize(("key", "length"), [("", 0), ("k" * 256, 256)])
def test_a_name_of_a_request_has_bounds(doors: Any, key: str, length: int) -> None:
    reply = doors.private.ask("POST", f"{CONTAINER}/net/in", b"{}", {"Idempotency-Key": key})
    assert reply.status == 500
    assert reply.body == error_object(f"Idempotency-Key has 1 to 255 characters, not {length}")
    assert doors.service.calls == []


def test_a_name_of_a_request_is_ascii(doors: Any) -> None:
    head = f"POST {CONTAINER}/net/in HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
    reply = doors.private.raw(head.encode() + b"Idempotency-Key: k\xff\r\n\r\n{}")
    assert reply.startswith(b"HTTP/1.1 500 ")
    assert b"Idempotency-Key is ASCII text, not 'k" in reply
    assert doors.service.calls == []


@pytest.mark.parametrize(("method", "rest"), [("POST", "net/in"), ("GET", "info")])
def test_a_bug_is_500_and_tells_nothing_of_itself(
    doors: Any, method: str, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    doors.service.results |= {"net_in": ZeroDivisionError("secret"), "info": ZeroDivisionError("secret")}
    reply = doors.private.ask(method, f"{CONTAINER}/{rest}", b"{}")
    assert reply.status == 500
    assert reply.body == error_object("conetd failed in a way it did not expect; its log says how")
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == ["request failed"]


@pytest.mark.parametrize(
    "path",
    [
        "/garden/",
        "/garden/ping",
        "/garden/containers",
        "/garden/containers/web",
        "/garden/containers/web/",
        "/garden/containers/web/net",
        "/garden/containers/web/net/in/",
        "/garden/containers/web/net/out/",
        "/garden/containers/web/net/out/bulk/",
        "/garden/containers/web/bulk_net_out",
        "/garden/containers/web/info/",
        "/garden/containers/a/b/info",
        "/garden/containers/bulk_info/",
        "/garden//containers/web/info",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_route_is_404_in_plain_text(doors: Any, method: str, path: str) -> None:
    reply = doors.private.ask(method, path)
    assert (reply.status, reply.body) == (404, b"404 page not found\n")
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "rest", "allowed"),
    [
        *(("GET", f"web/{rest}", {"POST"}) for rest in POSTS),
        *(("DELETE", f"web/{rest}", {"POST"}) for rest in POSTS),
        *(("POST", f"web/{rest}", {"GET", "HEAD"}) for rest in GETS),
        ("PUT", "web/limits/bandwidth", {"GET", "HEAD"}),
        ("OPTIONS", "bulk_info", {"GET", "HEAD"}),
        ("POST", "bulk_info?handles=a", {"GET", "HEAD"}),
        ("POST", "bulk_metrics", {"GET", "HEAD"}),
        ("HEAD", "web/net/in", {"POST"}),
    ],
)
def test_a_path_known_for_another_method_is_405_in_plain_text(
    doors: Any, method: str, rest: str, allowed: set[str]
) -> None:
    reply = doors.private.ask(method, f"/garden/containers/{rest}")
    assert reply.status == 405
    assert reply.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert set(reply.headers["Allow"].replace(" ", "").split(",")) == allowed


def test_garden_s_requests_answer_nobody_but_root_and_ourselves(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "peer_uid", lambda sock: 4711)
    for method, rest in [("POST", "web/net/in"), ("GET", "web/info"), ("GET", "bulk_info?handles=web"), ("GET", "x")]:
        reply = doors.private.ask(method, f"/garden/containers/{rest}", b"{}")
        assert reply.status == 403
        assert reply.body == error_object("the private socket is for root, not for uid 4711")
    assert doors.service.calls == []


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (Conflict("held"), logging.DEBUG),
        (UnknownHandle("web"), logging.DEBUG),
        (KernelError("create", "link x", 17), logging.WARNING),
    ],
)
def test_that_all_is_500_does_not_make_every_refusal_a_warning(
    doors: Any, error: Any, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "conetd")
    doors.service.results["net_in"] = error
    doors.private.ask("POST", f"{CONTAINER}/net/in", b"{}")
    [record] = [record for record in caplog.records if record.message == "request refused"]
    assert (record.levelno, record.reason) == (level, error.message)  # type: ignore[attr-defined]


def test_an_error_in_a_bulk_answer_is_an_entry_of_it_and_not_its_status(doors: Any) -> None:
    entry = {"Info": {}, "Err": json.loads(error_object("unknown handle: b", "ContainerNotFoundError", "b"))}
    doors.service.results["bulk_info"] = {"b": entry}
    reply = doors.private.ask("GET", "/garden/containers/bulk_info?handles=b")
    assert (reply.status, json.loads(reply.body)) == (200, {"b": entry})
