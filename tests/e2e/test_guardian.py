"""conet-hook as Guardian's network plugin: what becomes of its containers, and what Guardian makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guardian import Guardian, GuardianError
from played import (
    BLUE,
    BOTH,
    OUTSIDE,
    TCP4,
    UP,
    Chatter,
    conetds_info,
    create,
    left,
    listening,
    mapped,
    open_host,
    passes,
    rule,
)
from pytest_netns import NetnsFactory
from traffic import Services
from traffic import ask as reach
from world import World, eventually


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with open_host(netns, tmp_path, getattr(request, "param", "nftables")) as world:
        yield world


# What Guardian knows of a container


def test_a_container_has_its_identity_in_info_hosts_and_resolv_conf(world: World, guardian: Guardian) -> None:
    world.daemon.network()
    guardian.dns_servers = ["192.0.2.53"]
    create(world, guardian, "web", properties=BLUE | {"mine": "kept", "log_config": "{}"})
    assert guardian.info("web") == {
        "ContainerIP": "10.10.0.2",
        "ContainerIPv6": "",
        "HostIP": "10.10.0.1",
        "ExternalIP": UP,
        "MappedPorts": [],
        "Properties": BLUE
        | {
            "mine": "kept",
            "log_config": "{}",
            "garden.state": "created",
            "garden.network.container-ip": "10.10.0.2",
            "garden.network.host-ip": "10.10.0.1",
            "garden.network.external-ip": UP,
            "garden.network.interface": "eth0",
            "garden.network.mapped-ports": "[]",
        },
    }
    assert guardian.hosts("web") == "127.0.0.1 localhost\n10.10.0.2 web\n"
    assert guardian.resolv_conf("web") == "nameserver 192.0.2.53\n"
    assert world.daemon.get("/containers/web").body["properties"] == {"attach_to": "blue", "log_config": "{}"}


@pytest.mark.parametrize(
    ("settings", "property_", "told"),
    [("", None, "203.0.113.9"), ('external_ip = "198.51.100.7"', "198.51.100.7", "198.51.100.7")],
    ids=["auto", "set"],
)
def test_the_external_ip_is_the_settings_where_they_say_one_else_guardians(
    world: World, guardian: Guardian, settings: str, property_: str | None, told: str
) -> None:
    daemon = world.daemon
    daemon.stop()
    daemon.settings += f"\n{settings}"
    daemon.start()
    daemon.network()
    guardian.external_ip = "203.0.113.9"
    create(world, guardian, "web")
    assert json.loads(guardian.calls[0].stdout)["properties"].get("garden.network.external-ip") == property_
    assert guardian.info("web")["ExternalIP"] == told


RESOLVED = "nameserver 127.0.0.53\n"
OPERATOR = "nameserver 192.0.2.53\n"


@pytest.mark.parametrize(
    ("config", "operator", "text"),
    [
        ({}, ["192.0.2.53"], OPERATOR),
        ({}, [], "nameserver 10.10.0.2\n"),
        (
            {"dns_servers": ["10.10.0.1", "2001:db8::53"]},
            ["192.0.2.53"],
            "nameserver 10.10.0.1\nnameserver 2001:db8::53\n",
        ),
        ({"search_domains": ["a.example", "b"]}, ["192.0.2.53"], f"{OPERATOR}search a.example b\n"),
        ({"dns_servers": ["10.10.0.1"], "search_domains": ["a"]}, [], "nameserver 10.10.0.1\nsearch a\n"),
    ],
    ids=["none", "none, nor the operator's", "servers", "domains", "both"],
)
def test_resolv_conf_has_what_the_network_says_else_guardians_own(
    world: World, guardian: Guardian, config: dict[str, Any], operator: list[str], text: str
) -> None:
    world.daemon.network(**config)
    guardian.dns_servers, guardian.host_resolv_conf = operator, RESOLVED
    create(world, guardian, "web")
    assert guardian.resolv_conf("web") == text


def test_ipv6_is_in_info_and_hosts(world: World, guardian: Guardian) -> None:
    world.daemon.network(subnet6="fd00:10::/64")
    create(world, guardian, "web")
    info = guardian.info("web")
    assert (info["ContainerIP"], info["HostIP"]) == ("10.10.0.2", "10.10.0.1")
    assert info["ContainerIPv6"] == conetds_info(world, "web")["ContainerIPv6"] != ""
    ipv6 = info["ContainerIPv6"]
    assert guardian.hosts("web") == f"127.0.0.1 localhost\n::1 localhost\n10.10.0.2 web\n{ipv6} web\n"


def test_of_several_networks_the_first_gives_the_identity_and_all_give_ports_and_dns(
    world: World, guardian: Guardian, services: Services
) -> None:
    world.daemon.network("red", subnet="10.11.0.0/24", dns_servers=["10.11.0.1"], search_domains=["red"])
    policy = {"net_in": [{"host_port": 7001, "container_port": 8080}]}
    world.daemon.network(dns_servers=["10.10.0.1"], search_domains=["blue"], default_policy=policy)
    given = {"properties": {"network.attach_to": "red, blue"}, "netin": [{"host_port": 7000, "container_port": 8080}]}
    web = create(world, guardian, "web", **given)
    info = guardian.info("web")
    assert (info["ContainerIP"], info["HostIP"]) == ("10.11.0.2", "10.11.0.1")
    assert info["Properties"]["garden.network.interface"] == "eth0"
    assert info["MappedPorts"] == [mapped(7000, 8080), mapped(7001, 8080)]
    assert guardian.hosts("web") == "127.0.0.1 localhost\n10.11.0.2 web\n"
    assert guardian.resolv_conf("web") == "nameserver 10.11.0.1\nnameserver 10.10.0.1\nsearch red blue\n"
    services.open(web, "web", "tcp", 8080)
    for port in (7000, 7001):
        assert reach(world.outside, TCP4, UP, port).startswith("web ")


@BOTH
def test_metrics_are_those_of_the_containers_interface(world: World, guardian: Guardian, services: Services) -> None:
    world.daemon.network()
    web = create(world, guardian, "web")
    services.open(world.outside, "outside", "tcp", 7000)
    before = guardian.metrics("web", web.pid)
    assert passes(web, 7000)
    after = guardian.metrics("web", web.pid)
    assert before is not None
    assert after is not None
    assert all(after[name] > before[name] + 100 for name in ("RxBytes", "TxBytes"))
    told = world.daemon.call("GET", "/garden/containers/web/metrics", private=True).body["NetworkStat"]
    assert all(after[name] <= told[name] <= after[name] + 2000 for name in after)


def test_a_health_check_has_no_metrics(world: World, guardian: Guardian) -> None:
    world.daemon.network()
    web = create(world, guardian, "web", properties=BLUE | {"network.healthcheck": "true"})
    assert guardian.metrics("web", web.pid) is None
    assert world.daemon.call("GET", "/garden/containers/web/metrics", private=True).body == {"NetworkStat": None}


# Which networks a container joins


def test_the_property_chooses_before_the_setting_and_the_clients_config_before_both(
    world: World, guardian: Guardian
) -> None:
    daemon = world.daemon
    daemon.stop()
    daemon.settings += '\ndefault_attach_to = ["blue"]'
    daemon.start()
    for number, name in enumerate(("blue", "red", "green")):
        daemon.network(name, subnet=f"10.1{number}.0.0/24")
    daemon.join("configured", "green")
    red = {"network.attach_to": "red"}
    for handle, properties in (("silent", {}), ("named", red), ("configured", red)):
        create(world, guardian, handle, properties=properties)
    addresses = [guardian.info(handle)["ContainerIP"] for handle in ("silent", "named", "configured")]
    assert addresses == ["10.10.0.2", "10.11.0.2", "10.12.0.2"]


def test_of_a_configured_container_only_what_its_client_put_outlives_it(world: World, guardian: Guardian) -> None:
    world.daemon.network()
    world.daemon.join("web", "blue")
    before = left(world)
    create(world, guardian, "web", netin=[{}], netout_rules=[rule(7000)])
    guardian.net_in("web", 0, 0)
    guardian.destroy("web")
    eventually(lambda: left(world) == before, "only the config is left")
    assert world.daemon.get("/containers/web/policy").body["networks"] == {}


@pytest.mark.parametrize("how", ["config", "property"])
def test_a_container_that_joins_nothing_has_no_identity_and_guardian_refuses_net_in_itself(
    world: World, guardian: Guardian, how: str
) -> None:
    before = left(world)
    if how == "config":
        world.daemon.join("web")
    web = create(world, guardian, "web", properties={} if how == "config" else {"network.attach_to": ""})
    assert json.loads(guardian.calls[0].stdout)["properties"] == {}
    assert (guardian.hosts("web"), guardian.resolv_conf("web"), guardian.info("web")["ContainerIP"]) == ("", "", "")
    assert guardian.metrics("web", web.pid) is None
    with pytest.raises(GuardianError, match=r"^cannot find container \[web\]\n$"):
        guardian.net_in("web", 0, 0)
    guardian.destroy("web")
    assert [call.argv[-3] for call in guardian.calls] == ["up", "down"]
    world.daemon.delete("/containers/web")
    assert left(world) == before


# What is given at creation


@BOTH
@pytest.mark.parametrize(
    ("netin", "pairs"),
    [
        ([{}], [(61001, 61001)]),
        ([{"host_port": 7000, "container_port": 8080}], [(7000, 8080)]),
        ([{"host_port": 7000}], [(7000, 7000)]),
        ([{"container_port": 8080}], [(61001, 8080)]),
        (
            [{"container_port": 8080}, {"container_port": 8080}, {"host_port": 7000, "container_port": 8080}, {}],
            [(61001, 8080), (61002, 8080), (7000, 8080), (61003, 61003)],
        ),
    ],
    ids=["0-0", "explicit", "host port alone", "container port alone", "several"],
)
def test_ports_given_at_creation_are_published_and_in_info(
    world: World, guardian: Guardian, services: Services, netin: list[dict[str, int]], pairs: list[tuple[int, int]]
) -> None:
    world.daemon.network()
    web = create(world, guardian, "web", netin=netin)
    assert guardian.info("web")["MappedPorts"] == [mapped(*pair) for pair in pairs]
    for host_port, container_port in pairs:
        services.open(web, "web", "tcp", container_port)
        assert reach(world.outside, TCP4, UP, host_port) == f"web {OUTSIDE}"


@BOTH
def test_rules_given_at_creation_open_what_the_network_denies(
    world: World, guardian: Guardian, services: Services
) -> None:
    world.daemon.network(deny_networks=["0.0.0.0/0"])
    web = create(world, guardian, "web", netout_rules=[rule(7000), rule(7001)])
    for port in (7000, 7001, 7002):
        services.open(world.outside, "outside", "tcp", port)
    assert [passes(web, port) for port in (7000, 7001, 7002)] == [True, True, False]


@BOTH
def test_rules_given_at_creation_hold_from_the_first_packet(world: World, guardian: Guardian) -> None:
    """A process that sends without end, from before it has a network: what it may send arrives from its first packet
    on and is never refused; of the rest nothing ever leaves.
    """
    world.daemon.network(deny_networks=["0.0.0.0/0"])
    web = world.container("web")
    with listening(world.outside, 7000, 7001) as heard, Chatter(web, (7000, 7001)) as chatter:
        guardian.create("web", web.pid, properties=BLUE, netout_rules=[rule(7000, protocol=2)])
        eventually(lambda: len(heard[7000]) >= 20, "what is allowed arrives")
    assert heard[7001] == []
    assert chatter.refusals[7000] == 0
    assert chatter.refusals[7001] > 0
    assert heard[7000][0] == chatter.first_sent[7000]
