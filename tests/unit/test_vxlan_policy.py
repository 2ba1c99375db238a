"""A policy on a vxlan network becomes the rules that its document means, given who is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from conetd_vxlan import VxlanConfig, VxlanDriver, VxlanPolicy
from conetd_vxlan.config import ConfigSchema
from conetd_vxlan.policy import PolicySchema
from jsonschema_subset import complaints

from conetd import documents
from conetd.driver import Attachment, Identities, Identity, Invalid, Network, Selector
from conetd.model import label_set
from conetd.plan import TCP, UDP, AddressRange, EndpointPolicy, MarkRange, PortRange, Rule, Verdict
from conetd.policy.judge import Packet, judge

DRIVER = VxlanDriver()
OWN = (AddressRange.of(ip_network("10.1.0.0/16")), AddressRange.of(ip_network("fd00::/64")))
OTHER = (AddressRange.of(ip_network("10.2.0.0/24")),)
WEB, DB = {"app": "web", "tier": "front"}, {"app": "db"}
TO_WEB: dict[str, Any] = {"direction": "egress", "peer": {"labels": {"app": "web"}}}
FROM_WEB: dict[str, Any] = {"direction": "ingress", "peer": {"labels": {"app": "web"}}}


def identity(number: int, labels: dict[str, str], *addresses: str, handle: str | None = None) -> Identity:
    return Identity(number, label_set(labels), handle, tuple(map(ip_address, addresses)))


IDENTITIES = Identities.of(
    [
        identity(3, WEB, "10.1.3.5", "fd00::305"),
        identity(4, WEB | {"zone": "b"}, "10.1.3.6", "10.1.9.2"),
        identity(7, DB, "10.1.4.4"),
        identity(9, WEB, "10.1.5.5", handle="c-1"),
    ]
)


def network(identities: Identities = IDENTITIES) -> Network[VxlanConfig]:
    config = ConfigSchema().load({"vni": 42, "subnet": "10.1.0.0/16", "subnet6": "fd00::/64"})
    subnets = {"green": (ip_network("10.2.0.0/24"),), "blue": config.subnets}
    return Network("blue", "vxlan", config, subnets=subnets, identities=identities)


def load(**document: Any) -> VxlanPolicy:
    loaded: VxlanPolicy = documents.load(PolicySchema(), document)
    return loaded


def planned(*entries: dict[str, Any], on: Network[VxlanConfig] | None = None, **document: Any) -> EndpointPolicy:
    policy = load(policies=list(entries), **document)
    [wanted] = DRIVER.plan_policy(on or network(), Attachment("blue", "c", "key", "eth0"), policy).filter
    assert isinstance(wanted, EndpointPolicy)
    return wanted


def marks(*spans: tuple[int, int]) -> tuple[MarkRange, ...]:
    return tuple(MarkRange(first, last) for first, last in spans)


def ranges(*spans: str) -> tuple[AddressRange, ...]:
    ends = [span.partition("-") for span in spans]
    return tuple(AddressRange(ip_address(first), ip_address(last or first)) for first, _, last in ends)


def accept(**fields: Any) -> Rule:
    return Rule(Verdict.ACCEPT, **{"origin": "policies[0]"} | fields)


def test_nobody_may_begin_a_connection_to_a_container_without_a_policy() -> None:
    assert planned() == EndpointPolicy("key", ingress=())


@pytest.mark.parametrize(
    ("peer", "rules"),
    [
        ({"labels": {"app": "web"}}, [accept(marks=marks((3, 4), (9, 9)), sources=OWN)]),
        ({"labels": {"app": "web", "zone": "b"}}, [accept(marks=marks((4, 4)), sources=OWN)]),
        ({"handle": "c-1"}, [accept(marks=marks((9, 9)), sources=OWN)]),
        ({"network": "blue"}, [accept(marks=marks((1, 65535)), sources=OWN)]),
        ({"network": "green"}, [accept(sources=OTHER)]),
        ({"cidr": "198.51.100.0/24"}, [accept(sources=ranges("198.51.100.0-198.51.100.255"))]),
        ({"labels": {"app": "nobody"}}, []),
        ({"labels": {"app": "web", "tier": "back"}}, []),
        ({"handle": "c-9"}, []),
        ({"network": "gone"}, []),
    ],
)
def test_an_ingress_entry_opens_for_its_peer(peer: dict[str, Any], rules: Sequence[Rule]) -> None:
    assert planned({"direction": "ingress", "peer": peer}).ingress == tuple(rules)


@pytest.mark.parametrize(
    ("peer", "destinations"),
    [
        ({"labels": {"app": "web"}}, ranges("10.1.3.5-10.1.3.6", "10.1.5.5", "10.1.9.2", "fd00::305")),
        ({"handle": "c-1"}, ranges("10.1.5.5")),
        ({"network": "blue"}, OWN),
        ({"cidr": "10.1.4.0/24"}, ranges("10.1.4.0-10.1.4.255")),
        ({"labels": {"app": "nobody"}}, None),
        ({"network": "gone"}, None),
    ],
)
def test_an_egress_entry_leaves_only_its_peer_open_within_the_network(peer: dict[str, Any], destinations: Any) -> None:
    inside = planned({"direction": "egress", "peer": peer}).inside

    assert inside == (() if destinations is None else (accept(destinations=destinations),))


def test_without_an_egress_entry_a_container_may_send_all_within_the_network() -> None:
    assert planned(FROM_WEB, net_out=[{"protocol": "tcp"}]).inside is None


@pytest.mark.parametrize(
    ("peer", "there"), [({"cidr": "10.9.0.0/16"}, "10.9.0.0/16"), ({"network": "green"}, "10.2.0.0/24")]
)
def test_an_egress_entry_for_somebody_outside_opens_what_is_denied(peer: dict[str, str], there: str) -> None:
    entry = {"direction": "egress", "peer": peer, "protocol": "udp", "ports": {"start": 53, "end": 53}}
    rules = planned(entry, net_out=[{"protocol": "icmp"}], deny_networks=["10.0.0.0/8"]).rules

    assert rules == (
        Rule(Verdict.ACCEPT, 1, origin="net_out[0]"),
        accept(protocol=UDP, destinations=(AddressRange.of(ip_network(there)),), ports=(PortRange(53, 53),)),
        Rule(Verdict.REJECT, destinations=(AddressRange.of(ip_network("10.0.0.0/8")),), origin="deny_networks[0]"),
    )


@pytest.mark.parametrize(
    "entry",
    [
        TO_WEB,
        {"direction": "egress", "peer": {"network": "blue"}},
        FROM_WEB,
        {"direction": "ingress", "peer": {"cidr": "198.51.100.0/24"}},
    ],
)
def test_an_entry_for_the_network_or_for_ingress_opens_nothing_outside(entry: dict[str, Any]) -> None:
    assert planned(entry).rules == ()


def test_a_rule_has_the_entrys_protocol_ports_and_log_and_its_place_as_origin() -> None:
    ports = [{"start": 80, "end": 90}, {"start": 443, "end": 443}]
    wanted = planned(TO_WEB, FROM_WEB | {"protocol": "tcp", "ports": ports, "log": True}).ingress

    assert wanted == (
        accept(
            protocol=TCP,
            ports=(PortRange(80, 90), PortRange(443, 443)),
            marks=marks((3, 4), (9, 9)),
            sources=OWN,
            log=True,
            origin="policies[1]",
        ),
    )


def test_a_default_of_allow_comes_after_all_entries() -> None:
    wanted = planned(FROM_WEB | {"log": True}, default_ingress="allow").ingress

    assert wanted is not None
    assert [rule.origin for rule in wanted] == ["policies[0]", "default_ingress"]
    assert wanted[-1] == Rule(Verdict.ACCEPT, origin="default_ingress")


def test_what_is_denied_is_logged_if_the_policy_says_so() -> None:
    assert planned(log_denied=True).log_denied


def test_a_packet_of_a_label_that_nobody_has_is_let_in_by_no_rule() -> None:
    wanted = planned(FROM_WEB, {"direction": "ingress", "peer": {"handle": "c-9"}}, on=network(Identities()))
    packet = Packet(4, TCP, ip_address("10.1.3.5"), ip_address("10.1.4.4"), 1024, 80, mark=0)

    assert wanted.ingress is not None
    assert judge(wanted.ingress, packet) is None


def test_every_selected_container_is_let_in_and_no_other() -> None:
    wanted = planned(FROM_WEB).ingress
    assert wanted is not None
    packet = Packet(4, TCP, ip_address("10.1.3.5"), ip_address("10.1.4.4"), 1024, 80)

    assert [mark for mark in range(12) if judge(wanted, replace(packet, mark=mark))] == [3, 4, 9]


def test_selectors_are_the_containers_the_policy_names() -> None:
    by_handle = {"direction": "ingress", "peer": {"handle": "c-1"}}
    others = [
        {"direction": "egress", "peer": {"cidr": "10.0.0.0/8"}},
        {"direction": "ingress", "peer": {"network": "x"}},
    ]
    web = label_set({"app": "web"})

    assert list(DRIVER.selectors(load(policies=[FROM_WEB, TO_WEB, FROM_WEB, by_handle, *others]))) == [
        Selector(labels=web),
        Selector(labels=web, outbound=True),
        Selector(handle="c-1"),
    ]


def test_a_policy_that_names_a_network_there_is_not_is_refused_at_its_place() -> None:
    document = [FROM_WEB, {"direction": "egress", "peer": {"network": "gone"}}]

    with pytest.raises(Invalid, match='there is no network "gone"') as refused:
        DRIVER.check_policy(network(), load(policies=document))

    assert list(refused.value.fields) == ["policies[1].peer.network"]


@pytest.mark.parametrize("name", ["blue", "green"])
def test_a_policy_can_name_its_own_network_and_others_on_the_host(name: str) -> None:
    alone = replace(network(), subnets={"green": (ip_network("10.2.0.0/24"),)})

    DRIVER.check_policy(alone, load(policies=[{"direction": "ingress", "peer": {"network": name}}]))


DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"policies": [FROM_WEB, TO_WEB], "default_ingress": "allow", "log_denied": True},
    {
        "policies": [
            {"direction": "ingress", "peer": {"handle": "c-1"}, "protocol": "tcp", "ports": {"start": 1, "end": 9}}
        ]
    },
    {
        "policies": [
            {
                "direction": "egress",
                "peer": {"cidr": "fd00::/8"},
                "protocol": "udp",
                "ports": [{"start": 1, "end": 9}, {"start": 53, "end": 53}],
                "log": True,
            },
            {"direction": "egress", "peer": {"network": "green"}, "protocol": "icmp"},
        ],
        "net_out": [{"protocol": "all"}],
        "deny_networks": ["10.0.0.0/8"],
    },
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_loaded_and_dumped_loads_to_the_same_again(document: dict[str, Any]) -> None:
    loaded = load(**document)

    dumped = PolicySchema().dump(loaded)

    assert load(**dumped) == loaded
    for given, shown in zip(document.get("policies", []), dumped["policies"], strict=True):
        assert given.items() <= shown.items()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_are_what_the_json_schema_describes(document: dict[str, Any]) -> None:
    schema = PolicySchema().fields["policies"].metadata

    assert list(complaints(dict(schema), document.get("policies", []))) == []


def entry(**change: Any) -> dict[str, Any]:
    return {"policies": [FROM_WEB | change]}


@pytest.mark.parametrize(
    ("document", "path", "complaint"),
    [
        ({"policies": {}}, "policies", "must be a list"),
        ({"policies": ["x"]}, "policies[0]", "must be an object"),
        ({"policies": [{"direction": "ingress"}]}, "policies[0].peer", "is missing"),
        ({"policies": [{"peer": {"handle": "a"}}]}, "policies[0].direction", "is missing"),
        (entry(direction="in"), "policies[0].direction", "must be ingress or egress"),
        (entry(icmps={}), "policies[0].icmps", "Unknown field"),
        (entry(peer={}), "policies[0].peer", "must have exactly one of cidr, handle, labels, network"),
        (entry(peer={"handle": "a", "cidr": "10.0.0.0/8"}), "policies[0].peer", "must have exactly one of"),
        (entry(peer={"host": "a"}), "policies[0].peer.host", "Unknown field"),
        (entry(peer={"handle": "a/b"}), "policies[0].peer.handle", "is no handle"),
        (entry(peer={"handle": 7}), "policies[0].peer.handle", "is no handle"),
        (entry(peer={"labels": {}}), "policies[0].peer.labels", "must have at least one label"),
        (entry(peer={"labels": {"app": 1}}), "policies[0].peer.labels", "whose values are texts"),
        (entry(peer={"labels": ["app"]}), "policies[0].peer.labels", "must be an object"),
        (entry(peer={"cidr": "10.0.0.1/8"}), "policies[0].peer.cidr", "host bits"),
        (entry(peer={"cidr": None}), "policies[0].peer.cidr", "is not a network"),
        (entry(peer={"network": ""}), "policies[0].peer.network", "is no name"),
        (entry(protocol="sctp"), "policies[0].protocol", "must be all, tcp"),
        (entry(ports={"start": 1, "end": 2}), "policies[0].ports", "only for tcp and udp"),
        (entry(protocol="tcp", ports={"start": 9, "end": 2}), "policies[0].ports", "runs backwards"),
        (entry(protocol="tcp", ports={"start": 1, "end": 70000}), "policies[0].ports.end", "from 0 to 65535"),
        (entry(protocol="tcp", ports=[{"start": 1}]), "policies[0].ports[0]", "needs both start and end"),
        (entry(protocol="tcp", ports=80), "policies[0].ports", "must be a list"),
        (entry(log=1), "policies[0].log", "must be true or false"),
        ({"net_out": [{"protocol": 9}]}, "net_out[0].protocol", "must be all"),
        ({"deny_networks": ["x"]}, "deny_networks[0]", "is not a network"),
        ({"default_ingress": "reject"}, "default_ingress", "Must be one of: deny, allow"),
        ({"net_in": []}, "net_in", "Unknown field"),
    ],
)
def test_a_policy_is_refused_at_the_field_that_is_wrong(document: dict[str, Any], path: str, complaint: str) -> None:
    with pytest.raises(Invalid) as refused:
        load(**document)

    assert list(refused.value.fields) == [path]
    assert complaint in refused.value.fields[path]
