"""The connection table of a namespace: finding flows by address and port, and ending exactly those."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel import conntrack
from conetd.kernel.conntrack import Conntrack
from conetd.kernel.flows import Flow
from conetd.model import IPAddress

CLIENT, SERVER, CLIENT6, SERVER6 = (ip_address(one) for one in ("192.0.2.2", "192.0.2.1", "fd00::2", "fd00::1"))
RULES = """
table inet t {
    chain pre { type nat hook prerouting priority -100;
        ip daddr 192.0.2.1 udp dport 8080 dnat ip to 192.0.2.1:80
        ip6 daddr fd00::1 udp dport 8080 dnat ip6 to [fd00::1]:80
    }
    chain in { type filter hook input priority 0; ct state new counter accept; }
}
"""


class Pair(NamedTuple):
    """A namespace that tracks connections; beside it one with a client."""

    host: Netns
    client: Netns


@pytest.fixture
def pair(netns: NetnsFactory) -> Pair:
    host, client = netns.make("host"), netns.make("client")
    host.connect(client, f"{SERVER}/24", f"{CLIENT}/24", extra={f"{SERVER6}/64": f"{CLIENT6}/64"})
    host.run("nft", "-f", "-", input=RULES)
    return Pair(host, client)


def send(pair: Pair, to: IPAddress, port: int, source_port: int = 5000) -> None:
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6

    def datagram() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(("", source_port))
            sock.sendto(b"x", (str(to), port))

    pair.client.call(datagram)


def ask(pair: Pair, question: Callable[[Conntrack], list[Flow]]) -> list[Flow]:
    with pair.host.call(Conntrack) as table:
        return question(table)


@pytest.mark.parametrize(("to", "client"), [(SERVER, CLIENT), (SERVER6, CLIENT6)])
def test_a_flow_is_found_by_the_address_that_opened_it(pair: Pair, to: IPAddress, client: IPAddress) -> None:
    send(pair, to, 9)
    (found,) = ask(pair, lambda table: table.flows_from(client))
    assert (found.protocol, found.source, found.source_port, found.destination, found.destination_port) == (
        *(17, client, 5000),
        *(to, 9),
    )


def test_a_flow_is_not_found_by_another_address(pair: Pair) -> None:
    send(pair, SERVER, 9)
    assert ask(pair, lambda table: table.flows_from(SERVER)) == []


@pytest.mark.parametrize(("to", "client"), [(SERVER, CLIENT), (SERVER6, CLIENT6)])
def test_a_translated_flow_is_found_by_its_target_with_both_ports(pair: Pair, to: IPAddress, client: IPAddress) -> None:
    send(pair, to, 8080)
    (found,) = ask(pair, lambda table: table.flows_reply_from(to))
    assert (found.dnat, found.snat, found.destination_port, found.reply_source_port) == (True, False, 8080, 80)
    assert (found.reply_destination, found.reply_destination_port) == (client, 5000)


@pytest.mark.parametrize(("to", "family"), [(SERVER, 4), (SERVER6, 6)])
def test_a_flow_is_found_by_the_port_it_was_sent_to(pair: Pair, to: IPAddress, family: int) -> None:
    for port in (80, 8080, 8081):
        send(pair, to, port)
    found = ask(pair, lambda table: table.flows_to_port(17, 8080, family))
    assert [one.destination_port for one in found] == [8080]


def test_a_port_is_of_one_protocol(pair: Pair) -> None:
    send(pair, SERVER, 8080)
    assert ask(pair, lambda table: table.flows_to_port(6, 8080, 4)) == []


def test_a_ping_has_type_and_code_and_no_ports(pair: Pair) -> None:

    def echo_request() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(bytes.fromhex("0800f7fd00010001"), (str(SERVER), 0))

    pair.client.call(echo_request)
    (found,) = ask(pair, lambda table: table.flows_from(CLIENT))
    assert (found.protocol, found.icmp_type, found.icmp_code, found.source_port) == (1, 8, 0, 0)


def test_deleting_ends_the_given_flows_and_no_other(pair: Pair) -> None:
    for port in (7, 8, 9):
        send(pair, SERVER, port)
    with pair.host.call(Conntrack) as table:
        wanted = [one for one in table.flows_from(CLIENT) if one.destination_port != 8]
        assert table.delete(wanted) == 2
        assert [one.destination_port for one in table.flows_from(CLIENT)] == [8]


def test_deleting_twice_deletes_nothing_the_second_time(pair: Pair) -> None:
    send(pair, SERVER, 9)
    with pair.host.call(Conntrack) as table:
        flows = table.flows_from(CLIENT)
        table.delete(flows)
        assert table.delete(flows) == 0


def test_a_flow_that_the_kernel_never_reported_is_not_taken_for_flush_everything(pair: Pair) -> None:
    send(pair, SERVER, 9)
    with pair.host.call(Conntrack) as table:
        invented = Flow(17, CLIENT, 1, SERVER, 2, SERVER, 2, CLIENT, 1)
        with pytest.raises(ValueError, match="not read from the kernel"):
            table.delete([invented])


@pytest.mark.parametrize("few", [conntrack._FEW, 0])
def test_many_questions_at_once_are_answered_alike_with_few_and_with_many_tracked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(conntrack, "_FEW", few)
    for to, port in [(SERVER, 8080), (SERVER6, 7), (SERVER, 7), (SERVER6, 8080)]:
        send(pair, to, port)
    found = ask(pair, lambda table: table.flows_of([CLIENT6], [(17, 8080, 4), (17, 8080, 6)]))
    assert {(one.destination, one.destination_port) for one in found} == {
        (SERVER, 8080),
        (SERVER6, 7),
        (SERVER6, 8080),
    }
    assert len(found) == 3


def test_a_kernel_that_ignores_the_filter_gives_the_same_answer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for port in (8080, 7):
        send(pair, SERVER, port)
    monkeypatch.setattr(conntrack, "_matches", lambda side, flags: b"")
    assert [one.destination_port for one in ask(pair, lambda table: table.flows_to_port(17, 8080, 4))] == [8080]


def test_a_kernel_that_refuses_the_filter_gives_the_same_answer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for port in (8080, 7):
        send(pair, SERVER, port)
    monkeypatch.setattr(conntrack, "_MATCH_PROTOCOL", 1 << 30)
    assert [one.destination_port for one in ask(pair, lambda table: table.flows_to_port(17, 8080, 4))] == [8080]


def test_the_flows_of_another_namespace_are_not_seen(pair: Pair) -> None:
    send(pair, SERVER, 9)
    with pair.client.call(Conntrack) as table:
        assert table.flows_from(CLIENT) == []
