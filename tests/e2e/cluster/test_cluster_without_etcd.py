"""Whether hosts go on without etcd: one member away is not noticed, and without any all that is known here works."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from clustered import (
    all_of,
    define,
    from_labels,
    kernels,
    network_of,
    reachable,
    reaches,
    told,
    unbroken,
    wait_until_connected,
)

from lab.cluster import Lab
from lab.daemon import Answer
from lab.errors import LabError
from lab.hosts import OVERLAY, Container, Host

WITHIN_S = 10.0  # in which every call is answered, whatever etcd does
FROM_WEB = from_labels(app="web")


@pytest.fixture
def web(overlay: Lab) -> Container:
    return overlay.hosts[0].container("web", {"app": "web"})


@pytest.fixture
def db(overlay: Lab, web: Container) -> Container:
    """On another host, and open to `web`."""
    made = overlay.hosts[2].container("db", {"app": "db"})
    made.policy(**FROM_WEB)
    reachable(web, made)
    wait_until_connected(overlay)
    return made


@pytest.fixture
def away(overlay: Lab, web: Container, db: Container) -> Lab:
    """All of etcd is dead, and the hosts know."""
    overlay.etcd.kill()
    wait_until_away(overlay)
    return overlay


def wait_until_away(lab: Lab) -> None:
    all_of(lab.hosts, lambda host: told(host)["state"] == "away", "misses etcd", 30)


def put_policy(host: Host, handle: str, **policy: object) -> Answer:
    answer = host.daemon.policy(handle, **{OVERLAY: policy})
    assert answer.status == 200, answer
    return answer


def new_label_set(host: Host, name: str) -> None:
    """A container of a label set of its own comes up there."""
    host.container(name, {"app": name}).remove()


# One member


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_nobody_notices_that_one_member_died(overlay: Lab, web: Container, db: Container, which: str) -> None:
    leader = overlay.etcd.leader()
    said = {host.name: len(host.daemon.log) for host in overlay.hosts}
    with unbroken((web, db)):
        overlay.etcd.kill(leader if which == "leader" else (leader + 1) % 3)
        for number in range(8):
            assert put_policy(db.host, "db", **FROM_WEB, log_denied=bool(number % 2)).body["cluster"]["confirmed"]
            for host in overlay.hosts:
                new_label_set(host, f"{host.name}-{number}")
        assert define(overlay.hosts, "second", vni=200, subnet="10.2.0.0/16", subnet6="fd00:2::/64")[0].status == 201
        wait_until_connected(overlay)
    assert [name for name, start in said.items() if "host left" in overlay.host(name).daemon.log[start:]] == []


# None


def test_traffic_goes_on_without_etcd_longer_than_any_lease(overlay: Lab, web: Container, db: Container) -> None:
    before = kernels(overlay.hosts)
    with unbroken((web, db)) as [stream]:
        overlay.etcd.kill()
        wait_until_away(overlay)
        stream.goes_on(4.0)
        assert kernels(overlay.hosts) == before
        overlay.etcd.start()
        wait_until_connected(overlay)
    assert kernels(overlay.hosts) == before


def test_status_says_that_etcd_is_away(away: Lab) -> None:
    for host in away.hosts:
        answer = host.daemon.get("/status")
        assert (answer.status, answer.body["status"]) == (503, "degraded")
        assert "etcd does not answer" in answer.body["cluster"]["problem"]
        assert network_of(host)["hosts"] == ["h1", "h2", "h3"]


def test_containers_of_known_label_sets_come_and_go_without_etcd(away: Lab, web: Container, db: Container) -> None:
    for host in away.hosts:  # web and db are known everywhere
        made = host.container(f"web-{host.name}", {"app": "web"})
        assert reaches(made, db)
        made.down()
    web.down()
    assert web.host.daemon.get("/containers/web").body["state"] == "down"


def test_a_new_label_set_is_503_without_etcd_and_leaves_nothing(away: Lab, web: Container) -> None:
    host = web.host
    before = kernels([host])
    config = {"attach_to": [OVERLAY], "labels": {"app": "new"}}
    assert host.daemon.put("/containers/late/config", config).status == 201
    answer = host.daemon.up("late", away.outside)

    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert "identity" in answer.error["message"] or "cluster cannot be asked" in answer.error["message"]
    assert kernels([host]) == before
    assert host.daemon.get("/containers/late").body["state"] == "down"
    live = host.daemon.put("/containers/web/config", config)
    assert live.status == 503
    assert host.daemon.get("/containers/web").body["config"]["labels"] == {"app": "web"}


def test_what_was_refused_without_etcd_is_done_when_it_is_asked_again(away: Lab, web: Container) -> None:
    with pytest.raises(LabError, match="503"):
        web.host.container("late", {"app": "new"})
    away.etcd.start()
    wait_until_connected(away)
    new_label_set(web.host, "late")


def test_networks_are_made_with_etcd_only(away: Lab) -> None:
    host = away.hosts[0]
    [new] = define([host], "second", vni=200, subnet="10.2.0.0/16", subnet6="fd00:2::/64")
    assert (new.status, new.error["code"]) == (503, "unavailable")
    assert host.daemon.get("/networks/second").status == 404
    assert [answer.status for answer in define(away.hosts)] == [200] * 3  # which they are on
    assert host.daemon.delete("/cluster/hosts/h3").status == 503


def test_policies_change_without_etcd_and_say_that_nobody_else_knows(away: Lab, web: Container, db: Container) -> None:
    assert reaches(web, db)
    closed = put_policy(db.host, "db", policies=[])
    assert closed.body["cluster"]["confirmed"] is False
    assert not reaches(web, db)
    opened = put_policy(db.host, "db", **FROM_WEB)
    assert opened.body["cluster"]["confirmed"] is False
    assert reaches(web, db)
    default = db.host.daemon.put(f"/networks/{OVERLAY}/default_policy", FROM_WEB)
    assert (default.status, default.body["cluster"]["confirmed"]) == (200, False)


def test_a_killed_daemon_restores_from_its_own_store_without_etcd(away: Lab, web: Container, db: Container) -> None:
    put_policy(db.host, "db", **FROM_WEB, log_denied=True)
    before = kernels(away.hosts)
    with unbroken((web, db)):
        for host in away.hosts:
            away.kill(host)
            host.start()
    assert kernels(away.hosts) == before
    assert [network_of(host)["hosts"] for host in away.hosts] == [["h1", "h2", "h3"]] * 3
    assert [told(host)["state"] for host in away.hosts] == ["away"] * 3
    assert db.host.daemon.get("/containers/db/policy").body["networks"][OVERLAY]["policy"]["log_denied"] is True
    made = web.host.container("more", {"app": "web"})
    assert reaches(made, db)


def test_a_rebooted_host_takes_part_without_etcd(away: Lab, web: Container, db: Container) -> None:
    away.reboot(db.host)
    again = db.host.container("again", {"app": "db"})
    put_policy(db.host, "again", **FROM_WEB)
    assert reachable(web, again)


# It answers nothing


def test_calls_are_answered_while_etcd_stands_still(overlay: Lab, web: Container, db: Container) -> None:
    slow: list[str] = []

    def timed(what: str, call: Callable[[], object]) -> None:
        began = time.monotonic()
        call()
        took = time.monotonic() - began
        if took > WITHIN_S:
            slow.append(f"{what}: {took:.1f} s")

    def use(host: Host, turn: int) -> None:
        name = f"w{turn}{host.name}"
        timed(f"status {turn}", lambda: host.daemon.get("/status"))
        timed(f"policy {turn}", lambda: put_policy(host, "db", log_denied=bool(turn % 2), **FROM_WEB))
        timed(f"up {turn}", lambda: host.container(name, {"app": "web"}))
        timed(
            f"new network {turn}", lambda: define([host], "second", vni=2, subnet="10.2.0.0/16", subnet6="fd00:2::/64")
        )
        timed(f"down {turn}", lambda: host.containers[name].down())

    with unbroken((web, db)):
        overlay.etcd.freeze()
        for turn in range(3):  # before it is noticed, and after
            for host in overlay.hosts:
                use(host, turn)
        overlay.etcd.thaw()
    assert slow == []
    wait_until_connected(overlay)


def test_one_member_that_stands_still_is_passed_over(overlay: Lab, web: Container, db: Container) -> None:
    leader = overlay.etcd.leader()
    with unbroken((web, db)):
        overlay.etcd.freeze(leader)
        all_of(overlay.hosts, new_label_set_works, "gets a number", WITHIN_S)
        overlay.etcd.thaw(leader)
    wait_until_connected(overlay)


def new_label_set_works(host: Host) -> bool:
    try:
        new_label_set(host, f"{host.name}-frozen")
    except LabError:
        return False
    return True
