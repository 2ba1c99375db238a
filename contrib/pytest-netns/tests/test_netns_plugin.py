"""The plugin's promises, against the real kernel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_netns import NetnsFactory, processes_in

pytest_plugins = ["pytester"]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def own_inode() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_a_made_namespace_is_not_ours_and_has_only_a_loopback_that_is_up(netns: NetnsFactory) -> None:
    host = netns.make("host")
    assert host.inode != own_inode()
    links = host.json("ip", "-j", "link")
    assert [link["ifname"] for link in links] == ["lo"]
    assert "UP" in links[0]["flags"]


def test_pid_fd_and_inode_name_the_same_namespace(netns: NetnsFactory) -> None:
    host = netns.make("host")
    assert os.fstat(host.fd).st_ino == host.inode == Path(f"/proc/{host.pid}/ns/net").stat().st_ino


def test_connected_namespaces_reach_each_other_by_both_families_at_once(netns: NetnsFactory) -> None:
    host, web = netns.make("host"), netns.make("web")
    host.connect(web, "192.0.2.1/24", "192.0.2.2/24", name="up0", peer_name="eth0", extra={"fd00::1/64": "fd00::2/64"})

    def listen() -> socket.socket:
        return socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)

    with web.call(listen):
        for address in ("192.0.2.2", "fd00::2"):
            host.call(socket.create_connection, (address, 8080), 5).close()


def test_unnamed_ends_are_called_after_where_they_lead(netns: NetnsFactory) -> None:
    host, web = netns.make("host"), netns.make("a-name-longer-than-an-interface-may-have")
    host.connect(web)
    assert {link["ifname"] for link in host.json("ip", "-j", "link")} == {"lo", "a-name-longer-t"}
    assert {link["ifname"] for link in web.json("ip", "-j", "link")} == {"lo", "host"}


def test_call_runs_inside_and_leaves_the_caller_outside(netns: NetnsFactory) -> None:
    host, before = netns.make("host"), own_inode()
    assert host.call(own_inode) == host.inode
    assert own_inode() == before


def test_call_raises_what_the_function_raises(netns: NetnsFactory) -> None:
    with pytest.raises(ZeroDivisionError):
        netns.make("host").call(lambda: 1 // 0)


def test_inside_holds_for_the_block_and_ends_also_after_an_error(netns: NetnsFactory) -> None:
    host, before = netns.make("host"), own_inode()
    seen: dict[str, int] = {}
    with pytest.raises(KeyError), host.inside():
        raise KeyError(seen.setdefault("inode", own_inode()))
    assert seen["inode"] == host.inode
    assert own_inode() == before


def test_a_failing_program_is_reported_with_its_words(netns: NetnsFactory) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        netns.make("host").run("ip", "link", "show", "nosuch")
    assert "nosuch" in caught.value.__notes__[0]
    assert caught.value.cmd == ["ip", "link", "show", "nosuch"]


def test_a_program_that_is_not_there_is_a_file_not_found(netns: NetnsFactory) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        netns.make("host").run("no-such-program")


def test_a_sysctl_is_read_and_written_inside_only(netns: NetnsFactory) -> None:
    host = netns.make("host")
    outside = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    assert host.sysctl("net.ipv4.ip_default_ttl", 33) == "33"
    assert host.sysctl("net/ipv4/ip_default_ttl") == "33"
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == outside


def test_popen_starts_inside_and_outlives_the_thread_that_asked(netns: NetnsFactory) -> None:
    host, started = netns.make("host"), []
    asking = threading.Thread(target=lambda: started.append(host.popen(["sleep", "infinity"])))
    asking.start()
    asking.join()
    assert Path(f"/proc/{started[0].pid}/ns/net").stat().st_ino == host.inode
    assert started[0].poll() is None


def test_closing_ends_started_programs_and_what_those_started(netns: NetnsFactory) -> None:
    with NetnsFactory() as factory:
        host = factory.make("host")
        program = host.popen(["sh", "-c", "setsid sleep infinity & wait"], stdout=subprocess.PIPE)
        until(lambda: len(processes_in(host.inode)) == 3, "sh, sleep and the holder run inside")
    assert program.poll() == -signal.SIGKILL
    until(lambda: not processes_in(host.inode), "every process is gone")


def test_closing_twice_is_closing_once(netns: NetnsFactory) -> None:
    host = netns.make("host")
    host.close()
    host.close()


def test_nothing_stays_behind_when_pytest_is_killed(netns: NetnsFactory, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pathlib, time
        def test_never_ends(netns):
            host = netns.make("host")
            host.popen(["sleep", "infinity"])
            pathlib.Path("new").write_text(str(host.inode))
            pathlib.Path("new").rename("inode")
            host.run("sleep", "infinity", timeout=None)
    """)
    command = [sys.executable, "-m", "pytest", "-q"]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL) as run:
        said = pytester.path / "inode"
        until(said.exists, "the inner run has made its namespace")
        inode = int(said.read_text())
        until(lambda: len(processes_in(inode)) == 3, "holder, popen and run are inside")
        run.kill()
    until(lambda: not processes_in(inode), "every process of the killed run is gone")


def test_without_the_right_to_make_namespaces_the_test_is_skipped_with_the_reason(
    netns: NetnsFactory, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile("""
        def test_asks(netns): netns.make("host")
        def test_asks_for_the_module(netns_module): netns_module.make("host")
        def test_asks_late(request): request.getfixturevalue("netns")
        def test_asks_not(): pass
    """)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    result = pytester.run(*drop, sys.executable, "-m", "pytest", "-rs")
    result.assert_outcomes(skipped=3, passed=1)
    reason = "needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make network namespaces"
    result.stdout.fnmatch_lines_random([f"SKIPPED [[]2[]]*{reason}*", f"SKIPPED [[]1[]]*{reason}*"])
