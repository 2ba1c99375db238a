"""What is counted of a container's interface, whatever else the container has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pytest_netns import NetnsFactory

from conetd.errors import KernelError
from conetd.kernel.counters import received_and_sent


@pytest.fixture
def web(netns: NetnsFactory) -> Any:
    host, web = netns.make("host"), netns.make("web")
    host.connect(web, "192.0.2.1/24", "192.0.2.2/24", name="up0", peer_name="eth0")
    web.run("busybox", "ping", "-A", "-c", "3", "-s", "1000", "192.0.2.1")
    return web


def kernels(web: Any) -> tuple[int, int]:
    [link] = web.json("ip", "-j", "-s", "link", "show", "eth0")
    return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]


def counted(web: Any, interface: str) -> tuple[int, int]:
    with ThreadPoolExecutor(1) as pool:  # a thread in another namespace, as in the daemon
        return pool.submit(received_and_sent, web, interface).result()


def test_bytes_are_those_the_container_received_and_sent(web: Any) -> None:
    before, found, after = kernels(web), counted(web, "eth0"), kernels(web)
    assert all(low <= one <= high for low, one, high in zip(before, found, after, strict=True))
    assert min(found) > 3000


def test_an_interface_that_is_not_there_is_named(web: Any) -> None:
    with pytest.raises(KernelError, match="could not get link 'eth1': No such device"):
        counted(web, "eth1")


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1ceth0", b"eth0\x85"])
def test_a_name_that_is_no_text_hides_no_other(web: Any, name: bytes) -> None:
    web.run("ip", "link", "add", "dev", name, "type", "bridge")
    before, found, after = kernels(web), counted(web, "eth0"), kernels(web)
    assert all(low <= one <= high for low, one, high in zip(before, found, after, strict=True))
