"""What the running daemon notices and mends by itself."""

from __future__ import annotations

from world import World, ask, eventually, serving


def test_an_address_removed_from_the_bridge_is_put_back(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    [bridge] = [name for name in world.remains()["links"] if name.startswith("cb")]
    world.host.run("ip", "addr", "flush", "dev", bridge)
    with serving(world.outside, 7000):
        eventually(lambda: ask(web, "192.0.2.2", 7000, seconds=0.5).startswith("hello"), "the gateway answers again")
    assert "not as wanted" in daemon.log


def test_what_somebody_changed_inside_a_container_is_mended(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    web.run("ip", "route", "del", "default")
    eventually(lambda: web.json("ip", "-j", "route", "show", "default"), "the default route is back")


def test_a_bridge_that_was_deleted_comes_back_with_its_containers(world: World) -> None:
    daemon, web, peer = world.daemon, world.container("web"), world.container("peer")
    daemon.network()
    daemon.bring_up("web", web)
    daemon.bring_up("peer", peer)
    [bridge] = [name for name in world.remains()["links"] if name.startswith("cb")]
    world.host.run("ip", "link", "del", bridge)
    with serving(peer, 7000):
        eventually(lambda: ask(web, "10.10.0.3", 7000, seconds=0.5).startswith("hello"), "neighbours talk again")


def test_an_interface_that_was_deleted_in_the_container_comes_back(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    web.run("ip", "link", "del", "eth0")
    with serving(world.outside, 7000):
        eventually(lambda: ask(web, "192.0.2.2", 7000, seconds=0.5).startswith("hello"), "the container talks again")
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted again")


def test_rules_that_cannot_be_put_back_are_told_until_they_are(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(deny_networks=["192.0.2.0/24"])
    daemon.bring_up("web", web)
    thief = world.host.popen(["nft", "-i"], stdin=-1, stdout=-1, text=True, bufsize=1)
    assert thief.stdin is not None
    # nobody but that process may change a table it owns, and it goes with the process
    thief.stdin.write("delete table inet conetd; add table inet conetd { flags owner; }\n")
    status = eventually(lambda: (told := daemon.get("/status")).status == 503 and told.body, "the status says so")
    assert status["status"] == "degraded"
    assert "Operation not permitted" in status["filter"]["problem"]
    thief.stdin.close()
    thief.wait(10)
    eventually(lambda: daemon.get("/status").status == 200, "all is as wanted again")
    assert daemon.get("/status").body["filter"] == {"backend": "nftables"}
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000) == "refused"


def test_a_sound_host_is_left_alone(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(subnet6="fd00:10::/64")
    daemon.bring_up("web", web)
    before = world.remains()
    eventually(lambda: daemon.get("/status").body["rounds"] >= 4, "four rounds were made")
    assert world.remains() == before
    assert "WARNING" not in daemon.log
