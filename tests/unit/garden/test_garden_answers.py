"""What Garden's clients and Guardian are told, byte for byte: errors, ContainerInfo, Metrics, and the plugin's `up`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conetd.errors import (
    ConetError,
    Conflict,
    DriverError,
    DriverTimeout,
    Exhausted,
    Invalid,
    KernelError,
    NotFound,
    Unavailable,
)
from conetd.garden import answers, gojson
from conetd.garden.answers import UnknownHandle
from conetd.garden.gojson import DecodeError


def attachment(*addresses: str, interface: str = "eth0", **more: Any) -> dict[str, Any]:
    """An attachment as `up` tells it, whatever the driver said beside."""
    return {"network": "blue", "interface": interface, "addresses": list(addresses), **more}


def port(host_port: int, container_port: int, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    return {"host_port": host_port, "container_port": container_port, "protocol": protocol, **more}


IPV4 = attachment("10.0.0.2/24", gateway="10.0.0.1")
IPV6 = attachment("fd00::2/64", interface="eth1", gateway6="fd00::1")
BOTH = attachment("10.1.0.2/24", "fd01::2/64", interface="eth2", gateway="10.1.0.1", gateway6="fd01::1")
BARE = attachment(interface="eth3")
PORTS = [port(60000, 8080), port(53, 53, "udp"), port(61001, 61001, host_ip="192.0.2.1")]


def lines(document: Any) -> bytes:
    return gojson.encode(document)


# Errors


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (ConetError("no"), b'{"Type":"","Message":"no","Handle":"","ProcessID":"","Binary":""}'),
        (
            UnknownHandle("web"),
            b'{"Type":"ContainerNotFoundError","Message":"unknown handle: web","Handle":"web",'
            b'"ProcessID":"","Binary":""}',
        ),
        (
            Unavailable("conetd is stopping"),
            b'{"Type":"ServiceUnavailableError","Message":"conetd is stopping","Handle":"","ProcessID":"","Binary":""}',
        ),
        (
            Conflict('host port 7000/tcp is held by container "a<b"'),
            b'{"Type":"","Message":"host port 7000/tcp is held by container \\"a\\u003cb\\"","Handle":"",'
            b'"ProcessID":"","Binary":""}',
        ),
    ],
)
def test_the_error_object_has_five_keys_and_always_all_of_them(error: ConetError, written: bytes) -> None:
    assert lines(answers.error_object(error)) == written + b"\n"


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (UnknownHandle("web"), "ContainerNotFoundError", 404),
        (Unavailable("no"), "ServiceUnavailableError", 500),
        # everything about the network, malformed JSON among it, is a plain error
        (DecodeError("EOF"), "", 500),
        (Invalid("no"), "", 500),
        (NotFound("no"), "", 500),
        (Conflict("no"), "", 500),
        (Exhausted("port pool is exhausted"), "", 500),
        (DriverError("no"), "", 500),
        (DriverTimeout("no"), "", 500),
        (KernelError("create", "link x", 17), "", 500),
    ],
)
def test_garden_knows_one_404_and_500(error: ConetError, kind: str, status: int) -> None:
    assert (answers.error_object(error)["Type"], answers.error_status(error)) == (kind, status)


def test_fields_and_details_are_not_told_for_garden_has_no_place_for_them() -> None:
    error = Invalid("no", fields={"a": "b"})
    error.details = {"c": "d"}
    assert list(answers.error_object(error)) == ["Type", "Message", "Handle", "ProcessID", "Binary"]


def test_the_answer_to_net_in_is_the_two_ports() -> None:
    assert lines(answers.net_in_response(61001, 8080)) == b'{"host_port":61001,"container_port":8080}\n'


# Who a container is


@pytest.mark.parametrize(
    ("attachments", "wanted"),
    [
        ([], ("", "", "", "")),
        ([BARE], ("", "", "", "")),
        ([IPV4], ("10.0.0.2", "", "10.0.0.1", "eth0")),
        ([BOTH], ("10.1.0.2", "fd01::2", "10.1.0.1", "eth2")),
        ([IPV6], ("", "fd00::2", "fd00::1", "eth1")),
        # the first with an IPv4 address, whatever comes before
        ([BARE, IPV6, BOTH, IPV4], ("10.1.0.2", "fd01::2", "10.1.0.1", "eth2")),
        ([IPV4, BOTH], ("10.0.0.2", "", "10.0.0.1", "eth0")),
        # else the first with any
        ([BARE, IPV6, attachment("fd02::2/64", interface="eth4")], ("", "fd00::2", "fd00::1", "eth1")),
        # a network that leads nowhere has no gateway
        ([attachment("10.0.0.2/24")], ("10.0.0.2", "", "", "eth0")),
        ([attachment("10.0.0.2/24", gateway=None, gateway6="fd00::1")], ("10.0.0.2", "", "fd00::1", "eth0")),
        # a driver that says nothing of addresses
        ([{"network": "blue", "interface": "eth0"}], ("", "", "", "")),
    ],
)
def test_the_first_attachment_with_an_ipv4_address_says_who_a_container_is(
    attachments: list[Any], wanted: tuple[str, ...]
) -> None:
    who = answers.identity(attachments)
    assert (who.container_ip, who.container_ipv6, who.host_ip, who.interface) == wanted


@pytest.mark.parametrize(
    ("ports", "wanted"),
    [
        ([], []),
        (PORTS, [{"HostPort": 60000, "ContainerPort": 8080}, {"HostPort": 61001, "ContainerPort": 61001}]),
        ([port(53, 53, "udp")], []),
    ],
)
def test_only_tcp_ports_are_mapped_ports(ports: list[Any], wanted: list[Any]) -> None:
    assert answers.mapped_ports(ports) == wanted


@pytest.mark.parametrize(
    ("attachments", "ports", "external_ip", "wanted"),
    [
        ([], [], None, {}),
        ([BARE], PORTS, "192.0.2.1", {}),
        (
            [IPV4],
            [],
            None,
            {
                "garden.network.container-ip": "10.0.0.2",
                "garden.network.host-ip": "10.0.0.1",
                "garden.network.interface": "eth0",
                "garden.network.mapped-ports": "[]",
            },
        ),
        (
            [IPV6, BOTH],
            PORTS,
            "192.0.2.1",
            {
                "garden.network.container-ip": "10.1.0.2",
                "garden.network.container-ipv6": "fd01::2",
                "garden.network.host-ip": "10.1.0.1",
                "garden.network.external-ip": "192.0.2.1",
                "garden.network.interface": "eth2",
                "garden.network.mapped-ports": '[{"HostPort":60000,"ContainerPort":8080},'
                '{"HostPort":61001,"ContainerPort":61001}]',
            },
        ),
        (
            [IPV6],
            [],
            None,
            {
                "garden.network.container-ipv6": "fd00::2",
                "garden.network.host-ip": "fd00::1",
                "garden.network.interface": "eth1",
                "garden.network.mapped-ports": "[]",
            },
        ),
    ],
)
def test_properties_are_what_there_is_to_tell(attachments: Any, ports: Any, external_ip: Any, wanted: Any) -> None:
    assert answers.properties(attachments, ports, external_ip) == wanted


# The network plugin's `up`


def up(attachments: list[Any], **more: Any) -> dict[str, Any]:
    """What `up` answers to any engine."""
    ports = [one | {"network": "blue"} for one in more.pop("ports", [])]
    return {
        "handle": "web",
        "state": "up",
        "external_ip": "192.0.2.99",
        "attachments": attachments,
        "mapped_ports": ports,
        "dns_servers": [],
        "search_domains": [],
        **more,
    }


def test_the_plugin_tells_all_that_up_answers_and_the_properties() -> None:
    answer = up([IPV4], ports=PORTS, dns_servers=["8.8.8.8"], search_domains=["example"])

    told = answers.plugin_up(answer, None)

    assert {name: value for name, value in told.items() if name != "properties"} == answer
    assert told["properties"] == answers.properties([IPV4], PORTS)


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        ({}, []),
        ({"dns_servers": ["8.8.8.8"]}, ["dns_servers"]),
        ({"search_domains": ["example"]}, ["search_domains"]),
        ({"dns_servers": ["8.8.8.8"], "search_domains": ["example"]}, ["dns_servers", "search_domains"]),
    ],
)
def test_an_empty_list_for_resolv_conf_would_overrule_guardian_s_and_is_left_out(lists: Any, told: list[str]) -> None:
    answer = answers.plugin_up(up([IPV4], **lists), None)
    assert [name for name in answer if name in ("dns_servers", "search_domains")] == told


@pytest.mark.parametrize("external_ip", [None, "198.51.100.7"])
def test_guardian_is_told_of_the_external_ip_only_if_it_is_given(external_ip: str | None) -> None:
    properties = answers.plugin_up(up([IPV4]), external_ip)["properties"]
    assert properties.get("garden.network.external-ip") == external_ip


def test_the_properties_of_a_container_without_a_network_are_an_empty_object() -> None:
    assert answers.plugin_up(up([]), "192.0.2.1")["properties"] == {}


def test_what_up_answers_is_not_changed_for_those_who_come_after() -> None:
    answer = up([IPV4])
    before = json.dumps(answer)
    answers.plugin_up(answer, None)
    assert json.dumps(answer) == before


# ContainerInfo

EMPTY_INFO = (
    b'{"State":"","Events":null,"HostIP":"","ContainerIP":"","ContainerIPv6":"","ExternalIP":"",'
    b'"ContainerPath":"","ProcessIDs":null,"Properties":null,"MappedPorts":null}'
)


@pytest.mark.parametrize(
    ("attachments", "ports", "external_ip", "forwarded", "written"),
    [
        (
            [IPV4],
            [port(60000, 8080)],
            "192.0.2.1",
            {"log_config": "{}", "app_id": "a&b"},
            b'{"State":"active","Events":null,"HostIP":"10.0.0.1","ContainerIP":"10.0.0.2","ContainerIPv6":"",'
            b'"ExternalIP":"192.0.2.1","ContainerPath":"","ProcessIDs":null,"Properties":{"app_id":"a\\u0026b",'
            b'"garden.network.container-ip":"10.0.0.2","garden.network.external-ip":"192.0.2.1",'
            b'"garden.network.host-ip":"10.0.0.1","garden.network.interface":"eth0",'
            b'"garden.network.mapped-ports":"[{\\"HostPort\\":60000,\\"ContainerPort\\":8080}]","log_config":"{}"},'
            b'"MappedPorts":[{"HostPort":60000,"ContainerPort":8080}]}',
        ),
        (
            [BOTH],
            [port(53, 53, "udp")],
            None,
            {},
            b'{"State":"active","Events":null,"HostIP":"10.1.0.1","ContainerIP":"10.1.0.2","ContainerIPv6":"fd01::2",'
            b'"ExternalIP":"","ContainerPath":"","ProcessIDs":null,"Properties":{'
            b'"garden.network.container-ip":"10.1.0.2","garden.network.container-ipv6":"fd01::2",'
            b'"garden.network.host-ip":"10.1.0.1","garden.network.interface":"eth2",'
            b'"garden.network.mapped-ports":"[]"},"MappedPorts":[]}',
        ),
        (
            [],
            [],
            None,
            {},
            b'{"State":"active","Events":null,"HostIP":"","ContainerIP":"","ContainerIPv6":"","ExternalIP":"",'
            b'"ContainerPath":"","ProcessIDs":null,"Properties":{},"MappedPorts":[]}',
        ),
    ],
)
def test_container_info_has_the_fields_in_garden_s_order_and_null_for_what_nobody_knows(
    attachments: Any, ports: Any, external_ip: Any, forwarded: Any, written: bytes
) -> None:
    assert lines(answers.info(attachments, ports, external_ip, forwarded)) == written + b"\n"


def test_what_the_network_gives_overrules_what_the_engine_said() -> None:
    info = answers.info([IPV4], [], None, {"garden.network.container-ip": "192.0.2.66"})
    assert info["Properties"]["garden.network.container-ip"] == "10.0.0.2"


def test_an_entry_of_bulk_info_is_info_or_an_error() -> None:
    info = answers.info([IPV4], [], None, {})
    assert answers.info_entry(info) == {"Info": info, "Err": None}
    assert list(answers.info_entry(info)) == ["Info", "Err"]


def test_an_entry_of_bulk_info_that_failed_has_an_info_without_anything() -> None:
    error = (
        b'{"Type":"ContainerNotFoundError","Message":"unknown handle: web","Handle":"web","ProcessID":"","Binary":""}'
    )
    written = lines(answers.info_entry(UnknownHandle("web")))
    assert written == b'{"Info":' + EMPTY_INFO + b',"Err":' + error + b"}\n"


# Metrics


@pytest.mark.parametrize(
    ("counted", "written"),
    [
        (None, b'{"NetworkStat":null}'),
        ((0, 0), b'{"NetworkStat":{"RxBytes":0,"TxBytes":0}}'),
        ((1, 2**64 - 1), b'{"NetworkStat":{"RxBytes":1,"TxBytes":18446744073709551615}}'),
    ],
)
def test_metrics_are_the_bytes_received_and_sent_or_null(counted: Any, written: bytes) -> None:
    assert lines(answers.metrics(counted)) == written + b"\n"


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (answers.metrics((1, 2)), b'{"Metrics":{"NetworkStat":{"RxBytes":1,"TxBytes":2}},"Err":null}'),
        (
            DriverError("could not read, x"),
            b'{"Metrics":{"NetworkStat":null},"Err":{"Type":"","Message":"could not read, x"'
            b',"Handle":"","ProcessID":"","Binary":""}}',
        ),
    ],
)
def test_an_entry_of_bulk_metrics_is_metrics_or_an_error(found: Any, written: bytes) -> None:
    assert lines(answers.metrics_entry(found)) == written + b"\n"
