"""How a container's namespace is opened and entered, and which one is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import Invalid, KernelError, NotFound
from conetd.kernel.namespaces import inside, open_namespace
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink
from conetd.kernel.work import index_of


@pytest.fixture
def host(netns: NetnsFactory):
    return netns.make("host")


@pytest.fixture
def web(netns: NetnsFactory):
    return netns.make("web")


def own_inode() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_an_open_namespace_tells_its_inode(host: Netns, web: Netns) -> None:
    with host.call(open_namespace, web.pid) as opened:
        assert opened.inode == web.inode


def test_closing_twice_is_fine(host: Netns, web: Netns) -> None:
    opened = host.call(open_namespace, web.pid)
    opened.close()
    opened.close()
    assert opened.fd == -1


def test_the_hosts_own_namespace_is_refused(host: Netns) -> None:
    with pytest.raises(Invalid, match=f"process {host.pid} is in the host's network namespace"):
        host.call(open_namespace, host.pid)


def test_a_process_that_is_gone_is_told(host: Netns) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(NotFound, match=f"process {process.pid} is gone, and its network namespace with it"):
        host.call(open_namespace, process.pid)


def test_a_process_that_ended_and_was_not_waited_for_is_gone(host: Netns, web: Netns) -> None:
    process = web.popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotFound):
        host.call(open_namespace, process.pid)


def test_inside_is_there_and_back(host: Netns, web: Netns) -> None:
    def visit():
        with open_namespace(web.pid) as opened, inside(opened):
            there = own_inode()
        return there, own_inode()

    assert host.call(visit) == (web.inode, host.inode)


def test_a_socket_opened_inside_stays_there(host: Netns, web: Netns) -> None:
    web.run("ip", "link", "add", "here0", "type", "bridge")

    def index_elsewhere():
        with open_namespace(web.pid) as opened, inside(opened):
            probe = Netlink(NETLINK_ROUTE)
        with probe:
            return index_of(probe, "here0")

    assert host.call(index_elsewhere) > 0


def test_an_error_inside_comes_back_to_the_host_too(host: Netns, web: Netns) -> None:
    def visit():
        with open_namespace(web.pid) as opened:
            with pytest.raises(NotFound), inside(opened):
                raise NotFound("nothing here")
            return own_inode()

    assert host.call(visit) == host.inode


def test_a_closed_namespace_cannot_be_entered(host: Netns, web: Netns) -> None:
    opened = host.call(open_namespace, web.pid)
    opened.close()

    def visit():
        with inside(opened):
            pass

    with pytest.raises(KernelError, match=f"could not enter network namespace {web.inode}: Bad file descriptor"):
        host.call(visit)


def test_the_main_thread_never_leaves(host: Netns, web: Netns) -> None:
    with host.call(open_namespace, web.pid) as opened, pytest.raises(AssertionError), inside(opened):
        pass
