"""Each request: what the service is asked, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest

DOCUMENT = {"name": "blue", "config": {"subnet": "10.0.0.0/24"}}
ANSWER = {"name": "blue", "öäü": "\ud800"}

READS = [
    ("/networks", ("networks",)),
    ("/networks/blue", ("network", "blue")),
    ("/containers", ("containers",)),
    ("/containers/web", ("container", "web")),
    ("/containers/web/policy", ("policy", "web")),
    ("/drivers", ("drivers",)),
]
CHANGES = [
    ("PUT", "/networks/blue/default_policy", ("replace_default_policy", "blue", DOCUMENT)),
    ("PUT", "/containers/web/policy", ("replace_policy", "web", DOCUMENT)),
]


@pytest.mark.parametrize(("path", "call"), READS)
def test_a_read_answers_what_the_service_says(doors: Any, path: str, call: tuple[Any, ...]) -> None:
    doors.service.results[call[0]] = [ANSWER]
    reply = doors.public.ask("GET", path)
    assert doors.service.calls == [call]
    assert (reply.status, reply.json) == (200, [ANSWER])


@pytest.mark.parametrize(("method", "path", "call"), CHANGES)
def test_a_change_hands_over_the_document_and_answers_its_result(
    doors: Any, method: str, path: str, call: tuple[Any, ...]
) -> None:
    doors.service.results[call[0]] = ANSWER
    reply = doors.public.ask(method, path, DOCUMENT)
    assert doors.service.calls == [call]
    assert (reply.status, reply.json) == (200, ANSWER)


@pytest.mark.parametrize(("created", "status"), [(True, 201), (False, 200)])
@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("POST", "/networks", ("create_network", DOCUMENT)),
        ("PUT", "/containers/web/config", ("configure", "web", DOCUMENT)),
    ],
)
def test_what_is_new_is_201_and_what_was_there_200(
    doors: Any, method: str, path: str, call: tuple[Any, ...], created: bool, status: int
) -> None:
    doors.service.results[call[0]] = (created, ANSWER)
    reply = doors.public.ask(method, path, DOCUMENT)
    assert doors.service.calls == [call]
    assert (reply.status, reply.json) == (status, ANSWER)


@pytest.mark.parametrize(
    ("path", "call"), [("/networks/blue", ("delete_network", "blue")), ("/containers/web", ("forget", "web"))]
)
def test_what_is_deleted_is_204_without_a_body(doors: Any, path: str, call: tuple[Any, ...]) -> None:
    reply = doors.public.ask("DELETE", path)
    assert doors.service.calls == [call]
    assert (reply.status, reply.body) == (204, b"")


@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_status_is_503_when_something_is_not_as_wanted(doors: Any, healthy: bool, status: int) -> None:
    doors.service.results["status"] = (healthy, {"filter": "nftables"})
    reply = doors.public.ask("GET", "/status")
    assert (reply.status, reply.json) == (status, {"filter": "nftables"})


def test_up_hands_over_its_body(doors: Any) -> None:
    doors.service.results["up"] = ANSWER
    reply = doors.private.ask("POST", "/containers/web/up", {"Pid": 7})
    assert doors.service.calls == [("up", "web", {"Pid": 7})]
    assert (reply.status, reply.json) == (200, ANSWER)


@pytest.mark.parametrize("body", [None, b"", b'{"pid": 0, "status": "stopped"}', b"no JSON at all \xff"])
def test_down_needs_no_body_and_ignores_what_is_there(doors: Any, body: bytes | None) -> None:
    doors.service.results["down"] = {}
    reply = doors.private.ask("POST", "/containers/web/down", body)
    assert doors.service.calls == [("down", "web")]
    assert (reply.status, reply.json) == (200, {})


def test_after_a_down_with_a_body_the_connection_takes_the_next_request(doors: Any) -> None:
    doors.service.results["down"] = {}
    one = b"POST /containers/web/down HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n%s\r\nhello"
    received = doors.private.raw(one % b"" + one % b"Connection: close\r\n")
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_the_two_doors_have_nothing_in_common(doors: Any) -> None:
    assert doors.public.ask("POST", "/containers/web/up", {}).status == 404
    assert doors.private.ask("GET", "/containers").status == 404
    assert doors.private.ask("PUT", "/containers/web/config", {}).status == 404


def test_answers_are_json_and_say_who_answers(doors: Any) -> None:
    doors.service.results["networks"] = []
    reply = doors.public.ask("GET", "/networks")
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Server"].startswith("conetd/")
    assert reply.body.endswith(b"\n")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain; charset=latin-1", ""])
def test_a_body_is_json_whatever_type_it_claims(doors: Any, content_type: str) -> None:
    doors.service.results["create_network"] = (True, {})
    reply = doors.public.ask("POST", "/networks", '{"name": "é"}'.encode(), {"Content-Type": content_type})
    assert (reply.status, doors.service.calls) == (201, [("create_network", {"name": "é"})])


@pytest.mark.parametrize(
    ("sent", "handle"),
    [
        ("web", "web"),
        ("a%2Db", "a-b"),
        ("app%40host%3A1", "app@host:1"),
        ("app@host:1", "app@host:1"),
        ("x" * 255, "x" * 255),
    ],
)
def test_a_handle_is_percent_decoded_once(doors: Any, sent: str, handle: str) -> None:
    doors.service.results["container"] = {}
    assert doors.public.ask("GET", f"/containers/{sent}").status == 200
    assert doors.service.calls == [("container", handle)]


@pytest.mark.parametrize(
    "handle",
    ["..", ".", "%2E%2E", "a%20b", "a%2Fb", "a%252Db", "a%00b", "a%0Ab", "%C3%A9", "%FF", "x" * 256, "a~b", "%7Ba%7D"],
)
@pytest.mark.parametrize(
    ("door", "method", "rest"),
    [
        ("public", "GET", ""),
        ("public", "DELETE", ""),
        ("public", "PUT", "/config"),
        ("public", "GET", "/policy"),
        ("public", "PUT", "/policy"),
        ("private", "POST", "/up"),
        ("private", "POST", "/down"),
    ],
)
def test_a_handle_that_is_not_allowed_is_422_everywhere(
    doors: Any, handle: str, door: str, method: str, rest: str
) -> None:
    reply = getattr(doors, door).ask(method, f"/containers/{handle}{rest}", {} if method != "GET" else None)
    assert (reply.status, reply.error["code"]) == (422, "invalid")
    assert "not allowed" in reply.error["fields"]["handle"]
    assert doors.service.calls == []
