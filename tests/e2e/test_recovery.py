"""What a kill, a restart and a reboot leave, and what the next start makes of it."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from world import World, ask, eventually, serving


def test_a_stop_leaves_all_networking_in_place_and_a_start_takes_it_over_untouched(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(deny_networks=["192.0.2.0/24"])
    told = daemon.bring_up("web", web)
    daemon.policy("web", blue={"net_out": [{"ports": [{"start": 7000, "end": 7000}], "protocol": "tcp"}]})
    before = world.remains()
    with serving(world.outside, 7000), serving(world.outside, 7001):
        assert daemon.stop() == 0
        assert world.remains() == before
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        assert ask(web, "192.0.2.2", 7001) == "refused"
        daemon.start()
        assert "filter repaired" not in daemon.log
        assert world.remains() == before
        assert daemon.up("web", web).body["attachments"][0]["addresses"] == told["attachments"][0]["addresses"]
        assert ask(web, "192.0.2.2", 7000).startswith("hello")
        assert ask(web, "192.0.2.2", 7001) == "refused"


def test_after_a_kill_in_the_middle_of_fifty_ups_repeated_ups_succeed_and_downs_leave_nothing(world: World) -> None:
    daemon = world.daemon
    daemon.network()
    empty = world.remains()
    handles = {f"c{number}": world.container(f"c{number}") for number in range(50)}
    for handle in handles:
        daemon.join(handle, "blue")
        daemon.policy(handle, blue={"net_in": [{"host_port": 0, "container_port": 80}]})
    answered = threading.Semaphore(0)

    def up(handle: str) -> dict[str, Any] | None:
        try:
            answer = daemon.up(handle, handles[handle])
        except (OSError, ValueError):
            return None
        answered.release()
        return answer.body if answer.status == 200 else None

    with ThreadPoolExecutor(50) as pool:
        first = {handle: pool.submit(up, handle) for handle in handles}
        for _ in range(5):
            answered.acquire(timeout=30)
        daemon.kill()
        told = {handle: future.result() for handle, future in first.items()}
    with sqlite3.connect(daemon.database) as db:
        leases = dict(db.execute("SELECT handle, lease FROM attachments"))
    daemon.start()
    with ThreadPoolExecutor(32) as pool:
        again = dict(zip(handles, pool.map(lambda handle: daemon.up(handle, handles[handle]), handles), strict=True))
    assert {answer.status for answer in again.values()} == {200}, [a for a in again.values() if a.status != 200]
    with sqlite3.connect(daemon.database) as db:
        now = dict(db.execute("SELECT handle, lease FROM attachments"))
    assert {handle: now[handle] for handle in leases} == leases
    for handle, body in told.items():
        if body is not None:
            assert again[handle].body["attachments"][0]["addresses"] == body["attachments"][0]["addresses"]
            assert again[handle].body["mapped_ports"] == body["mapped_ports"]
    addresses = [answer.body["attachments"][0]["addresses"][0] for answer in again.values()]
    assert len(set(addresses)) == 50
    with ThreadPoolExecutor(32) as pool:
        downs = list(pool.map(daemon.down, handles))
    assert {answer.status for answer in downs} == {200}
    for handle in handles:
        assert daemon.delete(f"/containers/{handle}").status == 204
    eventually(lambda: world.remains() == empty, "nothing is left")


def test_a_container_that_ended_while_the_daemon_was_away_is_taken_down_at_start(world: World) -> None:
    daemon, web, stays = world.daemon, world.container("web"), world.container("stays")
    daemon.network()
    daemon.bring_up("stays", stays)
    before = world.remains()
    daemon.bring_up("web", web)
    daemon.kill()
    web.close()
    daemon.start()
    assert daemon.get("/containers/web").body["state"] == "down"
    daemon.delete("/containers/web")
    eventually(lambda: world.remains() == before, "only the other is left")


def test_rules_flushed_while_the_daemon_was_away_are_back_at_start(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(deny_networks=["192.0.2.0/24"])
    daemon.bring_up("web", web)
    before = world.remains()
    daemon.stop()
    world.host.run("nft", "flush", "ruleset")
    daemon.start()
    assert world.remains() == before
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000) == "refused"


def test_a_link_deleted_while_the_daemon_was_away_is_made_anew_at_start(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    [veth] = [name for name in world.remains()["links"] if name.startswith("cv")]
    daemon.stop()
    world.host.run("ip", "link", "del", veth)
    daemon.start()
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_rows_of_an_earlier_boot_are_cleared_and_their_addresses_given_out_again(world: World) -> None:
    daemon, web, other = world.daemon, world.container("web"), world.container("other")
    daemon.network()
    first = daemon.bring_up("web", web)
    daemon.stop()
    with sqlite3.connect(daemon.database) as db:
        db.execute("UPDATE containers SET boot_id = 'an earlier boot'")
    for name in world.remains()["links"]:
        if name not in ("lo", "up0"):
            world.host.run("ip", "link", "del", name)
    world.host.run("nft", "flush", "ruleset")
    daemon.start()
    assert daemon.get("/containers/web").body["state"] == "down"
    eventually(lambda: not world.remains()["rows"]["claims"], "the address is free")
    told = daemon.bring_up("other", other)
    assert told["attachments"][0]["addresses"] == first["attachments"][0]["addresses"]


def test_an_up_that_a_crash_cut_off_is_completed_while_its_process_lives(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    daemon.kill()
    [veth] = [name for name in world.remains()["links"] if name.startswith("cv")]
    world.host.run("ip", "link", "del", veth)
    with sqlite3.connect(daemon.database) as db:
        db.execute("UPDATE attachments SET applied_rev = 0, answer = '{}'")
    daemon.start()
    [attachment] = daemon.get("/containers/web").body["attachments"]
    assert attachment["as_wanted"] is True
    assert attachment["addresses"] == ["10.10.0.2/24"]
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000).startswith("hello")


def test_an_up_that_a_crash_cut_off_is_undone_when_its_process_is_gone(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    empty = world.remains()
    daemon.bring_up("web", web)
    daemon.kill()
    with sqlite3.connect(daemon.database) as db:
        db.execute("UPDATE attachments SET applied_rev = 0")
    web.close()
    daemon.start()
    daemon.delete("/containers/web")
    eventually(lambda: world.remains() == empty, "nothing is left")


def test_a_link_of_ours_that_belongs_to_nothing_is_removed_at_start_and_a_strangers_stays(world: World) -> None:
    daemon = world.daemon
    daemon.network()
    before = world.remains()
    daemon.stop()
    for name in ("cvorphan", "stranger"):
        world.host.run("ip", "link", "add", name, "type", "bridge")
    world.host.run("ip", "link", "set", "cvorphan", "alias", "conetd:attachment:blue:ghost")
    daemon.start()
    assert world.remains()["links"] == sorted([*before["links"], "stranger"])


def test_published_ports_are_held_again_after_a_restart(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network()
    daemon.bring_up("web", web)
    daemon.policy("web", blue={"net_in": [{"host_port": 8080, "container_port": 80}]})
    daemon.kill()
    daemon.start()
    listing = world.host.run("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").stdout
    assert daemon.get("/containers/web").body["attachments"][0]["mapped_ports"][0]["host_port"] == 8080
    with serving(web, 80):
        assert ask(world.outside, "192.0.2.1", 8080).startswith("hello"), listing
    other = world.container("other")
    daemon.bring_up("other", other)
    answer = daemon.policy("other", blue={"net_in": [{"host_port": 8080}]})
    assert answer.status == 409
    assert '"web"' in answer.error["message"]


def test_the_filter_can_be_changed_with_containers_attached(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.network(deny_networks=["192.0.2.0/24"])
    daemon.bring_up("web", web)
    with serving(world.outside, 7000):
        daemon.stop()
        daemon.settings = 'filter = "iptables"'
        daemon.start()
        assert daemon.get("/status").body["filter"] == {"backend": "iptables"}
        assert "conetd" not in world.host.run("nft", "list", "ruleset").stdout
        assert ask(web, "192.0.2.2", 7000) == "refused"
        daemon.stop()
        daemon.settings = 'filter = "nftables"'
        daemon.start()
        assert "conetd" not in world.host.run("iptables-legacy-save").stdout
        assert ask(web, "192.0.2.2", 7000) == "refused"
