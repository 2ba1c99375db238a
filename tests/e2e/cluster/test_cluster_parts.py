"""Whether a part that moves to another host is reached there at once, and never belongs to two."""

from __future__ import annotations

import pytest
from clustered import (
    define,
    etcd_keys,
    from_labels,
    holders,
    mentions,
    network_of,
    part_of,
    reachable,
    reaches,
    told,
    wait_for_members,
)

from lab.cluster import Lab
from lab.daemon import eventually
from lab.hosts import OVERLAY, Host

EVERYWHERE = {"routes": 1, "neighbours": 1, "fdb": 1, "rules": 3}
OPEN = from_labels(app="web")


@pytest.fixture(scope="module")
def hosts() -> int:
    return 4


def join(host: Host) -> str:
    """Have it on the network; returns its part."""
    [answer] = define([host])
    assert answer.status == 201, answer
    return part_of(host)


def leave(lab: Lab, host: Host) -> None:
    """Take it off the network; returns when etcd knows, so that its part is free."""
    answer = host.daemon.delete(f"/networks/{OVERLAY}")
    assert answer.status == 204, answer
    eventually(lambda: f"leases/{OVERLAY}/{host.name}" not in etcd_keys(lab), f"{host.name} has given back its part")


def die(lab: Lab, host: Host) -> None:
    """Without a word: the daemon, and the wire."""
    lab.cut(host)
    lab.kill(host)


def test_an_address_that_is_used_on_another_host_is_reached_at_once(lab: Lab, three: list[Host], fourth: Host) -> None:
    near, far = (host.container(f"c{host.name}", {"app": "web"}) for host in three[:2])
    part = part_of(three[2])
    old = three[2].container("old")
    old.policy(**OPEN)
    for one in (near, far):
        reachable(one, old)
    address = dict(old.addresses)
    old.remove()
    leave(lab, three[2])

    assert join(fourth) == part
    wait_for_members([*three[:2], fourth])
    new = fourth.container("new")
    new.policy(**OPEN)
    assert new.addresses == address
    assert [reaches(one, new) for one in (near, far)] == [True, True]


def test_a_part_moves_however_often(lab: Lab, three: list[Host], fourth: Host) -> None:
    """In most rounds the others hear of the new host before they have heard that the old one left, or with it."""
    near = three[0].container("near", {"app": "web"})
    hosts = [three[2], fourth]
    part = part_of(three[2])
    for _ in range(8):
        old, new = hosts
        leave(lab, old)
        assert join(new) == part
        wait_for_members([*three[:2], new])
        made = new.container("made")
        made.policy(**OPEN)
        assert reaches(near, made)
        assert mentions(three[1], part) == EVERYWHERE
        made.remove()
        hosts.reverse()


def test_a_part_that_moved_while_a_host_heard_nothing_is_reached_where_it_is_now(
    lab: Lab, three: list[Host], fourth: Host
) -> None:
    """It hears of both at once: that the old host left, and that the new one came."""
    deaf = three[1].container("deaf", {"app": "web"})
    part = part_of(three[2])
    lab.cut_etcd(three[1])
    eventually(lambda: told(three[1])["state"] == "away", "it hears nothing")
    leave(lab, three[2])
    assert join(fourth) == part
    made = fourth.container("made")
    made.policy(**OPEN)
    lab.heal()
    wait_for_members([*three[:2], fourth])
    assert mentions(three[1], part) == EVERYWHERE
    assert reachable(deaf, made)


def test_only_a_dead_host_can_be_forgotten(lab: Lab, three: list[Host]) -> None:
    def forget(name: str) -> int:
        return three[0].daemon.delete(f"/cluster/hosts/{name}").status

    dead = three[2]
    assert forget("nobody") == 404
    assert forget(dead.name) == 409
    assert forget(three[0].name) == 409  # the one that is asked
    die(lab, dead)
    assert forget(dead.name) == 409  # nobody knows yet
    wait_for_members(three[:2])
    assert forget(dead.name) == 204
    assert forget(dead.name) == 404
    assert {key for key in etcd_keys(lab) if dead.name in key} == set()


def test_a_forgotten_host_that_comes_back_freezes_and_shares_no_part(lab: Lab, three: list[Host], fourth: Host) -> None:
    dead, part = three[2], part_of(three[2])
    near = three[0].container("near", {"app": "web"})
    runs, beside = dead.container("runs"), dead.container("beside")
    for one in (runs, beside):
        one.policy(policies=[{"direction": "ingress", "peer": {"network": OVERLAY}}])
    die(lab, dead)
    wait_for_members(three[:2])
    assert three[0].daemon.delete(f"/cluster/hosts/{dead.name}").status == 204
    assert join(fourth) == part
    made = fourth.container("made")
    made.policy(**OPEN)
    lab.heal(dead)
    lab.start(dead)

    eventually(lambda: network_of(dead).get("frozen"), "it is frozen")
    eventually(lambda: told(dead)["state"] == "connected", "it has etcd")
    status = dead.daemon.get("/status")
    assert status.status == 503
    assert fourth.name in status.body["cluster"]["problem"]
    assert "network is frozen" in dead.daemon.log
    dead.daemon.put("/containers/late/config", {"attach_to": [OVERLAY]})
    late = dead.daemon.up("late", lab.outside)
    assert late.status == 503
    assert "frozen" in late.error["message"]
    assert reaches(runs, beside)
    assert runs.addresses[4] == made.addresses[4]
    assert reaches(near, made)
    assert holders(lab)[f"subnet:{part}"] == fourth.name
    assert network_of(three[0])["hosts"] == ["h1", "h2", "h4"]

    for one in (runs, beside):
        one.down()
        dead.daemon.delete(f"/containers/{one.name}")
    dead.daemon.delete("/containers/late")
    leave(lab, dead)
    assert join(dead) != part
    wait_for_members(lab.hosts)
    eventually(lambda: dead.daemon.get("/status").status == 200, "it is well")
    assert holders(lab)[f"subnet:{part}"] == fourth.name
