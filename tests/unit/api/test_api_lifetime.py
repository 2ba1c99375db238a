"""Requests that are cut off, and doors that close while requests are under way."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from typing import Any

import pytest

UP = b"POST /containers/web/up HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def wait_until(condition: Any) -> None:
    """Return as soon as the condition holds."""
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("waited ten seconds in vain")


def start_up(doors: Any) -> socket.socket:
    """Send an up and return its connection once the service has been asked."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(doors.private.path))
    sock.sendall(UP)
    wait_until(lambda: doors.service.calls)
    return sock


def test_a_client_that_goes_away_does_not_cancel_the_work(doors: Any) -> None:
    future: Future[Any] = Future()
    doors.service.results["up"] = future
    start_up(doors).close()
    doors.service.results["networks"] = []
    doors.public.ask("GET", "/networks")  # the loop has seen the close when it answers this
    assert future.set_running_or_notify_cancel()
    future.set_result({})


def test_work_that_nobody_waits_for_may_fail_without_a_complaint(doors: Any, caplog: pytest.LogCaptureFixture) -> None:
    future: Future[Any] = Future()
    doors.service.results["up"] = future
    start_up(doors).close()
    future.set_exception(RuntimeError("nobody hears this as an answer"))
    doors.close()
    assert not [record for record in caplog.records if "never retrieved" in record.getMessage()]


def test_closing_waits_for_the_answer_of_a_request_under_way(doors: Any) -> None:
    future: Future[Any] = Future()
    doors.service.results["up"] = future
    with start_up(doors) as sock:
        closed = doors.closing()
        wait_until(lambda: refused(doors))
        assert not closed.done()
        future.set_result({"late": True})
        assert b'{"late":true}' in b"".join(iter(lambda: sock.recv(65536), b""))
        closed.result(30)


def refused(doors: Any) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(doors.private.path)) != 0


def test_closing_does_not_wait_for_connections_on_which_nothing_is_asked(doors: Any) -> None:
    doors.service.results["networks"] = []
    with socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(30)
        idle.connect(str(doors.public.path))
        idle.sendall(b"GET /networks HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        doors.close()
        assert b"".join(iter(lambda: idle.recv(65536), b"")) in (b"", b"[]\n")


def test_a_body_cut_off_asks_the_service_nothing(doors: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(doors.private.path))
        sock.sendall(UP.replace(b"Content-Length: 2", b"Content-Length: 3"))
    doors.service.results["networks"] = []
    doors.public.ask("GET", "/networks")
    doors.close()
    assert doors.service.calls == [("networks",)]


def test_a_slow_change_holds_up_nobody_else(doors: Any) -> None:
    doors.service.results["up"] = Future()
    doors.service.results["networks"] = []
    with start_up(doors):
        assert doors.public.ask("GET", "/networks").status == 200
        doors.service.results["up"].set_result({})
