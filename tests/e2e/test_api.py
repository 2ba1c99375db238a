"""The whole API over the real sockets: every request, every field of every answer; curl makes a few of the requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from jsonschema_subset import complaints
from pytest_netns import Netns, NetnsFactory
from world import Daemon, World, ask, eventually, open_world, serving

CONFIG = {
    "subnet": "10.40.0.0/24",
    "subnet6": "fd00:40::/64",
    "gateway": "10.40.0.254",
    "gateway6": "fd00:40::ff",
    "range": "10.40.0.16/28",
    "bridge": "br-full",
    "mtu": 1400,
    "masquerade": False,
    "masquerade6": True,
    "deny_networks": ["192.0.2.0/25", "2001:db8:1::/64"],
    "allow_host_access": True,
    "isolated": True,
    "dns_servers": ["10.40.0.254", "fd00:40::ff"],
    "search_domains": ["example.org", "internal"],
}
RULES = [
    {"protocol": "tcp", "networks": [{"start": "10.0.0.1", "end": "10.0.0.9"}], "ports": [{"start": 80, "end": 443}]},
    {"protocol": "icmp", "icmps": {"type": 8, "code": 0}, "log": True},
    {"protocol": "all", "networks": [{"start": "fd00::1", "end": "fd00::1"}]},
]
POLICY = {
    "net_in": [{"host_port": 8443, "container_port": 443, "protocol": "tcp", "host_ip": "192.0.2.1"}],
    "net_out": RULES,
    "deny_networks": ["203.0.113.0/24"],
    "log_denied": True,
}
EMPTY_POLICY: dict[str, Any] = {"net_in": [], "net_out": [], "deny_networks": [], "log_denied": False}


@pytest.fixture(scope="module")
def shared(netns_module: NetnsFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running daemon with the network blue, for tests that clean up behind themselves."""
    with open_world(netns_module, tmp_path_factory.mktemp("api")) as world:
        world.daemon.start()
        world.daemon.network()
        yield world


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    daemon = shared.daemon
    for one in daemon.get("/containers").body:
        assert daemon.down(one["handle"]).status == 200
        assert daemon.delete(f"/containers/{one['handle']}").status in (204, 404)
    for one in daemon.get("/networks").body:
        if one["name"] != "blue":
            assert daemon.delete(f"/networks/{one['name']}").status == 204
    assert daemon.put("/networks/blue/default_policy", {}).status == 200


def curl(world: World, path: str, *options: str, private: bool = False) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of what curl gets."""
    socket = world.daemon.private_socket if private else world.daemon.public_socket
    said = world.host.run("curl", "-sS", "-i", "--unix-socket", str(socket), f"http://conetd{path}", *options).stdout
    head, _, body = said.partition("\n\n")
    first, *lines = head.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body) if body.strip() else None


# Networks


def test_a_network_is_answered_with_every_default_written_out(world: World) -> None:
    status, headers, told = curl(
        world, "/networks", "-d", '{"name": "red", "type": "bridge", "config": {"subnet": "10.41.0.0/24"}}'
    )
    assert (status, headers["Content-Type"]) == (201, "application/json")
    assert told == {
        "name": "red",
        "type": "bridge",
        "config": {
            "subnet": "10.41.0.0/24",
            "gateway": "10.41.0.1",
            "range": "10.41.0.1-10.41.0.254",
            "masquerade": True,
            "masquerade6": False,
            "deny_networks": [],
            "allow_host_access": False,
            "isolated": False,
            "dns_servers": [],
            "search_domains": [],
        },
        "default_policy": EMPTY_POLICY,
        "declared": False,
    }
    assert curl(world, "/networks/red")[::2] == (200, told)
    assert told in curl(world, "/networks")[2]


def test_every_field_of_a_config_comes_back_and_is_in_force(world: World) -> None:
    document = {"name": "full", "type": "bridge", "config": CONFIG, "default_policy": POLICY}
    answer = world.daemon.post("/networks", document)
    assert answer.status == 201, answer
    assert answer.body["config"] == CONFIG | {"range": "10.40.0.16-10.40.0.31"}
    assert answer.body["default_policy"] == POLICY
    [link] = world.host.json("ip", "-j", "addr", "show", "br-full")
    addresses = {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"}
    assert addresses == {"10.40.0.254/24", "fd00:40::ff/64"}
    assert link["mtu"] == 1400
    web = world.container("web")
    told = world.daemon.bring_up("web", web, "full")
    assert told["attachments"][0] | {"mac": ""} == {
        "network": "full",
        "interface": "eth0",
        "addresses": ["10.40.0.16/24", "fd00:40::10/64"],
        "mac": "",
        "gateway": "10.40.0.254",
        "gateway6": "fd00:40::ff",
        "dns_servers": CONFIG["dns_servers"],
        "search_domains": CONFIG["search_domains"],
        "mtu": 1400,
        "default_route": ["ipv4", "ipv6"],
        "mapped_ports": [{"host_port": 8443, "container_port": 443, "protocol": "tcp", "host_ip": "192.0.2.1"}],
        "generation": told["attachments"][0]["generation"],
    }


@pytest.mark.parametrize(
    "same",
    [
        {"subnet": "10.41.0.0/24"},
        {"subnet": "10.41.0.0/24", "gateway": "10.41.0.1", "masquerade": True},
        {"range": "10.41.0.1-10.41.0.254", "subnet": "10.41.0.0/24"},
    ],
)
def test_the_same_network_again_is_200_however_it_is_written(world: World, same: dict[str, Any]) -> None:
    first = world.daemon.network("red", subnet="10.41.0.0/24")
    again = world.daemon.post("/networks", {"name": "red", "type": "bridge", "config": same})
    assert (first.status, again.status) == (201, 200)
    assert again.body == first.body


def test_a_network_that_was_deleted_can_be_made_with_another_config(world: World) -> None:
    world.daemon.network("red", subnet="10.41.0.0/24")
    status, headers, body = curl(world, "/networks/red", "-X", "DELETE")
    assert (status, body) == (204, None)
    assert "Content-Type" not in headers
    assert world.daemon.get("/networks/red").status == 404
    assert world.daemon.network("red", subnet="10.42.0.0/24").status == 201


def test_a_default_policy_reaches_exactly_those_without_one_of_their_own(world: World) -> None:
    daemon, web, own = world.daemon, world.container("web"), world.container("own")
    daemon.bring_up("web", web)
    daemon.bring_up("own", own)
    mine = {"net_out": [], "log_denied": True}
    assert daemon.policy("own", blue=mine).status == 200
    before = {name: daemon.get(f"/containers/{name}/policy").body["networks"]["blue"] for name in ("web", "own")}
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        status, _, told = curl(
            world, "/networks/blue/default_policy", "-X", "PUT", "-d", '{"deny_networks": ["192.0.2.0/24"]}'
        )
        assert (status, told["default_policy"]) == (200, EMPTY_POLICY | {"deny_networks": ["192.0.2.0/24"]})
        assert ask(web, "192.0.2.2", 7000) == "refused"
        assert ask(own, "192.0.2.2", 7000).startswith("hello")
        assert daemon.policy("own").status == 200
        assert ask(own, "192.0.2.2", 7000) == "refused"
    after = daemon.get("/containers/web/policy").body["networks"]["blue"]
    assert after["source"] == "default_policy"
    assert after["generation"] > before["web"]["generation"]


@pytest.mark.parametrize("moment", ["attached", "configured"])
def test_a_network_that_is_in_use_cannot_be_deleted_and_the_answer_names_by_whom(world: World, moment: str) -> None:
    daemon = world.daemon
    for number in range(5):
        if moment == "attached":
            daemon.bring_up(f"c{number}", world.container(f"c{number}"))
        else:
            daemon.join(f"c{number}", "blue")
    answer = daemon.delete("/networks/blue")
    words = "is attached to it" if moment == "attached" else "names it"
    assert (answer.status, answer.error["code"]) == (409, "conflict")
    assert answer.error["message"].count(words) == 3
    assert '"c0"' in answer.error["message"]
    assert answer.error["message"].endswith("and 2 more")


def test_a_policy_for_a_network_goes_with_it(world: World) -> None:
    daemon = world.daemon
    daemon.network("red", subnet="10.41.0.0/24")
    assert daemon.policy("web", red={"log_denied": True}).status == 200
    assert daemon.delete("/networks/red").status == 204
    daemon.network("red", subnet="10.41.0.0/24")
    daemon.join("web", "red")
    told = daemon.bring_up("web", world.container("web"), "red")
    assert told["attachments"][0]["network"] == "red"
    assert daemon.get("/containers/web/policy").body["networks"]["red"]["source"] == "default_policy"


# Containers


def test_a_config_is_201_the_first_time_and_then_200(world: World) -> None:
    document = '{"attach_to": ["blue"], "labels": {"app": "shop", "tier": ""}}'
    status, _, told = curl(world, "/containers/web/config", "-X", "PUT", "-d", document)
    assert (status, told) == (
        201,
        {"handle": "web", "attach_to": [{"network": "blue"}], "labels": {"app": "shop", "tier": ""}},
    )
    assert curl(world, "/containers/web/config", "-X", "PUT", "-d", document)[::2] == (200, told)
    assert world.daemon.delete("/containers/web").status == 204
    assert curl(world, "/containers/web/config", "-X", "PUT", "-d", document)[0] == 201


def test_every_field_of_attach_to_comes_back_normalised(world: World) -> None:
    world.daemon.network("six", subnet="10.41.0.0/24", subnet6="fd00:41::/64")
    entry = {
        "network": "six",
        "ip": "10.41.0.9",
        "ip6": "FD00:41:0:0::9",
        "mac": "0A:00:00:00:00:09",
        "ifname": "net0",
    }
    told = world.daemon.put("/containers/web/config", {"attach_to": [entry, "blue"]}).body
    normalised = entry | {"ip6": "fd00:41::9", "mac": "0a:00:00:00:00:09"}
    assert told["attach_to"] == [normalised, {"network": "blue"}]


@pytest.mark.parametrize("handle", ["a", "a" * 255, "Web_1.2:3@host-4", "...", "%77eb"])
def test_handles_of_every_kind_work_from_config_to_the_end(world: World, handle: str) -> None:
    plain = handle.replace("%77", "w")
    world.daemon.join(handle, "blue")
    assert world.daemon.up(handle, world.container("x")).body["handle"] == plain
    told = world.daemon.get(f"/containers/{handle}").body
    assert (told["handle"], told["state"]) == (plain, "up")
    assert world.daemon.down(handle).body == {"handle": plain, "state": "down"}
    assert world.daemon.delete(f"/containers/{handle}").status == 204


def test_a_container_that_is_up_is_told_with_every_field(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.put("/containers/web/config", {"attach_to": ["blue"], "labels": {"app": "shop"}})
    daemon.policy("web", blue={"net_in": [{"host_port": 8080, "container_port": 80}]})
    told_up = daemon.up("web", web, annotations={"org.example.team": "a"}).body
    status, _, told = curl(world, "/containers/web")
    assert status == 200
    [attachment] = told["attachments"]
    document = EMPTY_POLICY | {"net_in": [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}]}
    assert told == {
        "handle": "web",
        "state": "up",
        "config": {"attach_to": [{"network": "blue"}], "labels": {"app": "shop"}},
        "pid": web.pid,
        "running": True,
        "properties": {"org.example.team": "a"},
        "external_ip": "192.0.2.1",
        "attachments": [told_up["attachments"][0] | {"as_wanted": True}],
        "policy": {
            "networks": {
                "blue": {
                    "policy": document,
                    "source": "client",
                    "in_force": True,
                    "generation": attachment["generation"],
                }
            }
        },
    }
    assert attachment["mapped_ports"] == [{"host_port": 8080, "container_port": 80, "protocol": "tcp"}]
    assert curl(world, "/containers")[::2] == (200, [told])
    assert curl(world, "/containers/web/policy")[::2] == (200, {"handle": "web", **told["policy"]})


def test_up_answers_with_what_an_engine_needs(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network("red", subnet="10.41.0.0/24", dns_servers=["10.41.0.1", "9.9.9.9"], search_domains=["red"])
    daemon.network("two", subnet="10.42.0.0/24", dns_servers=["9.9.9.9"], search_domains=["two", "red"])
    daemon.join("web", "red", "two")
    daemon.policy("web", two={"net_in": [{"host_port": 0, "container_port": 80, "protocol": "udp"}]})
    state = json.dumps({"ociVersion": "1.0.2", "id": "web", "status": "creating", "pid": web.pid, "bundle": "/b"})
    status, _, told = curl(world, "/containers/web/up", "-d", state, private=True)
    assert status == 200
    [port] = told["mapped_ports"]
    assert 61001 <= port["host_port"] <= 65534
    assert port == {"host_port": port["host_port"], "container_port": 80, "protocol": "udp", "network": "two"}
    assert {key: value for key, value in told.items() if key not in ("attachments", "mapped_ports")} == {
        "handle": "web",
        "state": "up",
        "external_ip": "192.0.2.1",
        "dns_servers": ["10.41.0.1", "9.9.9.9"],
        "search_domains": ["red", "two"],
    }
    assert [(one["network"], one["interface"], one["default_route"]) for one in told["attachments"]] == [
        ("red", "eth0", ["ipv4"]),
        ("two", "eth1", []),
    ]
    assert curl(world, "/containers/web/down", "-X", "POST", private=True)[::2] == (
        200,
        {"handle": "web", "state": "down"},
    )


@pytest.mark.parametrize(
    "state",
    [
        lambda pid: {"Pid": pid, "Properties": {"network.attach_to": "blue"}},
        lambda pid: {"Pid": pid, "Properties": {"attach_to": " blue "}},
        lambda pid: {"pid": pid, "annotations": {"network.attach_to": "blue"}, "root": "/", "version": "0.5"},
    ],
    ids=["guardian", "guardian-stripped", "oci"],
)
def test_every_spelling_of_up_says_what_to_join(world: World, state: Any) -> None:
    web = world.container("web")
    answer = world.daemon.call("POST", "/containers/web/up", state(web.pid), private=True)
    assert [one["network"] for one in answer.body["attachments"]] == ["blue"], answer
    assert world.daemon.get("/containers/web").body["config"] is None
    world.daemon.down("web")
    assert world.daemon.get("/containers/web").status == 404


def test_guardians_netin_and_netout_rules_hold_for_one_life(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.put("/networks/blue/default_policy", {"deny_networks": ["192.0.2.0/24"]})
    body = {
        "Pid": web.pid,
        "Properties": {"network.attach_to": "blue"},
        "netin": [{"host_port": 0, "container_port": 80}],
        "netout_rules": [{"protocol": 1, "ports": [{"start": 7000, "end": 7000}]}],
    }
    told = daemon.call("POST", "/containers/web/up", body, private=True).body
    [port] = told["mapped_ports"]
    with serving(world.outside, 7000), serving(world.outside, 7001), serving(web, 80):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        assert ask(web, "192.0.2.2", 7001) == "refused"
        assert ask(world.outside, "192.0.2.1", port["host_port"]).startswith("hello")
    policy = daemon.get("/containers/web/policy").body["networks"]["blue"]
    assert policy["source"] == "garden"
    daemon.down("web")
    daemon.join("web", "blue")
    daemon.up("web", web)
    assert daemon.get("/containers/web/policy").body["networks"]["blue"]["source"] == "default_policy"


def test_an_empty_attach_to_is_a_container_without_a_network(world: World) -> None:
    web = world.container("web")
    world.daemon.join("web")
    told = world.daemon.up("web", web).body
    assert (told["attachments"], told["mapped_ports"], told["dns_servers"]) == ([], [], [])
    assert world.daemon.get("/containers/web").body["state"] == "up"


def test_containers_come_by_handle_whatever_their_state(world: World) -> None:
    daemon = world.daemon
    daemon.join("b", "blue")
    daemon.bring_up("c", world.container("c"))
    daemon.policy("a", blue={})
    told = daemon.get("/containers").body
    assert [(one["handle"], one["state"]) for one in told] == [("a", "down"), ("b", "down"), ("c", "up")]
    assert [one["config"] is None for one in told] == [True, False, False]
    assert all("pid" not in one for one in told[:2])


# Policies


def of(world: World, handle: str = "web") -> dict[str, Any]:
    told: dict[str, Any] = world.daemon.get(f"/containers/{handle}/policy").body["networks"]
    return told


def test_a_policy_can_be_put_before_during_and_after_a_life(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    before = daemon.policy("web", blue={"log_denied": True})
    assert before.body == {
        "handle": "web",
        "networks": {"blue": {"policy": EMPTY_POLICY | {"log_denied": True}, "source": "client", "in_force": False}},
    }
    daemon.bring_up("web", web)
    during = of(world)["blue"]
    assert (during["policy"]["log_denied"], during["in_force"]) == (True, True)
    changed = daemon.policy("web", blue={"log_denied": False}).body["networks"]["blue"]
    assert (changed["in_force"], changed["source"]) == (True, "client")
    daemon.down("web")
    assert of(world)["blue"] == {"policy": EMPTY_POLICY, "source": "client", "in_force": False}
    assert daemon.policy("web", blue={"log_denied": True}).body["networks"]["blue"]["in_force"] is False
    daemon.up("web", web)
    assert of(world)["blue"]["policy"]["log_denied"] is True
    assert of(world)["blue"]["in_force"] is True


def test_every_field_of_a_policy_comes_back(world: World) -> None:
    world.daemon.bring_up("web", world.container("web"))
    told = world.daemon.policy("web", blue=POLICY).body["networks"]["blue"]
    assert told["policy"] == POLICY


def test_gardens_numbers_come_back_as_names(world: World) -> None:
    written = {
        "net_in": [{"host_port": 8080, "protocol": 2}],
        "net_out": [{"protocol": 0}, {"protocol": 3, "icmps": {"type": 255}}, {"protocol": 4}],
    }
    told = world.daemon.policy("web", blue=written).body["networks"]["blue"]["policy"]
    assert told["net_in"] == [{"host_port": 8080, "container_port": 0, "protocol": "udp"}]
    assert told["net_out"] == [{"protocol": "all"}, {"protocol": "icmp"}, {"protocol": "icmpv6"}]


def test_a_policy_is_the_whole_truth(world: World) -> None:
    daemon = world.daemon
    daemon.network("red", subnet="10.41.0.0/24", default_policy={"deny_networks": ["10.0.0.0/8"]})
    daemon.bring_up("web", world.container("web"), "blue", "red")
    daemon.policy("web", blue={"log_denied": True}, red={})
    assert {name: one["source"] for name, one in of(world).items()} == {"blue": "client", "red": "client"}
    told = daemon.policy("web", blue={"log_denied": True}).body["networks"]
    assert (told["red"]["source"], told["red"]["policy"]["deny_networks"]) == ("default_policy", ["10.0.0.0/8"])
    assert told["blue"]["source"] == "client"
    told = daemon.policy("web").body["networks"]
    assert {one["source"] for one in told.values()} == {"default_policy"}


def test_a_policy_for_a_network_the_container_is_not_on_is_kept_and_not_in_force(world: World) -> None:
    daemon = world.daemon
    daemon.network("red", subnet="10.41.0.0/24")
    daemon.bring_up("web", world.container("web"))
    told = daemon.policy("web", red={"log_denied": True}).body["networks"]
    assert (told["red"]["in_force"], "generation" in told["red"]) == (False, False)
    assert told["blue"]["in_force"] is True
    daemon.join("web", "blue", "red")
    assert of(world)["red"]["in_force"] is True
    assert of(world)["red"]["policy"]["log_denied"] is True


def test_generations_grow_with_every_change_and_only_with_changes(world: World) -> None:
    daemon = world.daemon
    daemon.bring_up("web", world.container("web"))
    seen = [of(world)["blue"]["generation"]]
    for logs in (True, False, True):
        answer = daemon.policy("web", blue={"log_denied": logs})
        seen.append(answer.body["networks"]["blue"]["generation"])
        again = daemon.policy("web", blue={"log_denied": logs})
        assert again.body["networks"]["blue"]["generation"] == seen[-1]
    assert all(earlier < later for earlier, later in pairwise(seen))


def test_no_policy_for_a_container_nobody_knows_leaves_nothing(world: World) -> None:
    answer = world.daemon.policy("ghost")
    assert (answer.status, answer.body) == (200, {"handle": "ghost", "networks": {}})
    assert world.daemon.get("/containers/ghost").status == 404
    world.daemon.policy("ghost", blue={})
    assert world.daemon.get("/containers/ghost").body["config"] is None
    world.daemon.policy("ghost")
    assert world.daemon.get("/containers/ghost").status == 404
    assert world.remains()["rows"]["containers"] == 0


def test_host_port_0_takes_another_port_than_those_the_policy_names(world: World) -> None:
    daemon = world.daemon
    daemon.bring_up("web", world.container("web"))
    ports = [{"host_port": 0}, {"host_port": 61005}, *({"host_port": 0} for _ in range(9))]
    answer = daemon.policy("web", blue={"net_in": ports})
    assert answer.status == 200, answer
    mapped = [one["host_port"] for one in daemon.get("/containers/web").body["attachments"][0]["mapped_ports"]]
    assert mapped[1] == 61005
    assert len(set(mapped)) == len(mapped)


# Drivers and status


def driver(world: World, type_: str = "bridge") -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in world.daemon.get("/drivers").body if one["type"] == type_)
    return found


def test_a_driver_is_told_with_every_field(world: World) -> None:
    told = driver(world)
    assert told | {"config_schema": 0, "policy_schema": 0} == {
        "type": "bridge",
        "enabled": True,
        "distribution": "conetd",
        "version": world.daemon.get("/status").body["version"],
        "api_version": 1,
        "capabilities": ["garden"],
        "planned": True,
        "config_schema": 0,
        "policy_schema": 0,
    }


def test_the_json_schemas_take_what_is_taken(world: World) -> None:
    told = driver(world)
    assert set(told["config_schema"]["properties"]) == set(CONFIG)
    assert set(told["policy_schema"]["properties"]) == set(POLICY)
    assert list(complaints(told["config_schema"], CONFIG)) == []
    assert list(complaints(told["policy_schema"], POLICY)) == []
    assert list(complaints(told["policy_schema"], {})) == []


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        ("config_schema", {}),
        ("config_schema", CONFIG | {"colour": "red"}),
        ("config_schema", CONFIG | {"mtu": "big"}),
        ("config_schema", CONFIG | {"mtu": 70000}),
        ("config_schema", CONFIG | {"bridge": "a/b"}),
        ("config_schema", CONFIG | {"search_domains": ["-x"]}),
        ("config_schema", CONFIG | {"isolated": "yes"}),
        ("config_schema", CONFIG | {"deny_networks": "10.0.0.0/8"}),
        ("policy_schema", POLICY | {"colour": "red"}),
        ("policy_schema", {"net_in": [{"host_port": 70000}]}),
        ("policy_schema", {"net_in": [{}]}),
        ("policy_schema", {"net_out": [{"protocol": "sctp"}]}),
        ("policy_schema", {"net_out": [{"ports": [{"start": 80}]}]}),
        ("policy_schema", {"net_out": [{"networks": [{"cidr": "10.0.0.0/8"}]}]}),
        ("policy_schema", {"net_out": [{"icmps": {"type": 300}}]}),
    ],
)
def test_the_json_schemas_refuse_what_is_refused(world: World, schema: str, document: dict[str, Any]) -> None:
    assert list(complaints(driver(world)[schema], document))


def test_status_tells_that_all_is_well(world: World) -> None:
    eventually(lambda: world.daemon.get("/status").body["removals_pending"] == 0, "nothing is left to remove")
    status, _, told = curl(world, "/status")
    assert status == 200
    assert told | {"rounds": 0} == {
        "status": "ok",
        "version": told["version"],
        "filter": {"backend": "nftables"},
        "attachments_not_as_wanted": [],
        "networks_not_as_wanted": [],
        "foreign_drops": [],
        "removals_pending": 0,
        "rounds": 0,
        "sysctls_changed": told["sysctls_changed"],
    }
    assert told["sysctls_changed"]["ipv4/conf/up0/forwarding"] == {"old": "0", "new": "1"}


def test_status_names_foreign_rules_that_drop_our_packets(world: World) -> None:
    world.host.run(
        "nft", "add table ip firewall; add chain ip firewall f { type filter hook forward priority 0; policy drop; }"
    )
    try:
        answer = world.daemon.get("/status")
        [drop] = answer.body["foreign_drops"]
        assert (drop["family"], drop["table"], drop["chain"]) == ("ip", "firewall", "f")
        assert drop["reason"]
    finally:
        world.host.run("nft", "delete table ip firewall")
    assert world.daemon.get("/status").body["foreign_drops"] == []


def at_rest(world: World) -> dict[str, Any]:
    """What remains once the links of former containers are no longer kept shut: the filter tidies up on its own."""
    eventually(lambda: '"cv' not in str(world.remains()["rules"]), "no link is kept shut")
    return world.remains()


def test_what_the_kernel_refuses_is_502_and_leaves_nothing(world: World) -> None:
    world.host.run("ip", "link", "add", "br-taken", "type", "bridge")
    try:
        before = at_rest(world)
        answer = world.daemon.post(
            "/networks", {"name": "red", "type": "bridge", "config": {"subnet": "10.41.0.0/24", "bridge": "br-taken"}}
        )
        assert (answer.status, answer.error["code"]) == (502, "kernel_error")
        assert answer.error["message"].startswith("could not create link br-taken: File exists")
        assert world.remains() == before
    finally:
        world.host.run("ip", "link", "del", "br-taken")


def take_name(daemon: Daemon, web: Netns, name: str) -> None:
    with daemon.suspended():  # else it may be back before it is taken
        web.run("ip", "link", "del", name)
        web.run("ip", "link", "add", name, "type", "bridge")


def test_status_is_503_and_names_an_attachment_that_cannot_be_mended(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.bring_up("web", web)
    take_name(daemon, web, "eth0")  # whatever conetd does, the name is taken
    eventually(lambda: daemon.get("/status").status == 503, "it is noticed")
    told = daemon.get("/status").body
    [problem] = told["attachments_not_as_wanted"]
    assert (told["status"], problem["handle"], problem["network"]) == ("degraded", "web", "blue")
    eventually(
        lambda: "eth0" in daemon.get("/status").body["attachments_not_as_wanted"][0]["problem"], "the reason is told"
    )
    [attachment] = daemon.get("/containers/web").body["attachments"]
    assert attachment["as_wanted"] is False
    assert attachment["problem"]
    web.run("ip", "link", "del", "eth0")
    eventually(lambda: daemon.get("/status").status == 200, "it is mended")
    assert daemon.get("/containers/web").body["attachments"][0]["as_wanted"] is True
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_head_answers_as_get_without_a_body(world: World) -> None:
    status, headers, body = curl(world, "/networks/blue", "-I")
    assert (status, headers["Content-Type"], body) == (200, "application/json", None)


def test_a_connection_serves_one_request_after_the_other(world: World) -> None:
    urls = [f"http://conetd/{path}" for path in ("networks", "none", "status", "containers/none")]
    many = ["curl", "-sS", "--unix-socket", str(world.daemon.public_socket), "-o", "/dev/null", "-w"]
    said = world.host.run(
        *many, "%{http_code} %{num_connects}\n", *[word for url in urls for word in (url, "-o", "/dev/null")]
    )
    assert said.stdout.splitlines() == ["200 1", "404 0", "200 0", "404 0"]
