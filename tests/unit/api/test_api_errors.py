"""Refusals on both sockets: status, code, message and fields, always as JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from conetd.api import private
from conetd.api.bodies import BODY_MAX
from conetd.errors import Conflict, DriverTimeout, Exhausted, Invalid, KernelError, NotFound


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("no"), 422, "invalid"),
        (NotFound("no"), 404, "not_found"),
        (Conflict("no"), 409, "conflict"),
        (Exhausted("no"), 507, "exhausted"),
        (KernelError("create", "link x", 17), 502, "kernel_error"),
        (DriverTimeout("no"), 504, "driver_timeout"),
    ],
)
def test_what_the_service_refuses_is_told_with_its_status(doors: Any, error: Any, status: int, code: str) -> None:
    doors.service.results |= {"network": error, "up": error}
    for reply in (doors.public.ask("GET", "/networks/blue"), doors.private.ask("POST", "/containers/web/up", {})):
        assert (reply.status, reply.json) == (status, {"error": {"code": code, "message": error.message}})


def test_fields_are_told_by_their_paths(doors: Any) -> None:
    doors.service.results["configure"] = Invalid("bad", fields={"attach_to[1].network": "no such network"})
    reply = doors.public.ask("PUT", "/containers/web/config", {})
    assert reply.error == {"code": "invalid", "message": "bad", "fields": {"attach_to[1].network": "no such network"}}


def test_a_bug_is_500_and_tells_nothing_of_itself_but_the_log_has_all(
    doors: Any, caplog: pytest.LogCaptureFixture
) -> None:
    doors.service.results["networks"] = ZeroDivisionError("secret detail")
    reply = doors.public.ask("GET", "/networks")
    assert (reply.status, reply.error["code"]) == (500, "internal")
    assert b"secret" not in reply.body
    assert b"ZeroDivision" not in reply.body
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("path", ["/", "/network", "/networks/", "/networks/a/b", "/containers/web/up/", "//networks"])
def test_an_unknown_path_is_404(doors: Any, path: str) -> None:
    for door in (doors.public, doors.private):
        reply = door.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 ")
        assert json.loads(body)["error"] == {"code": "unknown_path", "message": f"there is nothing at {path}"}


@pytest.mark.parametrize(
    ("door", "method", "path", "allowed"),
    [
        ("public", "DELETE", "/networks", "GET,HEAD,POST"),
        ("public", "POST", "/networks/blue", "DELETE,GET,HEAD"),
        ("public", "GET", "/containers/web/config", "PUT"),
        ("public", "OPTIONS", "/status", "GET,HEAD"),
        ("private", "GET", "/containers/web/up", "POST"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(
    doors: Any, door: str, method: str, path: str, allowed: str
) -> None:
    reply = getattr(doors, door).ask(method, path)
    assert (reply.status, reply.error["code"], reply.headers["Allow"]) == (405, "method_not_allowed", allowed)
    assert reply.error["message"] == f"{path} takes {', '.join(allowed.split(','))}, not {method}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{", "line 1 column 2"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'the key "c" stands twice'),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "malformed JSON: Exceeds the limit"),
        (b'{"a": 1} trailing', "line 1 column 10"),
        (b"{'a': 1}", "line 1 column 2"),
        (b'{"a": "raw \n line end"}', "Invalid control character"),
    ],
)
@pytest.mark.parametrize(
    ("door", "method", "path"),
    [
        ("public", "POST", "/networks"),
        ("public", "PUT", "/containers/web/policy"),
        ("private", "POST", "/containers/web/up"),
    ],
)
def test_a_body_that_is_no_json_is_400_and_says_where(
    doors: Any, door: str, method: str, path: str, body: bytes, message: str
) -> None:
    reply = getattr(doors, door).ask(method, path, body)
    assert (reply.status, reply.error["code"]) == (400, "malformed_json")
    assert message in reply.error["message"]
    assert doors.service.calls == []


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'"name"'])
def test_json_that_is_no_object_is_422(doors: Any, body: bytes) -> None:
    reply = doors.public.ask("POST", "/networks", body)
    assert (reply.status, reply.error["code"]) == (422, "invalid")
    assert reply.error["message"] == f"the body must be a JSON object (got {body.decode()})"
    assert doors.service.calls == []


def padded(size: int) -> bytes:
    return b'{"a": 1' + b" " * (size - 8) + b"}"


def test_a_body_of_just_the_size_allowed_is_taken(doors: Any) -> None:
    doors.service.results["create_network"] = (True, {})
    assert doors.public.ask("POST", "/networks", padded(BODY_MAX)).status == 201


def test_a_body_one_byte_too_large_is_413(doors: Any) -> None:
    reply = doors.public.ask("POST", "/networks", padded(BODY_MAX + 1))
    assert (reply.status, reply.error["code"]) == (413, "too_large")
    assert reply.error["message"] == "the body of 8388609 bytes is larger than the 8388608 allowed"
    assert doors.service.calls == []


def test_a_body_too_large_that_does_not_say_so_beforehand_is_413_too(doors: Any) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    head = b"POST /containers/web/up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    reply = doors.private.raw(head + chunk * 9 + b"0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"


def test_a_handle_is_refused_before_the_body_is_looked_at(doors: Any) -> None:
    assert doors.public.ask("PUT", "/containers/a%20b/config", b"{").status == 422


def test_the_private_socket_answers_nobody_but_root_and_ourselves(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "peer_uid", lambda sock: 4711)
    for path in ("/containers/web/up", "/nothing"):
        reply = doors.private.ask("POST", path, {})
        assert (reply.status, reply.error) == (
            403,
            {"code": "forbidden", "message": "the private socket is for root, not for uid 4711"},
        )
    assert doors.service.calls == []


@pytest.mark.parametrize(
    "request_line",
    [b"hello", b"GET /a\x7fb HTTP/1.1", b"GET /" + b"x" * 9000 + b" HTTP/1.1", b"GET /networks HTTP/7.3"],
    ids=["no words", "control character", "too long", "no such version"],
)
def test_what_is_no_http_is_400_and_the_door_stays_open(
    doors: Any, request_line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head, _, body = doors.public.raw(request_line + b"\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert b" 400 Bad Request\r\n" in head
    error = json.loads(body)["error"]
    assert error["code"] == "bad_request"
    assert error["message"].startswith("the request is not HTTP as conetd takes it: ")
    doors.service.results["networks"] = []
    assert doors.public.ask("GET", "/networks").status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_refused_change_is_logged_in_one_event_when_debugging(doors: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "conetd")
    doors.service.results["forget"] = Conflict("still up")
    doors.public.ask("DELETE", "/containers/web")
    [record] = [record for record in caplog.records if record.message == "request refused"]
    keys = {key: getattr(record, key) for key in ("method", "path", "status", "code", "reason")}
    assert keys == {
        "method": "DELETE",
        "path": "/containers/web",
        "status": 409,
        "code": "conflict",
        "reason": "still up",
    }
    assert record.levelno == logging.DEBUG
    assert record.ms >= 0  # type: ignore[attr-defined]


def test_a_failure_of_ours_is_logged_as_a_warning(doors: Any, caplog: pytest.LogCaptureFixture) -> None:
    doors.service.results["up"] = KernelError("create", "link x", 17)
    doors.private.ask("POST", "/containers/web/up", {})
    [record] = [record for record in caplog.records if record.message == "request refused"]
    assert record.levelno == logging.WARNING


def test_a_read_that_succeeds_leaves_no_line(doors: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "conetd")
    doors.service.results["networks"] = []
    doors.public.ask("GET", "/networks")
    assert [record.message for record in caplog.records if record.message.startswith("request")] == []
