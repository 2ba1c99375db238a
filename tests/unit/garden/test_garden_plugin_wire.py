"""What Guardian hands its network plugin on standard input is read as Garden's own server reads such values."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from conetd.errors import Invalid
from conetd.garden import wire
from conetd.garden.gojson import DecodeError
from conetd.garden.wire import ICMPControl, IPRange, NetIn, NetOutRule, PortRange
from conetd.service.documents import up_request

RULE = NetOutRule(
    1, (IPRange(ip_address("8.8.8.8"), ip_address("8.8.8.8")),), (PortRange(53, 53), PortRange(80, 81)), log=True
)
RULE_DOCUMENT = {
    "protocol": 1,
    "networks": [{"start": "8.8.8.8", "end": "8.8.8.8"}],
    "ports": [{"start": 53, "end": 53}, {"start": 80, "end": 81}],
    "log": True,
}


def refusal(read: Any, body: bytes) -> str:
    with pytest.raises(DecodeError) as refused:
        read(body)
    return refused.value.message


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"HostIP":"192.0.2.1","HostPort":0,"ContainerIP":"10.0.0.2","ContainerPort":0}', NetIn(0, 0)),
        (b'{"HostIP":"192.0.2.1","HostPort":7000,"ContainerIP":"10.0.0.2","ContainerPort":80}', NetIn(7000, 80)),
        (b'{"HostIP":"","HostPort":7000,"ContainerIP":"no address","ContainerPort":80}', NetIn(7000, 80)),
        (b'{"hostport":7000}', NetIn(7000, 0)),
        (b'{"host_port":7000,"container_port":80}', NetIn(0, 0)),
        (b"null", NetIn(0, 0)),
    ],
)
def test_net_in_is_about_the_two_ports_alone(body: bytes, wanted: NetIn) -> None:
    assert wire.plugin_net_in(body) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"container_ip": "10.0.0.2", "netout_rule": RULE_DOCUMENT}, RULE),
        ({"container_ip": "10.0.0.2", "netout_rule": {}}, NetOutRule()),
        ({"container_ip": "10.0.0.2", "netout_rule": None}, NetOutRule()),
        ({"container_ip": "10.0.0.2"}, NetOutRule()),
        ({"netout_rule": {"protocol": 3, "icmps": {}}}, NetOutRule(3, icmps=ICMPControl())),
    ],
)
def test_net_out_is_about_one_rule(body: Any, wanted: NetOutRule) -> None:
    assert wire.plugin_net_out(json.dumps(body).encode()) == (wanted,)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"container_ip": "10.0.0.2", "netout_rules": [RULE_DOCUMENT, {}]}, (RULE, NetOutRule())),
        ({"container_ip": "10.0.0.2", "netout_rules": []}, ()),
        # a nil slice, which is what a client's null becomes
        ({"container_ip": "10.0.0.2", "netout_rules": None}, ()),
        ({"container_ip": "10.0.0.2"}, ()),
    ],
)
def test_bulk_net_out_is_about_a_list_of_rules(body: Any, wanted: tuple[NetOutRule, ...]) -> None:
    assert wire.plugin_bulk_net_out(json.dumps(body).encode()) == wanted


@pytest.mark.parametrize(
    ("read", "body", "message"),
    [
        (wire.plugin_net_in, b"", "EOF"),
        (wire.plugin_net_out, b"", "EOF"),
        (wire.plugin_bulk_net_out, b" ", "EOF"),
        (wire.plugin_net_in, b'{"HostPort":', "unexpected EOF"),
        (wire.plugin_net_in, b"[]", "cannot unmarshal array into Go value"),
        (wire.plugin_net_in, b'{"HostPort":"80"}', "cannot unmarshal string into Go struct field"),
        (wire.plugin_net_in, b'{"HostIP":5}', "cannot unmarshal number into Go struct field"),
        (
            wire.plugin_net_in,
            b'{"ContainerPort":4294967296}',
            "cannot unmarshal number 4294967296 into Go struct field",
        ),
        (wire.plugin_net_out, b'{"netout_rule":[]}', "cannot unmarshal array into Go struct field"),
        (wire.plugin_net_out, b'{"netout_rule":{"networks":[{"end":"::g"}]}}', "invalid IP address: ::g"),
        (wire.plugin_bulk_net_out, b'{"netout_rules":{}}', "cannot unmarshal object into Go struct field"),
        (wire.plugin_bulk_net_out, b'{"netout_rules":[{"protocol":256}]}', "cannot unmarshal number 256"),
    ],
)
def test_what_cannot_be_read_is_refused_in_go_s_words(read: Any, body: bytes, message: str) -> None:
    assert message in refusal(read, body)


@pytest.mark.parametrize(
    ("netin", "wanted"),
    [
        ([], ()),
        (None, ()),
        # neither port is left out when it is zero
        ([{"host_port": 0, "container_port": 0}], (NetIn(0, 0),)),
        ([{"host_port": 7000, "container_port": 80}, {}, None], (NetIn(7000, 80), NetIn(0, 0), NetIn(0, 0))),
        ([{"HOST_PORT": 4294967295, "other": []}], (NetIn(4294967295, 0),)),
    ],
)
def test_up_takes_the_ports_of_a_container_spec(netin: Any, wanted: tuple[NetIn, ...]) -> None:
    assert up_request({"Pid": 7, "Properties": {}, "netin": netin}).net_in == wanted


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], ()),
        (None, ()),
        ([RULE_DOCUMENT, {}, None], (RULE, NetOutRule(), NetOutRule())),
        (
            [{"protocol": 3, "icmps": {"type": 3, "code": 0}}, {"icmps": {}}],
            (NetOutRule(3, icmps=ICMPControl(3, 0)), NetOutRule(icmps=ICMPControl(0, None))),
        ),
        ([{"networks": [{"start": "::ffff:10.0.0.1"}]}], (NetOutRule(networks=(IPRange(ip_address("10.0.0.1")),)),)),
    ],
)
def test_up_takes_the_rules_of_a_container_spec(rules: Any, wanted: tuple[NetOutRule, ...]) -> None:
    assert up_request({"Pid": 7, "Properties": {}, "netout_rules": rules}).net_out == wanted


def test_up_without_lists_brings_nothing() -> None:
    request = up_request({"Pid": 7, "Properties": {}})
    assert (request.net_in, request.net_out, request.plugin) == ((), (), True)


def test_an_oci_state_is_no_call_of_guardian_s() -> None:
    assert up_request({"ociVersion": "1.0.2", "id": "web", "status": "created", "pid": 7}).plugin is False


@pytest.mark.parametrize(
    ("lists", "field", "complaint"),
    [
        ({"netin": {}}, "netin", "must be a list (got object)"),
        ({"netin": [5]}, "netin[0]", "must be an object (got 5)"),
        ({"netin": [{}, {"host_port": -1}]}, "netin[1].host_port", "must be a whole number from 0 to 65535 (got -1)"),
        ({"netin": [{"host_port": 80.0}]}, "netin[0].host_port", "must be a whole number from 0 to 65535 (got 80.0)"),
        ({"netin": [{"host_port": True}]}, "netin[0].host_port", "must be a whole number from 0 to 65535 (got bool)"),
        ({"netout_rules": "all"}, "netout_rules", "must be a list (got string)"),
        (
            {"netout_rules": [{"protocol": "tcp"}]},
            "netout_rules[0].protocol",
            "must be a whole number from 0 to 255 (got string)",
        ),
        (
            {"netout_rules": [{}, {"networks": [{}, {"end": "::g"}]}]},
            "netout_rules[1].networks[1].end",
            "is not an IP address (got ::g)",
        ),
        (
            {"netout_rules": [{"ports": [{"start": 65536}]}]},
            "netout_rules[0].ports[0].start",
            "must be a whole number from 0 to 65535 (got 65536)",
        ),
        ({"netout_rules": [{"log": 1}]}, "netout_rules[0].log", "must be true or false (got 1)"),
    ],
)
def test_a_list_of_up_is_refused_at_the_field_that_is_wrong(lists: Any, field: str, complaint: str) -> None:
    with pytest.raises(Invalid) as refused:
        up_request({"Pid": 7, "Properties": {}, **lists})
    assert refused.value.fields == {field: complaint}
    assert refused.value.message == f"{field} {complaint}"


def test_a_list_of_up_that_is_nested_too_deeply_is_refused_as_any_other() -> None:
    deep: list[Any] = []
    for _ in range(900):  # the private socket reads some more, and Garden 10000
        deep = [deep]
    with pytest.raises(Invalid, match="netin"):
        up_request({"Pid": 7, "Properties": {}, "netin": deep})
