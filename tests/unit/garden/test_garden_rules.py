"""What NetOut rules mean as entries of a bridge network's policy, and which of them Garden or its iptables refuse."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from conetd_bridge.policy import PolicySchema
from hypothesis import given
from hypothesis import strategies as st

from conetd import documents
from conetd.errors import Invalid
from conetd.garden.rules import net_out_entries
from conetd.garden.wire import ICMPControl, IPRange, NetOutRule, PortRange
from conetd.model import Rule, read_address
from conetd.policy.judge import Packet, judge

ALL, TCP, UDP, ICMP, ICMPV6 = range(5)
SOURCE, SOURCE6 = ip_address("10.254.0.2"), ip_address("fd00::2")


def addresses(first: str | None = None, last: str | None = None) -> IPRange:
    return IPRange(None if first is None else ip_address(first), None if last is None else ip_address(last))


def meaning(*rules: NetOutRule, ipv6: bool = False) -> tuple[Rule, ...]:
    """The rules that a policy has by the entries, once the bridge's own schema has read it."""
    document = {"net_out": net_out_entries(rules, ipv6=ipv6)}
    found: tuple[Rule, ...] = documents.load(PolicySchema(), document).net_out
    return found


def packet(text: str) -> Packet:
    """`tcp 8.8.8.8 53`, `icmp 8.8.8.8 3/0` or `sctp 8.8.8.8`."""
    name, to, *more = text.split()
    destination = ip_address(to)
    source = SOURCE if destination.version == 4 else SOURCE6
    protocol = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132}[name]
    if name in ("tcp", "udp"):
        ports = {"source_port": 40000, "destination_port": int(more[0])}
        return Packet(destination.version, protocol, source, destination, **ports)
    kind, code = (int(number) for number in more[0].split("/")) if more else (None, None)
    return Packet(destination.version, protocol, source, destination, icmp_type=kind, icmp_code=code)


EVERYTHING = ["tcp 8.8.8.8 53", "udp 10.0.0.1 0", "icmp 8.8.8.8 8/0", "sctp 8.8.8.8"]


@pytest.mark.parametrize(
    ("rule", "opened", "closed"),
    [
        (NetOutRule(), EVERYTHING, []),
        (NetOutRule(ALL, (addresses(),)), EVERYTHING, []),
        (NetOutRule(TCP), ["tcp 8.8.8.8 0", "tcp 10.0.0.1 65535"], ["udp 8.8.8.8 53", "icmp 8.8.8.8 8/0"]),
        (NetOutRule(UDP), ["udp 8.8.8.8 53"], ["tcp 8.8.8.8 53", "icmp 8.8.8.8 8/0", "sctp 8.8.8.8"]),
        (NetOutRule(ICMP), ["icmp 8.8.8.8 8/0", "icmp 8.8.8.8 255/3"], ["tcp 8.8.8.8 53", "udp 8.8.8.8 53"]),
        # networks
        (
            NetOutRule(TCP, (addresses("10.0.0.5", "10.0.0.7"),)),
            ["tcp 10.0.0.5 1", "tcp 10.0.0.6 1", "tcp 10.0.0.7 1"],
            ["tcp 10.0.0.4 1", "tcp 10.0.0.8 1", "udp 10.0.0.6 1"],
        ),
        (NetOutRule(ALL, (addresses("10.0.0.5", "10.0.0.5"),)), ["tcp 10.0.0.5 1"], ["tcp 10.0.0.6 1"]),
        (
            NetOutRule(ALL, (addresses("10.0.0.5"),)),
            ["tcp 10.0.0.5 1"],
            ["tcp 10.0.0.4 1", "tcp 10.0.0.6 1", "tcp 255.255.255.255 1"],
        ),
        (
            NetOutRule(ALL, (addresses(None, "10.0.0.5"),)),
            ["tcp 10.0.0.5 1"],
            ["tcp 10.0.0.4 1", "tcp 10.0.0.6 1", "tcp 0.0.0.0 1"],
        ),
        (
            NetOutRule(ALL, (addresses("10.0.0.0", "10.0.0.255"), addresses("192.0.2.1"))),
            ["tcp 10.0.0.0 1", "tcp 10.0.0.255 1", "sctp 192.0.2.1"],
            ["tcp 10.0.1.0 1", "tcp 192.0.2.2 1"],
        ),
        (NetOutRule(TCP, (addresses("10.0.0.5"), addresses())), ["tcp 10.0.0.5 1", "tcp 8.8.8.8 1"], ["udp 8.8.8.8 1"]),
        (NetOutRule(ALL, (addresses("0.0.0.0", "255.255.255.255"),)), EVERYTHING, []),
        # ports
        (NetOutRule(TCP, ports=(PortRange(53, 53),)), ["tcp 8.8.8.8 53"], ["tcp 8.8.8.8 54", "udp 8.8.8.8 53"]),
        (
            NetOutRule(UDP, ports=(PortRange(50, 60), PortRange(80, 80))),
            ["udp 8.8.8.8 50", "udp 8.8.8.8 60", "udp 8.8.8.8 80"],
            ["udp 8.8.8.8 49", "udp 8.8.8.8 61", "tcp 8.8.8.8 80"],
        ),
        (NetOutRule(TCP, ports=(PortRange(),)), ["tcp 8.8.8.8 0"], ["tcp 8.8.8.8 1", "tcp 8.8.8.8 80"]),
        (NetOutRule(TCP, ports=(PortRange(0, 1023),)), ["tcp 8.8.8.8 0", "tcp 8.8.8.8 1023"], ["tcp 8.8.8.8 1024"]),
        (NetOutRule(TCP, ports=(PortRange(1, 65535),)), ["tcp 8.8.8.8 65535"], ["tcp 8.8.8.8 0"]),
        (
            NetOutRule(TCP, (addresses("10.0.0.5"), addresses("10.0.0.9")), (PortRange(53, 53), PortRange(80, 80))),
            ["tcp 10.0.0.5 53", "tcp 10.0.0.5 80", "tcp 10.0.0.9 53", "tcp 10.0.0.9 80"],
            ["tcp 10.0.0.6 53", "tcp 10.0.0.5 54"],
        ),
        # ICMP
        (
            NetOutRule(ICMP, icmps=ICMPControl(3)),
            ["icmp 8.8.8.8 3/0", "icmp 8.8.8.8 3/255"],
            ["icmp 8.8.8.8 0/0", "icmp 8.8.8.8 8/3", "tcp 8.8.8.8 3"],
        ),
        (NetOutRule(ICMP, icmps=ICMPControl(3, 4)), ["icmp 8.8.8.8 3/4"], ["icmp 8.8.8.8 3/0", "icmp 8.8.8.8 4/4"]),
        (NetOutRule(ICMP, icmps=ICMPControl()), ["icmp 8.8.8.8 0/0", "icmp 8.8.8.8 0/9"], ["icmp 8.8.8.8 8/0"]),
        (NetOutRule(ICMP, icmps=ICMPControl(0, 0)), ["icmp 8.8.8.8 0/0"], ["icmp 8.8.8.8 0/1", "icmp 8.8.8.8 8/0"]),
        (NetOutRule(ICMP, icmps=ICMPControl(8, 255)), ["icmp 8.8.8.8 8/255"], ["icmp 8.8.8.8 8/0"]),
        (NetOutRule(ICMP, icmps=ICMPControl(255, 255)), ["icmp 8.8.8.8 8/0", "icmp 8.8.8.8 3/4"], ["tcp 8.8.8.8 1"]),
        (NetOutRule(ICMP, icmps=ICMPControl(255)), ["icmp 8.8.8.8 8/0", "icmp 8.8.8.8 3/4"], ["udp 8.8.8.8 1"]),
        (NetOutRule(ICMP, icmps=ICMPControl(255, 3)), ["icmp 8.8.8.8 8/0", "icmp 8.8.8.8 3/4"], []),
        (
            NetOutRule(ICMP, (addresses("10.0.0.5"),), icmps=ICMPControl(8)),
            ["icmp 10.0.0.5 8/0"],
            ["icmp 10.0.0.6 8/0", "icmp 10.0.0.5 0/0"],
        ),
        # what runs backwards never matches
        (NetOutRule(ALL, (addresses("10.0.0.9", "10.0.0.1"),)), [], [*EVERYTHING, "tcp 10.0.0.5 1", "tcp 10.0.0.9 1"]),
        (
            NetOutRule(TCP, (addresses("10.0.0.9", "10.0.0.1"), addresses("10.0.0.5")), (PortRange(80, 80),)),
            ["tcp 10.0.0.5 80"],
            ["tcp 10.0.0.4 80", "tcp 10.0.0.9 80", "tcp 8.8.8.8 80"],
        ),
    ],
)
@pytest.mark.parametrize("ipv6", [False, True])
def test_a_rule_opens_what_garden_s_opens_and_nothing_else(
    rule: NetOutRule, opened: list[str], closed: list[str], ipv6: bool
) -> None:
    rules = meaning(rule, ipv6=ipv6)

    assert [one for one in opened if judge(rules, packet(one)) is None] == []
    assert [one for one in closed if judge(rules, packet(one)) is not None] == []


@pytest.mark.parametrize(
    ("rule", "opened", "closed"),
    [
        (NetOutRule(), ["tcp fd00::1 1", "icmpv6 fd00::1 128/0", "sctp fd00::1", "tcp 8.8.8.8 1"], []),
        (NetOutRule(TCP, ports=(PortRange(80, 80),)), ["tcp fd00::1 80", "tcp 8.8.8.8 80"], ["udp fd00::1 80"]),
        (NetOutRule(ICMP), ["icmp 8.8.8.8 8/0"], ["icmpv6 fd00::1 128/0"]),
        (NetOutRule(ICMPV6), ["icmpv6 fd00::1 128/0", "icmpv6 fd00::1 1/4"], ["icmp 8.8.8.8 8/0", "tcp fd00::1 1"]),
        (NetOutRule(ICMPV6, icmps=ICMPControl(128)), ["icmpv6 fd00::1 128/7"], ["icmpv6 fd00::1 129/0"]),
        (NetOutRule(ICMPV6, icmps=ICMPControl(1, 4)), ["icmpv6 fd00::1 1/4"], ["icmpv6 fd00::1 1/3"]),
        (NetOutRule(ICMPV6, icmps=ICMPControl(255)), ["icmpv6 fd00::1 128/0"], ["icmp 8.8.8.8 8/0"]),
        (NetOutRule(ICMPV6, (addresses("fd00::1"),)), ["icmpv6 fd00::1 128/0"], ["icmpv6 fd00::2 128/0"]),
        (
            NetOutRule(ALL, (addresses("fd00::1", "fd00::ff"),)),
            ["tcp fd00::1 1", "udp fd00::80 1", "icmpv6 fd00::ff 128/0"],
            ["tcp fd00::100 1", "tcp 8.8.8.8 1"],
        ),
        (
            NetOutRule(UDP, (addresses("fd00::1"), addresses("8.8.8.8")), (PortRange(53, 53),)),
            ["udp fd00::1 53", "udp 8.8.8.8 53"],
            ["udp fd00::2 53", "udp 8.8.4.4 53", "udp fd00::1 54"],
        ),
        (NetOutRule(ALL, (addresses("fd00::9", "fd00::1"),)), [], ["tcp fd00::5 1", "tcp fd00::9 1", "tcp 8.8.8.8 1"]),
        (NetOutRule(ALL, (addresses("fd00::9"), addresses())), ["tcp fd00::5 1", "tcp 8.8.8.8 1"], []),
    ],
)
def test_on_a_network_with_ipv6_rules_are_about_that_too(
    rule: NetOutRule, opened: list[str], closed: list[str]
) -> None:
    rules = meaning(rule, ipv6=True)

    assert [one for one in opened if judge(rules, packet(one)) is None] == []
    assert [one for one in closed if judge(rules, packet(one)) is not None] == []


@pytest.mark.parametrize("protocol", [ALL, TCP, UDP, ICMP])
@pytest.mark.parametrize("log", [False, True])
def test_every_protocol_can_log(protocol: int, log: bool) -> None:
    [rule] = meaning(NetOutRule(protocol, log=log))
    assert rule.log is log


def test_the_last_of_a_list_is_judged_first() -> None:
    rules = meaning(NetOutRule(TCP), NetOutRule(UDP), NetOutRule(ICMP))
    assert [rule.protocol for rule in rules] == [1, 17, 6]


@pytest.mark.parametrize(("first", "second", "logged"), [(True, False, False), (False, True, True)])
def test_of_two_that_match_the_later_says_whether_to_log(first: bool, second: bool, logged: bool) -> None:
    found = judge(meaning(NetOutRule(TCP, log=first), NetOutRule(log=second)), packet("tcp 8.8.8.8 53"))
    assert found is not None
    assert found.log is logged


def test_no_rules_are_no_entries() -> None:
    assert net_out_entries((), ipv6=False) == []


def test_three_thousand_rules_are_three_thousand_entries() -> None:
    rules = [NetOutRule(TCP, (addresses(f"10.0.{number // 250}.{number % 250}"),)) for number in range(3000)]
    assert len(meaning(*rules)) == 3000


# Refusals


def refusal(*rules: NetOutRule, ipv6: bool = False, path: str | None = None) -> Invalid:
    with pytest.raises(Invalid) as refused:
        net_out_entries(rules, ipv6=ipv6, path=path)
    return refused.value


BACKWARDS = (PortRange(80, 0),)
SOME_PORTS = (PortRange(80, 80),)
IPV6 = (addresses("fd00::1"),)


@pytest.mark.parametrize(
    ("rule", "field", "message"),
    [
        # Garden's own two, word for word: no name is a space at the end
        (NetOutRule(ALL, ports=SOME_PORTS), "ports", "Ports cannot be specified for Protocol ALL"),
        (NetOutRule(ICMP, ports=SOME_PORTS), "ports", "Ports cannot be specified for Protocol ICMP"),
        (NetOutRule(ICMPV6, ports=SOME_PORTS), "ports", "Ports cannot be specified for Protocol "),
        (NetOutRule(52, ports=SOME_PORTS), "ports", "Ports cannot be specified for Protocol "),
        (NetOutRule(ALL, ports=(PortRange(),)), "ports", "Ports cannot be specified for Protocol ALL"),
        (NetOutRule(ICMPV6), "protocol", "invalid protocol: 4"),
        (NetOutRule(5), "protocol", "invalid protocol: 5"),
        (NetOutRule(52), "protocol", "invalid protocol: 52"),
        (NetOutRule(255), "protocol", "invalid protocol: 255"),
        # what iptables says of the rest, with the field
        (NetOutRule(ALL, icmps=ICMPControl()), "icmps", "icmps: cannot be specified for Protocol ALL"),
        (NetOutRule(TCP, icmps=ICMPControl(8)), "icmps", "icmps: cannot be specified for Protocol TCP"),
        (NetOutRule(UDP, icmps=ICMPControl(255, 255)), "icmps", "icmps: cannot be specified for Protocol UDP"),
        (NetOutRule(TCP, ports=BACKWARDS), "ports[0]", "ports[0]: 80:0: invalid portrange (min > max)"),
        (
            NetOutRule(UDP, ports=(*SOME_PORTS, PortRange(443, 442))),
            "ports[1]",
            "ports[1]: 443:442: invalid portrange (min > max)",
        ),
        *(
            (
                NetOutRule(TCP, (addresses("8.8.8.8"), one)),
                "networks[1]",
                "networks[1]: host/network fd00::1 not found: the network has no IPv6",
            )
            for one in (
                addresses("fd00::1", "fd00::2"),
                addresses("fd00::1"),
                addresses(None, "fd00::1"),
                addresses("fd00::1", "::"),
                addresses("8.8.8.8", "fd00::1"),
            )
        ),
        # in the order in which they are told
        (NetOutRule(52, IPV6, BACKWARDS, ICMPControl()), "ports", "Ports cannot be specified for Protocol "),
        (NetOutRule(ICMPV6, IPV6, (), ICMPControl()), "protocol", "invalid protocol: 4"),
        (NetOutRule(ALL, IPV6, BACKWARDS), "ports", "Ports cannot be specified for Protocol ALL"),
        (NetOutRule(TCP, IPV6, BACKWARDS, ICMPControl()), "icmps", "icmps: cannot be specified for Protocol TCP"),
        (NetOutRule(TCP, IPV6, BACKWARDS), "ports[0]", "ports[0]: 80:0: invalid portrange (min > max)"),
    ],
)
def test_a_rule_that_garden_or_its_iptables_refuse_is_refused(rule: NetOutRule, field: str, message: str) -> None:
    found = refusal(rule)
    assert found.message == message
    assert list(found.fields) == [field]


@pytest.mark.parametrize(
    ("rule", "field", "message"),
    [
        (NetOutRule(ICMPV6, ports=SOME_PORTS), "ports", "Ports cannot be specified for Protocol "),
        (NetOutRule(5), "protocol", "invalid protocol: 5"),
        (NetOutRule(ICMP, IPV6), "networks[0]", "networks[0]: host/network fd00::1 not found: it has no Protocol ICMP"),
        (
            NetOutRule(ICMPV6, (addresses("8.8.8.8"),)),
            "networks[0]",
            "networks[0]: host/network 8.8.8.8 not found: it has no Protocol ICMPV6",
        ),
        (
            NetOutRule(TCP, (addresses(), addresses("8.8.8.8", "fd00::1"))),
            "networks[1]",
            "networks[1]: bad IP range 8.8.8.8-fd00::1: one is IPv4, the other IPv6",
        ),
        (
            NetOutRule(TCP, (addresses("fd00::1", "8.8.8.8"),)),
            "networks[0]",
            "networks[0]: bad IP range fd00::1-8.8.8.8: one is IPv4, the other IPv6",
        ),
    ],
)
def test_ipv6_does_not_make_everything_possible(rule: NetOutRule, field: str, message: str) -> None:
    found = refusal(rule, ipv6=True)
    assert found.message == message
    assert list(found.fields) == [field]


@pytest.mark.parametrize(
    ("path", "rule", "field", "message"),
    [
        ("", NetOutRule(52), "[1].protocol", "invalid protocol: 52"),
        ("", NetOutRule(TCP, ports=BACKWARDS), "[1].ports[0]", "[1].ports[0]: 80:0: invalid portrange (min > max)"),
        ("netout_rules", NetOutRule(ports=SOME_PORTS), "netout_rules[1].ports", None),
        ("netout_rules", NetOutRule(icmps=ICMPControl()), "netout_rules[1].icmps", None),
        ("netout_rules", NetOutRule(TCP, IPV6), "netout_rules[1].networks[0]", None),
    ],
)
def test_of_a_list_it_is_told_which_rule_is_wrong(path: str, rule: NetOutRule, field: str, message: Any) -> None:
    found = refusal(NetOutRule(), rule, NetOutRule(53), path=path)
    assert list(found.fields) == [field]
    assert message is None or found.message == message


# Against Garden's translation: a rule for each port and network, judged newest first


def returned(rule: NetOutRule, sent: Packet) -> bool:
    """Whether one of the iptables rules that Garden makes of a rule takes the packet."""
    if rule.protocol != ALL and sent.protocol != {TCP: 6, UDP: 17, ICMP: 1}[rule.protocol]:
        return False
    if rule.icmps is not None and rule.icmps.type != 255:
        code = sent.icmp_code if rule.icmps.code is None else rule.icmps.code
        if (sent.icmp_type, sent.icmp_code) != (rule.icmps.type, code):
            return False
    port = sent.destination_port
    in_ports = [port is not None and one.start <= port <= one.end for one in rule.ports]
    in_networks = [
        (one.start is None and one.end is None)
        or int(one.start or one.end or 0) <= int(sent.destination) <= int(one.end or one.start or 0)
        for one in rule.networks
    ]
    return any(in_ports or [True]) and any(in_networks or [True])


few_addresses = st.sampled_from([ip_address(f"10.0.0.{last}") for last in range(1, 6)])
few_ports = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda two: PortRange(min(two), max(two)))
byte = st.sampled_from([0, 3, 8, 255])
networks = st.lists(st.builds(IPRange, st.none() | few_addresses, st.none() | few_addresses), max_size=3).map(tuple)
common = {"networks": networks, "log": st.booleans()}
rules = (
    st.builds(NetOutRule, st.sampled_from([TCP, UDP]), ports=st.lists(few_ports, max_size=2).map(tuple), **common)
    | st.builds(NetOutRule, st.just(ICMP), icmps=st.none() | st.builds(ICMPControl, byte, st.none() | byte), **common)
    | st.builds(NetOutRule, st.just(ALL), **common)
)
packets = st.builds(
    lambda protocol, to, port: Packet(4, protocol, SOURCE, to, 40000, port),
    st.sampled_from([6, 17]),
    few_addresses,
    st.integers(0, 5),
) | st.builds(
    lambda to, kind, code: Packet(4, 1, SOURCE, to, icmp_type=kind, icmp_code=code), few_addresses, byte, byte
)


@given(st.lists(rules, max_size=5), st.lists(packets, min_size=1, max_size=10), st.booleans())
def test_rules_open_and_log_what_garden_s_iptables_would(
    given_rules: Sequence[NetOutRule], sent: Sequence[Packet], ipv6: bool
) -> None:
    ours = meaning(*given_rules, ipv6=ipv6)

    for one in sent:
        theirs = next((rule for rule in reversed(given_rules) if returned(rule, one)), None)
        found = judge(ours, one)
        assert (found is None) == (theirs is None)
        assert found is None or theirs is None or found.log == theirs.log


any_address = st.ip_addresses().map(lambda one: read_address(str(one)))  # as it is read, so never IPv4 in IPv6
any_rule = st.builds(
    NetOutRule,
    st.integers(0, 5),
    st.lists(st.builds(IPRange, st.none() | any_address, st.none() | any_address), max_size=2).map(tuple),
    st.lists(st.builds(PortRange, st.integers(0, 65535), st.integers(0, 65535)), max_size=2).map(tuple),
    st.none() | st.builds(ICMPControl, st.integers(0, 255), st.none() | st.integers(0, 255)),
    st.booleans(),
)


@given(st.lists(any_rule, max_size=8), st.booleans())
def test_what_is_not_refused_is_a_policy_that_the_bridge_takes(given_rules: list[NetOutRule], ipv6: bool) -> None:
    for rule in given_rules:
        try:
            entries = net_out_entries([rule], ipv6=ipv6)
        except Invalid:
            continue
        documents.load(PolicySchema(), {"net_out": entries})
