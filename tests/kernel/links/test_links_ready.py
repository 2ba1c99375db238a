"""When an attachment is made, its first packet goes through, for it is told only then."""

from __future__ import annotations

import socket
import time

import pytest
from pytest_netns import Netns

from conetd.kernel import Kernel, ready
from conetd.kernel.namespaces import NetNS
from conetd.kernel.work import open_rtnetlink
from conetd.plan import Plan, Veth
from tests.kernel.links_lab import NETWORK, attachment

ROUNDS = 25  # what workers of the kernel do late is late now and then
AT_ONCE_S = 0.5  # neighbours are asked for again after a second
PORT = 7000


def hears(web: Netns, host: Netns, address: str) -> bool:
    """Whether the host's first datagram arrives in the container."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with web.call(socket.socket, family, socket.SOCK_DGRAM) as there, host.call(socket.socket, family, 2) as here:
        there.bind((address, PORT))
        there.settimeout(AT_ONCE_S)
        try:
            here.sendto(b"first", (address, PORT))
            return there.recv(16) == b"first"
        except OSError:
            return False


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_the_first_packet_to_a_container_on_a_new_bridge_arrives(
    kernel: Kernel, inside: NetNS, host: Netns, web: Netns, address: str
) -> None:
    heard = []
    for _ in range(ROUNDS):
        kernel.ensure(NETWORK)
        kernel.ensure(attachment(2), "", inside)
        heard.append(hears(web, host, address))
        kernel.remove(attachment(2), inside)
        kernel.remove(NETWORK)
    assert heard == [True] * ROUNDS


def test_a_link_that_never_gets_its_carrier_is_waited_for_a_second_at_most(
    kernel: Kernel, network: Plan, inside: NetNS, host: Netns, web: Netns
) -> None:
    kernel.ensure(attachment(2), "", inside)
    web.run("ip", "link", "set", "eth0", "down")
    with host.call(open_rtnetlink) as outer, web.call(open_rtnetlink) as inner:
        started = time.monotonic()
        ready.wait(outer, [(inner, [attachment(2)])])
        assert time.monotonic() - started >= 1


def test_what_is_gone_again_is_not_waited_for(host: Netns, web: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    plan = Plan(links=(Veth("cv9", "eth0", "0a:00:00:00:00:09", 1500, "nowhere"),))
    with host.call(open_rtnetlink) as outer, web.call(open_rtnetlink) as inner:
        ready.wait(outer, [(inner, [plan])])
    assert waits == []
