"""What the iptables backend writes into the legacy tables, read back by iptables itself."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from conetd.errors import DriverError, KernelError
from conetd.kernel.iptables import IptablesBackend
from conetd.model import ICMP, ICMPV6, TCP, UDP, AddressRange, Icmp, MarkRange, PortRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping, Tunnel, TunnelPeer

NETWORK = NetworkFilter(
    "blue",
    (ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
    "br0",
    (ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
)
WEB = Endpoint(
    "web", "blue", "web", "br0", (ip_address("10.0.0.5"), ip_address("fd00::5")), "02:00:00:00:00:05", "veth5"
)
OPEN = EndpointPolicy("web")
EVERYTHING: list[FilterObject] = [NETWORK, WEB, OPEN]
SAVES = {4: "iptables-legacy-save", 6: "ip6tables-legacy-save"}


@pytest.fixture
def host(netns: Any) -> Any:
    return netns.make("host")


@pytest.fixture
def backend(host: Any) -> Iterator[IptablesBackend]:
    with contextlib.closing(host.call(IptablesBackend)) as made:
        yield made


def saved(host: Any, family: int = 4, *options: str) -> str:
    """All tables, without the lines that carry the time."""
    return re.sub(r"(?m)^#.*\n", "", host.run(SAVES[family], *options).stdout)


def rules_of(host: Any, chain: str, family: int = 4) -> list[str]:
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in saved(host, family).splitlines() if line.startswith(start)]


def send_to_itself() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"?", ("127.0.0.1", 9))


def span(first: str, last: str | None = None) -> AddressRange:
    return AddressRange(ip_address(first), ip_address(last or first))


@pytest.mark.parametrize(
    ("rule", "family", "text"),
    [
        (Rule(Verdict.DROP, TCP, (span("192.0.2.1", "192.0.2.9"),), ports=(PortRange(80, 90),)), 4,
         "-p tcp -m iprange --dst-range 192.0.2.1-192.0.2.9 -m tcp --dport 80:90 {who} -j DROP"),
        (Rule(Verdict.DROP, UDP, ports=(PortRange(53, 53), PortRange(60, 70))), 4,
         "-p udp -m multiport --dports 53,60:70 {who} -j DROP"),
        (Rule(Verdict.DROP, UDP, ports=(PortRange(53, 53),)), 6, "-p udp -m udp --dport 53 {who} -j DROP"),
        (Rule(Verdict.REJECT, ICMP, icmp=Icmp(8, 0)), 4,
         "-p icmp -m icmp --icmp-type 8/0 {who} -j REJECT --reject-with icmp-port-unreachable"),
        (Rule(Verdict.REJECT, ICMPV6, icmp=Icmp(128)), 6,
         "-p ipv6-icmp -m icmp6 --icmpv6-type 128 {who} -j REJECT --reject-with icmp6-port-unreachable"),
        (Rule(Verdict.ACCEPT, marks=(MarkRange(5, 5),)), 4, "-m mark --mark 0x5/0xffff {who} -g conetd-to"),
        (Rule(Verdict.ACCEPT, 47, sources=(span("fd00::1", "fd00::3"),)), 6,
         "-p gre -m iprange --src-range fd00::1-fd00::3 {who} -g conetd-to"),
        (Rule(Verdict.DROP, destinations=(AddressRange.of(ip_network("2001:db8::/33")),)), 6,
         "-d 2001:db8::/33 {who} -j DROP"),
    ],
)  # fmt: skip
def test_iptables_reads_a_rule_as_it_was_meant(
    backend: IptablesBackend, host: Any, rule: Rule, family: int, text: str
) -> None:
    backend.apply([NETWORK, WEB, EndpointPolicy("web", (rule,))])
    expected = text.format(who="-m comment --comment web")
    assert rules_of(host, "conetd-e-web", family) == [expected, "-g conetd-to"]


def test_what_is_logged_goes_to_a_netlink_group(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK, WEB, EndpointPolicy("web", (Rule(Verdict.DROP, log=True),))])
    logged = '-m comment --comment web -j NFLOG --nflog-prefix "web " --nflog-group 25444'
    assert rules_of(host, "conetd-e-web")[0] == logged


def test_an_interface_is_matched_by_its_whole_name_in_ipv6(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    assert rules_of(host, "conetd-raw", 6) == ["-i br0 -g conetd-s-br0"]


def test_ports_are_published_on_addresses_of_the_host_alone(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK, WEB, EndpointPolicy("web", ports=(PortMapping(TCP, 8080, ip_address("fd00::5"), 80),))])
    published = "-p tcp -m tcp --dport 8080 -m comment --comment web -j DNAT --to-destination [fd00::5]:80"
    assert rules_of(host, "conetd-pre", 6) == [published]
    assert "! -d ::1/128 -m addrtype --dst-type LOCAL -j conetd-pre" in rules_of(host, "PREROUTING", 6)


def test_a_mark_changes_the_low_bits_only(backend: IptablesBackend, host: Any) -> None:
    marked = Endpoint("web", "blue", "web", "br0", (ip_address("10.0.0.5"),), "02:00:00:00:00:05", mark=7)
    backend.apply([NETWORK, marked, OPEN])
    (rule,) = rules_of(host, "conetd-mark")
    assert rule.endswith("-j MARK --set-xmark 0x7/0xffff")


def test_iptables_can_restore_what_it_saved_of_ours(backend: IptablesBackend, host: Any) -> None:
    mapping = PortMapping(UDP, 53, ip_address("10.0.0.5"), 53, masquerade=True)
    backend.apply([NETWORK, WEB, EndpointPolicy("web", (Rule(Verdict.REJECT, log=True),), (mapping,))])
    before = saved(host)
    host.run("iptables-legacy-restore", input=before)
    assert saved(host) == before


def test_the_kernel_holds_what_was_applied(backend: IptablesBackend) -> None:
    backend.apply(EVERYTHING)
    assert backend.check(EVERYTHING) == []


def test_an_object_that_was_never_applied_is_found_missing(backend: IptablesBackend) -> None:
    backend.apply([NETWORK])
    assert {drift.object for drift in backend.check([WEB, OPEN])} == {"Endpoint web", "EndpointPolicy web"}


def test_check_does_not_look_for_other_objects(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    host.run("iptables-legacy", "-F", "conetd-e-web")
    assert backend.check([NETWORK]) == []


def test_what_was_flushed_is_reported_and_stands_again_after_sync(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    before = saved(host)
    host.run("iptables-legacy", "-F")
    assert "Endpoint web" in {drift.object for drift in backend.sync(EVERYTHING)}
    assert saved(host) == before


def test_sync_removes_what_an_earlier_life_left(backend: IptablesBackend, host: Any) -> None:
    backend.apply([*EVERYTHING, EndpointPolicy("web", (), (PortMapping(TCP, 80, ip_address("10.0.0.5"), 80),))])
    with contextlib.closing(host.call(IptablesBackend)) as later:
        later.sync([NETWORK])
    assert "web" not in saved(host)


def test_a_second_sync_finds_nothing(backend: IptablesBackend) -> None:
    backend.sync(EVERYTHING)
    assert backend.sync(EVERYTHING) == []


def test_a_start_with_the_same_objects_finds_nothing(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    with contextlib.closing(host.call(IptablesBackend)) as later:
        assert later.sync([OPEN, WEB, NETWORK]) == []


def test_applying_twice_is_once(backend: IptablesBackend, host: Any) -> None:
    loopback = NetworkFilter("lo", (ip_network("10.0.0.0/24"),), "lo")
    backend.apply([loopback])
    host.call(send_to_itself)  # is dropped and counted: nobody owns the address
    before = saved(host, 4, "-c")
    backend.apply([loopback])
    assert saved(host, 4, "-c") == before
    assert "[1:29] -A conetd-s-lo -j DROP" in before


def test_dropping_what_is_not_there_is_success(backend: IptablesBackend) -> None:
    backend.apply(EVERYTHING)
    backend.apply(drop=[("Endpoint", "nobody")])
    assert backend.check(EVERYTHING) == []


def test_an_object_is_held_as_last_applied(backend: IptablesBackend) -> None:
    backend.apply(EVERYTHING)
    assert (backend.held("Endpoint", "web"), backend.held("Endpoint", "other")) == (WEB, None)


def test_a_refused_change_leaves_every_table_as_it_was(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    before = saved(host)
    # a port mapping of a protocol without ports: the kernel refuses the nat table, after the filter table has changed
    refused = EndpointPolicy("web", (Rule(Verdict.DROP),), (PortMapping(ICMP, 80, ip_address("10.0.0.5"), 80),))
    with pytest.raises(KernelError, match=r"change iptables table nat for EndpointPolicy web: Invalid argument"):
        backend.apply([refused])
    assert (saved(host), backend.held("EndpointPolicy", "web")) == (before, OPEN)


def test_a_jump_that_stands_twice_is_reduced_to_one(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    host.run("iptables-legacy", "-A", "FORWARD", "-j", "conetd-forward")
    backend.sync(EVERYTHING)
    assert rules_of(host, "FORWARD") == ["-j conetd-forward"]


TUNNELLED = NetworkFilter("red", (ip_network("10.1.0.0/16"),), tunnel=Tunnel("cx0", 4789, 42, ((4, 24),)), name="far")
PEER = TunnelPeer("two", "cx0", 4789, 42, ip_address("192.0.2.2"), "ee:ee:0a:01:04:00", (ip_network("10.1.4.0/24"),))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (TUNNELLED, "network far: its tunnel to other hosts"),
        (PEER, "host at 192.0.2.2: the tunnel cx0 to it"),
        (EndpointPolicy("web", inside=()), "policy of web: its rules for what stays inside the network"),
    ],
    ids=["tunnel", "host", "inside"],
)
def test_what_needs_nftables_is_refused_and_nothing_is_changed(
    backend: IptablesBackend, host: Any, asked: FilterObject, words: str
) -> None:
    backend.apply(EVERYTHING)
    before = saved(host)
    said = rf'^{words} can be filtered by nftables alone, so set filter = "nftables"$'
    for call in (backend.apply, backend.sync, backend.check):
        with pytest.raises(DriverError, match=said):
            call([NETWORK, WEB, asked])
    assert saved(host) == before
    assert backend.held("EndpointPolicy", "web") == OPEN


def test_who_has_an_ingress_does_not_take_connections_up_in_the_middle(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK, WEB, EndpointPolicy("web", ingress=())])
    said = "-p tcp -m conntrack --ctstate INVALID,NEW -m tcp ! --tcp-flags SYN,ACK SYN -m comment --comment web -j DROP"
    assert rules_of(host, "conetd-f-blue")[0] == f"-s 10.0.0.5/32 -d 10.0.0.0/24 {said}"
    assert rules_of(host, "conetd-f-blue", 6)[0] == f"-s fd00::5/128 -d fd00::/64 {said}"


def test_a_link_stays_shut_until_it_is_gone(backend: IptablesBackend, host: Any) -> None:
    host.run("ip", "link", "add", "own0", "type", "veth", "peer", "name", "own1")
    alone = Endpoint("web", "routed", "web", "own0", (ip_address("10.1.0.5"),), "02:00:00:00:00:05")
    backend.apply([NetworkFilter("routed", (ip_network("10.1.0.0/24"),)), alone, OPEN])
    backend.apply(drop=[("Endpoint", "web"), ("EndpointPolicy", "web")])
    assert rules_of(host, "conetd-raw") == ["-i own0 -j DROP"]
    host.run("ip", "link", "delete", "own0")
    backend.disturbed()
    assert rules_of(host, "conetd-raw") == []


def test_an_opened_uplink_stands_last(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    backend.set_opened(4, ["eth0"])
    assert rules_of(host, "conetd-forward") == ["-i br0 -g conetd-f-blue", "-o br0 -g conetd-to", "-i eth0 -j DROP"]


def test_what_an_earlier_life_left_stays_in_force_until_the_first_sync(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    backend.set_opened(4, ["eth0"])
    before = saved(host)
    other = Endpoint("new", "blue", "new", "br0", (ip_address("10.0.0.6"),), "02:00:00:00:00:06", "veth6")
    with contextlib.closing(host.call(IptablesBackend)) as later:
        later.apply([NETWORK, other, EndpointPolicy("new")], [("NetworkFilter", "green")])
        added = saved(host)
        assert [line for line in before.splitlines() if line not in added] == []
        assert rules_of(host, "conetd-s-br0")[-1] == "-j DROP"
        later.sync(EVERYTHING)
        assert saved(host) == before


def test_a_new_life_can_remove_everything(backend: IptablesBackend, host: Any) -> None:
    backend.apply(EVERYTHING)
    with contextlib.closing(host.call(IptablesBackend)) as later:
        later.remove_all()
    assert "conetd" not in saved(host) + saved(host, 6)
