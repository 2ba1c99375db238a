"""Requests of Garden's clients are read as Garden's own server reads them."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.garden import wire
from conetd.garden.gojson import BadValue, DecodeError
from conetd.garden.wire import ICMPControl, IPRange, NetIn, NetOutRule, PortRange
from conetd.model import IPAddress


def rule(body: bytes | str) -> NetOutRule:
    return wire.net_out_request(body if isinstance(body, bytes) else body.encode())


def address(text: str) -> IPAddress | None:
    """What an address becomes that stands in a rule."""
    [network] = rule(json.dumps({"networks": [{"start": text}]})).networks
    return network.start


def refusal(read: Any, body: bytes) -> str:
    with pytest.raises(DecodeError) as refused:
        read(body)
    return refused.value.message


# net/in


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"{}", NetIn(0, 0)),
        (b"null", NetIn(0, 0)),
        (b'{"host_port":8080}', NetIn(8080, 0)),
        (b'{"container_port":80}', NetIn(0, 80)),
        (b'{"host_port":0,"container_port":0}', NetIn(0, 0)),
        (b'{"host_port":null,"container_port":null}', NetIn(0, 0)),
        (b'{"handle":"web","host_port":61001,"container_port":8080}', NetIn(61001, 8080)),
        (b'{"HOST_PORT":1,"Container_Port":2}', NetIn(1, 2)),
        ('{"ho\u017ft_port":1}'.encode(), NetIn(1, 0)),
        (b'{"HostPort":1,"hostport":2,"port":3}', NetIn(0, 0)),
        (b'{"host_port":65536,"container_port":4294967295}', NetIn(65536, 4294967295)),
        (b'{"host_port":1,"host_port":2}', NetIn(2, 0)),
        (b'{"host_port":1}{"host_port":2}', NetIn(1, 0)),
    ],
)
def test_a_net_in_request_has_two_ports_each_of_which_may_be_left_out(body: bytes, wanted: NetIn) -> None:
    assert wire.net_in_request(body) == wanted


@pytest.mark.parametrize("handle", [b'"web"', b'"another"', b'""', b"null"])
def test_the_handle_in_a_net_in_request_is_read_and_ignored(handle: bytes) -> None:
    assert wire.net_in_request(b'{"handle":%s,"host_port":1}' % handle) == NetIn(1, 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "EOF"),
        (b"[]", "json: cannot unmarshal array into Go value of type transport.NetInRequest"),
        (b"8080", "json: cannot unmarshal number into Go value of type transport.NetInRequest"),
        (b'{"handle":5}', "json: cannot unmarshal number into Go struct field NetInRequest.handle of type string"),
        (b'{"handle":{}}', "json: cannot unmarshal object into Go struct field NetInRequest.handle of type string"),
        (
            b'{"host_port":"80"}',
            "json: cannot unmarshal string into Go struct field NetInRequest.host_port of type uint32",
        ),
        (
            b'{"host_port":4294967296}',
            "json: cannot unmarshal number 4294967296 into Go struct field NetInRequest.host_port of type uint32",
        ),
        (
            b'{"container_port":-1}',
            "json: cannot unmarshal number -1 into Go struct field NetInRequest.container_port of type uint32",
        ),
        (
            b'{"container_port":80.5}',
            "json: cannot unmarshal number 80.5 into Go struct field NetInRequest.container_port of type uint32",
        ),
    ],
)
def test_a_net_in_request_that_cannot_be_read_is_refused_in_go_s_words(body: bytes, message: str) -> None:
    assert refusal(wire.net_in_request, body) == message


# net/out


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("{}", NetOutRule()),
        ("null", NetOutRule()),
        ('{"protocol":null,"networks":null,"ports":null,"icmps":null,"log":null}', NetOutRule()),
        ('{"protocol":0,"networks":[],"ports":[],"log":false}', NetOutRule()),
        # as a client in Go writes them
        (
            '{"protocol":1,"networks":[{"start":"8.8.8.8","end":"8.8.8.8"}],"ports":[{"start":53,"end":53}]}',
            NetOutRule(1, (IPRange(ip_address("8.8.8.8"), ip_address("8.8.8.8")),), (PortRange(53, 53),)),
        ),
        ('{"protocol":3,"icmps":{"type":3,"code":0},"log":true}', NetOutRule(3, icmps=ICMPControl(3, 0), log=True)),
        *((f'{{"protocol":{number}}}', NetOutRule(number)) for number in (1, 2, 3, 4, 5, 52, 255)),
        ('{"networks":[{}]}', NetOutRule(networks=(IPRange(),))),
        ('{"networks":[null]}', NetOutRule(networks=(IPRange(),))),
        ('{"networks":[{"start":"10.0.0.1"}]}', NetOutRule(networks=(IPRange(ip_address("10.0.0.1")),))),
        ('{"networks":[{"end":"10.0.0.1"}]}', NetOutRule(networks=(IPRange(None, ip_address("10.0.0.1")),))),
        (
            '{"networks":[{"start":"10.0.0.9","end":"10.0.0.1"},{"end":"::1","start":""}]}',
            NetOutRule(
                networks=(IPRange(ip_address("10.0.0.9"), ip_address("10.0.0.1")), IPRange(None, ip_address("::1")))
            ),
        ),
        ('{"ports":[{}]}', NetOutRule(ports=(PortRange(0, 0),))),
        ('{"ports":[{"start":80}]}', NetOutRule(ports=(PortRange(80, 0),))),
        ('{"ports":[{"end":80}]}', NetOutRule(ports=(PortRange(0, 80),))),
        ('{"ports":[{"start":65535,"end":0},null]}', NetOutRule(ports=(PortRange(65535, 0), PortRange(0, 0)))),
        # the code is the one number that can be absent: echo-reply with any code is the empty object
        ('{"icmps":{}}', NetOutRule(icmps=ICMPControl(0, None))),
        ('{"icmps":{"code":null}}', NetOutRule(icmps=ICMPControl(0, None))),
        ('{"icmps":{"code":0}}', NetOutRule(icmps=ICMPControl(0, 0))),
        ('{"icmps":{"type":255,"code":255}}', NetOutRule(icmps=ICMPControl(255, 255))),
        ('{"log":true}', NetOutRule(log=True)),
        (
            '{"Protocol":1,"NETWORKS":[{"Start":"::1"}],"LOG":true}',
            NetOutRule(1, (IPRange(ip_address("::1")),), log=True),
        ),
        ('{"port\u017f":[{"\u017ftart":1,"END":2}]}', NetOutRule(ports=(PortRange(1, 2),))),
        ('{"networ\u212as":[{}]}', NetOutRule(networks=(IPRange(),))),
        ('{"cidr":"10.0.0.0/8","networks":[{"cidr":"10.0.0.0/8"}]}', NetOutRule(networks=(IPRange(),))),
        ('{"log":true} {"log":false}', NetOutRule(log=True)),
    ],
)
def test_a_rule_is_read_and_what_it_leaves_out_is_zero(body: str, wanted: NetOutRule) -> None:
    assert rule(body) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"protocol":1,"protocol":2}', NetOutRule(2)),
        ('{"protocol":1,"PROTOCOL":null}', NetOutRule(1)),
        ('{"log":true,"log":null}', NetOutRule(log=True)),
        ('{"icmps":{"type":3},"icmps":{"code":1}}', NetOutRule(icmps=ICMPControl(3, 1))),
        ('{"icmps":{"type":3,"code":1},"icmps":{"code":null}}', NetOutRule(icmps=ICMPControl(3, None))),
        ('{"icmps":{"type":3},"icmps":null}', NetOutRule()),
        ('{"icmps":{"type":3},"icmps":null,"icmps":{"code":1}}', NetOutRule(icmps=ICMPControl(0, 1))),
        ('{"ports":[{"start":1,"end":2}],"ports":null}', NetOutRule()),
        ('{"ports":[{"start":1},{"start":2}],"ports":[{"start":3}]}', NetOutRule(ports=(PortRange(3, 0),))),
        ('{"ports":[{"start":1,"end":2}],"ports":[{"start":5}]}', NetOutRule(ports=(PortRange(5, 2),))),
        ('{"networks":[{"start":"::1","start":null}]}', NetOutRule(networks=(IPRange(),))),
        ('{"networks":[{"start":"::1","start":""}]}', NetOutRule(networks=(IPRange(),))),
    ],
)
def test_a_member_that_comes_twice_is_decoded_into_what_the_first_left(body: str, wanted: NetOutRule) -> None:
    assert rule(body) == wanted


@pytest.mark.parametrize(
    ("body", "found", "place", "kind"),
    [
        ('{"protocol":"tcp"}', "string", "NetOutRule.protocol", "garden.Protocol"),
        ('{"protocol":256}', "number 256", "NetOutRule.protocol", "garden.Protocol"),
        ('{"protocol":-1}', "number -1", "NetOutRule.protocol", "garden.Protocol"),
        ('{"protocol":1.0}', "number 1.0", "NetOutRule.protocol", "garden.Protocol"),
        ('{"protocol":true}', "bool", "NetOutRule.protocol", "garden.Protocol"),
        ('{"networks":{}}', "object", "NetOutRule.networks", "[]garden.IPRange"),
        ('{"networks":"10.0.0.0/8"}', "string", "NetOutRule.networks", "[]garden.IPRange"),
        ('{"networks":["10.0.0.0/8"]}', "string", "NetOutRule.networks", "garden.IPRange"),
        ('{"networks":[{"start":1}]}', "number", "IPRange.networks.start", "net.IP"),
        ('{"networks":[{"end":[10,0,0,1]}]}', "array", "IPRange.networks.end", "net.IP"),
        ('{"ports":80}', "number", "NetOutRule.ports", "[]garden.PortRange"),
        ('{"ports":[80]}', "number", "NetOutRule.ports", "garden.PortRange"),
        ('{"ports":[{"start":"80"}]}', "string", "PortRange.ports.start", "uint16"),
        ('{"ports":[{},{"end":65536}]}', "number 65536", "PortRange.ports.end", "uint16"),
        ('{"icmps":[]}', "array", "NetOutRule.icmps", "garden.ICMPControl"),
        ('{"icmps":{"type":256}}', "number 256", "ICMPControl.icmps.type", "garden.ICMPType"),
        ('{"icmps":{"type":"echo"}}', "string", "ICMPControl.icmps.type", "garden.ICMPType"),
        ('{"icmps":{"code":256}}', "number 256", "ICMPControl.icmps.code", "garden.ICMPCode"),
        ('{"icmps":{"code":-1}}', "number -1", "ICMPControl.icmps.code", "garden.ICMPCode"),
        ('{"log":1}', "number", "NetOutRule.log", "bool"),
        ('{"log":"true"}', "string", "NetOutRule.log", "bool"),
        ('{"PROTOCOL":"tcp"}', "string", "NetOutRule.protocol", "garden.Protocol"),
    ],
)
def test_a_rule_with_a_value_of_the_wrong_kind_is_refused_in_go_s_words(
    body: str, found: str, place: str, kind: str
) -> None:
    message = f"json: cannot unmarshal {found} into Go struct field {place} of type {kind}"
    assert refusal(wire.net_out_request, body.encode()) == message


@pytest.mark.parametrize(
    ("body", "found"), [(b"[]", "array"), (b'"tcp"', "string"), (b"1", "number"), (b"true", "bool")]
)
def test_a_rule_is_an_object(body: bytes, found: str) -> None:
    message = f"json: cannot unmarshal {found} into Go value of type garden.NetOutRule"
    assert refusal(wire.net_out_request, body) == message


@pytest.mark.parametrize(("body", "message"), [(b"", "EOF"), (b"\n", "EOF"), (b'{"protocol":', "unexpected EOF")])
@pytest.mark.parametrize("read", [wire.net_out_request, wire.bulk_net_out_request, wire.net_in_request])
def test_a_body_that_is_empty_or_cut_off_says_so(read: Any, body: bytes, message: str) -> None:
    assert refusal(read, body) == message


# addresses


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("0:0:0:0:0:ffff:0a00:0001", "10.0.0.1"),
        # IPv6 in every spelling, told as RFC 5952 has it
        ("::", "::"),
        ("0:0:0:0:0:0:0:0", "::"),
        ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("2001:0db8::0001", "2001:db8::1"),
        ("2001:db8::1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
        ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ("::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"),
        ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
        ("::1.2.3.4", "::102:304"),
    ],
)
def test_an_address_is_read_in_every_spelling(text: str, wanted: str) -> None:
    assert str(address(text)) == wanted


def test_an_empty_address_is_unset() -> None:
    assert address("") is None


def test_an_address_may_be_written_with_escapes() -> None:
    assert rule(rb'{"networks":[{"start":"\u0031.2.3.4"}]}').networks == (IPRange(ip_address("1.2.3.4")),)


@pytest.mark.parametrize(
    "text",
    [
        *("x", " ", "\u0000", "null", "localhost", "1.2.3", "1.2.3.4.5", "1..2.3", "1.2.3.", ".1.2.3", "256.1.1.1"),
        # no octet begins with a zero, as some read it as octal
        *("01.2.3.4", "1.2.3.00", "::ffff:1.2.3.04", "0x1.2.3.4"),
        *("+1.2.3.4", "1_0.2.3.4", " 1.2.3.4", "1.2.3.4 ", "1.2.3.4\n", "\u0661.2.3.4", "1\u30022.3.4"),
        *("1.2.3.4/32", "10.0.0.0/8", "1.2.3.4:80", "::1/128", "[::1]"),
        *("fe80::1%eth0", "::1%", "1.2.3.4%1"),
        *("1::2::3", ":::", ":1", "1:", "g::", "12345::", "2001:db8::00001"),
        *("1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7:8::", "1:2:3:4:5:6:7:1.2.3.4"),
    ],
)
def test_a_text_that_is_no_address_is_named(text: str) -> None:
    with pytest.raises(BadValue) as refused:
        address(text)
    assert refused.value.message == f"invalid IP address: {text}"
    assert refused.value.fields == {"networks[0].start": f"is not an IP address (got {text})"}


# net/out/bulk


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"[]", ()),
        (b"null", ()),
        (b"[{}]", (NetOutRule(),)),
        (b"[null]", (NetOutRule(),)),
        (b'[{"protocol":1},{"protocol":2,"log":true}]', (NetOutRule(1), NetOutRule(2, log=True))),
        (b'[{"protocol":1}] and more', (NetOutRule(1),)),
    ],
)
def test_a_bulk_is_an_array_of_rules_in_its_order_and_null_is_none(body: bytes, wanted: tuple[NetOutRule, ...]) -> None:
    assert wire.bulk_net_out_request(body) == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "json: cannot unmarshal object into Go value of type []garden.NetOutRule"),
        (b'"x"', "json: cannot unmarshal string into Go value of type []garden.NetOutRule"),
        (b"[[]]", "json: cannot unmarshal array into Go value of type garden.NetOutRule"),
        (b"[{},5]", "json: cannot unmarshal number into Go value of type garden.NetOutRule"),
        (b'[{},{"log":0}]', "json: cannot unmarshal number into Go struct field NetOutRule.log of type bool"),
        (
            b'[{"ports":[{"start":-1}]}]',
            "json: cannot unmarshal number -1 into Go struct field PortRange.ports.start of type uint16",
        ),
        (b'[{},{"networks":[{"end":"10.0.0.256"}]}]', "invalid IP address: 10.0.0.256"),
    ],
)
def test_a_bulk_with_something_wrong_is_refused_in_go_s_words(body: bytes, message: str) -> None:
    assert refusal(wire.bulk_net_out_request, body) == message


def unmapped(one: IPAddress) -> bool:
    return getattr(one, "ipv4_mapped", None) is None


addresses = st.ip_addresses().filter(unmapped)
ranges = st.builds(IPRange, st.none() | addresses, st.none() | addresses)
ports = st.builds(PortRange, st.integers(0, 65535), st.integers(0, 65535))
controls = st.builds(ICMPControl, st.integers(0, 255), st.none() | st.integers(0, 255))
rules = st.builds(
    NetOutRule,
    st.integers(0, 255),
    st.lists(ranges, max_size=3).map(tuple),
    st.lists(ports, max_size=3).map(tuple),
    st.none() | controls,
    st.booleans(),
)


def written(value: Any) -> Any:
    """The document that a client in Go makes of a rule: what is zero or unset is left out."""
    if not isinstance(value, NetOutRule | IPRange | PortRange | ICMPControl):
        return str(value) if hasattr(value, "version") else value
    document = {}
    for name in value.__slots__:
        member = getattr(value, name)
        if isinstance(member, tuple):
            member = [written(one) for one in member]
        if member or isinstance(member, ICMPControl) or (name == "code" and member is not None):
            document[name] = written(member)
    return document


@given(st.lists(rules, max_size=4))
def test_whatever_a_client_can_write_is_read_as_it_was_meant(given_rules: list[NetOutRule]) -> None:
    document = [written(one) for one in given_rules]

    assert wire.bulk_net_out_request(json.dumps(document).encode()) == tuple(given_rules)


@given(rules)
def test_a_mapped_address_is_read_as_the_ipv4_address_it_is(one: NetOutRule) -> None:
    document = written(one)
    for network in document.get("networks", ()):
        network |= {end: f"::ffff:{text}" for end, text in network.items() if ":" not in text}

    assert rule(json.dumps(document)) == one
