"""The life of a container: what up, down, config and policy mean before, during and after it."""

from __future__ import annotations

import sqlite3

import pytest
from world import World, ask, eventually, serving


def test_up_gives_the_container_what_it_answers(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(dns_servers=["10.10.0.1"], search_domains=["internal"])
    told = daemon.bring_up("web", web)
    [attachment] = told["attachments"]
    assert attachment["interface"] == "eth0"
    assert attachment["addresses"] == ["10.10.0.2/24"]
    assert attachment["gateway"] == "10.10.0.1"
    assert (told["dns_servers"], told["search_domains"]) == (["10.10.0.1"], ["internal"])
    [link] = [one for one in web.json("ip", "-j", "addr") if one["ifname"] == "eth0"]
    assert link["address"] == attachment["mac"]
    assert [(one["local"], one["prefixlen"]) for one in link["addr_info"]] == [("10.10.0.2", 24)]
    [route] = web.json("ip", "-j", "route", "show", "default")
    assert (route["gateway"], route["dev"]) == ("10.10.0.1", "eth0")


def test_up_when_up_answers_the_same_again_and_changes_nothing(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    first = daemon.bring_up("web", web)
    before = (world.remains(), web.run("ip", "addr").stdout)
    assert daemon.up("web", web).body == first
    assert (world.remains(), web.run("ip", "addr").stdout) == before


def test_up_in_another_namespace_while_the_old_one_lives_is_a_conflict(world: World) -> None:
    daemon, web, other = world.daemon, world.container("web"), world.container("other")
    daemon.network()
    daemon.bring_up("web", web)
    answer = daemon.up("web", other)
    assert answer.status == 409
    assert f"process {web.pid}" in answer.error["message"]
    assert [one["ifname"] for one in other.json("ip", "-j", "link")] == ["lo"]


def test_up_in_another_namespace_after_the_old_one_died_takes_the_old_one_down(world: World) -> None:
    daemon, web, other = world.daemon, world.container("web"), world.container("other")
    daemon.network()
    first = daemon.bring_up("web", web)
    web.close()
    answer = daemon.up("web", other)
    assert answer.status == 200, answer
    assert answer.body["attachments"][0]["addresses"] == first["attachments"][0]["addresses"]


def test_the_end_of_the_process_takes_the_container_down_without_a_hook(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    empty = world.remains()
    daemon.bring_up("web", web)
    web.close()
    eventually(lambda: daemon.get("/containers/web").body["state"] == "down", "the container is down")
    daemon.delete("/containers/web")
    eventually(lambda: world.remains() == empty, "nothing is left")


@pytest.mark.parametrize("state", ["ociVersion", "Pid", "bundlePath"])
def test_up_knows_every_spelling_of_the_engines(world: World, state: str) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.join("web", "blue")
    documents = {
        "ociVersion": {"ociVersion": "1.0.2", "id": "web", "status": "created", "pid": web.pid, "bundle": "/b"},
        "bundlePath": {"version": "0.5.0", "id": "web", "pid": web.pid, "bundlePath": "/b"},
        "Pid": {"Pid": web.pid, "Properties": {}, "netin": None},
    }
    answer = daemon.call("POST", "/containers/web/up", documents[state], private=True)
    assert answer.status == 200, answer


def test_what_an_up_joins(world: World) -> None:
    daemon = world.daemon
    daemon.stop()
    daemon.settings += '\ndefault_attach_to = ["blue"]'
    daemon.start()
    daemon.network()
    daemon.network("red", subnet="10.11.0.0/24")
    silent, named, configured, nowhere = (world.container(name) for name in ("a", "b", "c", "d"))

    def joined(handle: str) -> list[str]:
        return [one["network"] for one in daemon.get(f"/containers/{handle}").body["attachments"]]

    assert daemon.up("silent", silent).status == 200
    assert joined("silent") == ["blue"]
    properties = {"Pid": named.pid, "Properties": {"network.attach_to": "red"}}
    assert daemon.call("POST", "/containers/named/up", properties, private=True).status == 200
    assert joined("named") == ["red"]
    daemon.join("configured", "red", "blue")
    properties = {"Pid": configured.pid, "Properties": {"attach_to": "blue"}}
    assert daemon.call("POST", "/containers/configured/up", properties, private=True).status == 200
    assert joined("configured") == ["red", "blue"]
    daemon.join("nowhere")
    assert daemon.up("nowhere", nowhere).status == 200
    assert joined("nowhere") == []


def test_an_up_that_nobody_said_anything_about_is_refused(world: World) -> None:
    answer = world.daemon.up("web", world.container("web"))
    assert answer.status == 422
    assert "default_attach_to" in answer.error["message"]
    assert world.daemon.get("/containers").body == []


def test_an_up_that_fails_gives_everything_back(world: World) -> None:
    daemon, web, other = world.daemon, world.container("web"), world.container("other")
    daemon.network()
    daemon.network("red", subnet="10.11.0.0/24")
    daemon.bring_up("other", other)
    daemon.policy("other", blue={"net_in": [{"host_port": 8080, "container_port": 80}]})
    daemon.join("web", "blue", "red")
    daemon.policy(
        "web",
        blue={"net_in": [{"host_port": 0, "container_port": 80}]},
        red={"net_in": [{"host_port": 8080, "container_port": 80}]},
    )
    before = world.remains()
    answer = daemon.up("web", web)
    assert answer.status == 409
    assert 'held by container "other"' in answer.error["message"]
    assert "networks.red.net_in[0].host_port" in answer.error["fields"]
    assert world.remains() == before
    assert [one["ifname"] for one in web.json("ip", "-j", "link")] == ["lo"]


def test_an_up_whose_interface_name_is_taken_in_the_container_gives_everything_back(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.join("web", "blue")
    web.run("ip", "link", "add", "eth0", "type", "bridge")
    before = world.remains()
    answer = daemon.up("web", web)
    assert answer.status == 502
    assert "eth0" in answer.error["message"]
    eventually(lambda: world.remains() == before, "everything is given back")
    web.run("ip", "link", "del", "eth0")
    assert daemon.up("web", web).status == 200


def test_down_of_an_unknown_handle_and_down_twice_are_successes(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    assert daemon.down("never-heard-of").status == 200
    daemon.bring_up("web", web)
    assert daemon.down("web").status == 200
    assert daemon.down("web").status == 200


def test_down_lets_no_packet_pass_and_the_link_follows_within_a_second(world: World) -> None:
    daemon, web, peer = world.daemon, world.container("web"), world.container("peer")
    daemon.network()
    daemon.bring_up("web", web)
    daemon.bring_up("peer", peer)
    with serving(world.outside, 7000), serving(web, 7001):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        assert ask(peer, "10.10.0.2", 7001).startswith("hello")
        assert ask(world.host, "10.10.0.2", 7001).startswith("hello")
        daemon.down("web")
        assert ask(peer, "10.10.0.2", 7001, seconds=0.3) in ("timeout", "No route to host")
        assert ask(world.host, "10.10.0.2", 7001, seconds=0.3) in ("timeout", "No route to host")
        assert not ask(web, "192.0.2.2", 7000, seconds=0.3).startswith("hello")

    def links() -> list[str]:
        return [one["ifname"] for one in web.json("ip", "-j", "link")]

    eventually(lambda: links() == ["lo"], "the link is gone", seconds=1.0)


def test_what_a_client_put_outlives_the_container_and_the_next_up_uses_it(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(deny_networks=["192.0.2.0/24"])
    daemon.bring_up("web", web)
    document = {"net_out": [{"networks": [{"start": "192.0.2.2", "end": "192.0.2.2"}]}]}
    assert daemon.policy("web", blue=document).status == 200
    daemon.down("web")
    kept = daemon.get("/containers/web").body
    assert kept["state"] == "down"
    assert kept["policy"]["networks"]["blue"]["in_force"] is False
    assert daemon.up("web", web).status == 200
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
    daemon.down("web")
    assert daemon.delete("/containers/web").status == 204
    assert daemon.get("/containers/web").status == 404


def test_a_container_no_client_configured_leaves_no_row(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    body = {"Pid": web.pid, "Properties": {"attach_to": "blue"}}
    assert daemon.call("POST", "/containers/web/up", body, private=True).status == 200
    daemon.down("web")
    assert daemon.get("/containers/web").status == 404
    eventually(lambda: world.remains()["rows"]["containers"] == 0, "the row is gone")


def test_a_container_that_is_up_cannot_be_forgotten(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    answer = daemon.delete("/containers/web")
    assert answer.status == 409
    assert daemon.get("/containers/web").body["state"] == "up"


def test_networks_are_attached_and_detached_live(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.network("red", subnet="10.11.0.0/24")
    daemon.bring_up("web", web)

    def interfaces() -> dict[str, str]:
        found = web.json("ip", "-j", "-4", "addr")
        return {one["ifname"]: one["addr_info"][0]["local"] for one in found if one["ifname"] != "lo"}

    daemon.join("web", "blue", "red")
    assert interfaces() == {"eth0": "10.10.0.2", "eth1": "10.11.0.2"}
    [route] = web.json("ip", "-j", "route", "show", "default")
    assert route["dev"] == "eth0"
    daemon.join("web", "red")
    eventually(lambda: interfaces() == {"eth1": "10.11.0.2"}, "eth0 is gone")
    [route] = web.json("ip", "-j", "route", "show", "default")
    assert (route["dev"], route["gateway"]) == ("eth1", "10.11.0.1")
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_a_live_attachment_cannot_get_another_address(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    for change in ({"ip": "10.10.0.9"}, {"mac": "0a:00:00:00:00:09"}, {"ifname": "net9"}):
        answer = daemon.put("/containers/web/config", {"attach_to": [{"network": "blue"} | change]})
        assert answer.status == 409, answer
        assert list(answer.error["fields"]) == [f"attach_to[0].{next(iter(change))}"]
    assert daemon.get("/containers/web").body["config"] == {"attach_to": [{"network": "blue"}], "labels": {}}


def test_a_live_attach_that_fails_changes_nothing(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.network("red", subnet="10.11.0.0/24")
    daemon.bring_up("web", web)
    web.run("ip", "link", "add", "eth1", "type", "bridge")
    before = daemon.get("/containers/web").body
    answer = daemon.put("/containers/web/config", {"attach_to": ["blue", "red"]})
    assert answer.status == 502
    after = daemon.get("/containers/web").body
    assert after["config"] == before["config"]
    assert [one["network"] for one in after["attachments"]] == ["blue"]
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_asked_for_address_mac_and_name_are_given(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(subnet6="fd00:10::/64")
    join = {"network": "blue", "ip": "10.10.0.77", "ip6": "fd00:10::77", "mac": "0a:00:00:00:00:77", "ifname": "net0"}
    [attachment] = daemon.bring_up("web", web, join)["attachments"]
    assert attachment["interface"] == "net0"
    assert set(attachment["addresses"]) == {"10.10.0.77/24", "fd00:10::77/64"}
    [link] = [one for one in web.json("ip", "-j", "addr") if one["ifname"] == "net0"]
    assert link["address"] == "0a:00:00:00:00:77"
    assert {one["local"] for one in link["addr_info"] if one["scope"] == "global"} == {"10.10.0.77", "fd00:10::77"}


def test_the_host_sysctls_are_put_back_when_the_last_network_goes(world: World) -> None:
    daemon = world.daemon
    before = world.host.sysctl("net/ipv4/conf/up0/forwarding")
    daemon.network()
    assert world.host.sysctl("net/ipv4/conf/up0/forwarding") == "1"
    assert daemon.delete("/networks/blue").status == 204
    assert world.host.sysctl("net/ipv4/conf/up0/forwarding") == before
    with sqlite3.connect(daemon.database) as db:
        assert db.execute("SELECT count(*) FROM sysctls").fetchone() == (0,)
