"""Talking with the service manager, over a real datagram socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conetd.sdnotify import Notifier, adopted_fds


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def notifier(manager: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


def test_a_state_arrives_as_one_message(manager: socket.socket) -> None:
    notifier(manager).send("READY=1")
    assert manager.recv(4096) == b"READY=1"


def test_without_a_manager_nothing_is_sent_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).send("READY=1")
    assert not caplog.records


def test_an_abstract_address_is_understood() -> None:
    name = f"conetd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.setblocking(False)
        Notifier({"NOTIFY_SOCKET": "@" + name}).send("READY=1")
        assert sock.recv(4096) == b"READY=1"


def test_a_manager_that_is_gone_is_a_warning_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "could not notify systemd")
    ]


def test_a_stored_descriptor_arrives_with_its_name_and_is_the_same_file(manager: socket.socket) -> None:
    reader, writer = os.pipe()
    try:
        notifier(manager).store_fd("tcp-8080", writer)
        message, fds, _, _ = socket.recv_fds(manager, 4096, 4)
        assert message.decode().split("\n") == ["FDSTORE=1", "FDPOLL=0", "FDNAME=tcp-8080"]
        os.write(fds[0], b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        for fd in (reader, writer, *fds):
            os.close(fd)


def test_a_stored_descriptor_is_given_up_by_its_name(manager: socket.socket) -> None:
    notifier(manager).remove_fd("tcp-8080")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=tcp-8080"


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "x" * 256, "é"])
def test_a_name_systemd_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a possible name"):
        Notifier({}).store_fd(name, 0)
    with pytest.raises(ValueError, match="not a possible name"):
        Notifier({}).remove_fd(name)


def test_the_watchdog_is_on_only_for_this_process() -> None:
    assert Notifier({}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 3.0
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s is None


@pytest.fixture
def three_pipes_ends() -> Iterator[list[int]]:
    """Three descriptors with consecutive numbers, as a manager passes them."""
    pairs = [os.pipe() for _ in range(3)]
    first = 200
    passed = [os.dup2(reader, first + index, inheritable=True) for index, (reader, _) in enumerate(pairs)]
    yield passed
    for fd in [*passed, *(fd for pair in pairs for fd in pair)]:
        try:
            os.close(fd)
        except OSError:
            assert fd in passed  # closed by the test's subject


def announced(count: int, names: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": names, "HOME": "/"}


def test_kept_descriptors_are_found_by_name_and_close_on_exec(three_pipes_ends: list[int]) -> None:
    first, second, third = three_pipes_ends
    found = adopted_fds(announced(3, "tcp-1:tcp-2:udp-1"), first=first)
    assert found == {"tcp-1": first, "tcp-2": second, "udp-1": third}
    assert not any(os.get_inheritable(fd) for fd in found.values())


def test_of_two_kept_under_one_name_the_second_is_closed(three_pipes_ends: list[int]) -> None:
    first, second, third = three_pipes_ends
    assert adopted_fds(announced(3, "a:a:b"), first=first) == {"a": first, "b": third}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)


def test_the_announcement_is_used_up(three_pipes_ends: list[int]) -> None:
    environment = announced(1, "a")
    adopted_fds(environment, first=three_pipes_ends[0])
    assert environment == {"HOME": "/"}


def test_descriptors_for_another_process_are_left_alone() -> None:
    assert adopted_fds({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}) == {}
    assert adopted_fds({}) == {}
