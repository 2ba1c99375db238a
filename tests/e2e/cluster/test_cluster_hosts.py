"""Whether hosts that come, go, die and come back are known to the others in time, and leave nothing stale."""

from __future__ import annotations

import contextlib
import errno
import os
import time

import pytest
from clustered import (
    all_of,
    define,
    etcd_keys,
    from_labels,
    kernels,
    mentions,
    part_of,
    reachable,
    reaches,
    told,
    unbroken,
    wait_for_members,
    wait_until_connected,
)

from lab.cluster import Lab
from lab.daemon import eventually
from lab.hosts import OVERLAY, Host
from lab.talk import ask

TTL_S = 5  # that of the lab
SOON_S = 1.0  # in which a host that joins or leaves is known everywhere
LATE_S = TTL_S + 2.5  # in which one that died is: etcd looks at its leases twice a second
EVERYWHERE = {"routes": 1, "neighbours": 1, "fdb": 1, "rules": 3}
NOWHERE = dict.fromkeys(EVERYWHERE, 0)
UNREACHABLE = [os.strerror(errno.EHOSTUNREACH), os.strerror(errno.ENETUNREACH)]  # by IPv4, by IPv6
OPEN = from_labels(app="web")


@pytest.fixture(scope="module")
def hosts() -> int:
    return 4


def become(hosts: list[Host], wanted: dict[str, dict[str, list[str]]]) -> None:
    """Return when the kernels are so again."""

    def different() -> list[str]:
        now = kernels(hosts)
        return [
            f"{'+' if line in now[name][table] else '-'} {name} {table}: {line}"
            for name, tables in wanted.items()
            for table, lines in tables.items()
            for line in {*lines} ^ {*now[name][table]}
        ]

    with contextlib.suppress(AssertionError):
        eventually(lambda: not different(), "", 10)
    assert different() == []


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


def test_a_host_that_joins_is_in_every_table_of_the_others_within_a_second(three: list[Host], fourth: Host) -> None:
    part = join(fourth)
    joined = time.monotonic()
    all_of(three, lambda host: mentions(host, part) == EVERYWHERE, f"has {part}")
    took = time.monotonic() - joined

    assert took < SOON_S
    assert [mentions(fourth, part_of(host)) for host in three] == [EVERYWHERE] * 3


def test_a_host_that_leaves_is_in_no_table_within_a_second(lab: Lab, three: list[Host], fourth: Host) -> None:
    before, bare, keys = kernels(three), kernels([fourth]), etcd_keys(lab)
    part = join(fourth)
    wait_for_members(lab.hosts)

    leave(lab, fourth)
    left = time.monotonic()
    all_of(three, lambda host: mentions(host, part) == NOWHERE, f"has forgotten {part}")
    assert time.monotonic() - left < SOON_S
    become(three, before)
    assert kernels([fourth]) == bare
    assert etcd_keys(lab) == keys


def test_a_host_that_leaves_keeps_no_tables_of_the_others(lab: Lab, three: list[Host], fourth: Host) -> None:
    parts = [part_of(host) for host in three]
    join(fourth)
    leave(lab, fourth)
    assert [mentions(fourth, part) for part in parts] == [NOWHERE] * 3


def test_a_dead_host_is_dropped_within_the_lease_and_keeps_its_part(lab: Lab, three: list[Host]) -> None:
    dead, part = three[2], part_of(three[2])
    before, keys = kernels(three), etcd_keys(lab)

    die(lab, dead)
    died = time.monotonic()
    all_of(three[:2], lambda host: mentions(host, part) == NOWHERE, f"has dropped {part}")
    assert time.monotonic() - died < LATE_S
    assert keys - etcd_keys(lab) == {f"hosts/{dead.name}"}

    lab.heal(dead)
    lab.start(dead)
    become(three, before)
    assert part_of(dead) == part


def test_nothing_of_a_dead_hosts_part_is_given_to_another(lab: Lab, three: list[Host], fourth: Host) -> None:
    part = part_of(three[2])
    die(lab, three[2])
    wait_for_members(three[:2])
    assert join(fourth) != part


def test_who_speaks_to_a_dead_host_is_told_at_once(lab: Lab, three: list[Host]) -> None:
    one, other = (host.container(f"c{host.name}", {"app": "web"}) for host in (three[0], three[2]))
    die(lab, three[2])
    wait_for_members(three[:2])
    assert [ask(one.netns, address, 80) for address in other.addresses.values()] == UNREACHABLE


def test_a_host_that_is_only_cut_from_etcd_comes_back_with_all_it_had(lab: Lab, three: list[Host]) -> None:
    alone = three[2]
    one, other = alone.container("one", {"app": "web"}), alone.container("other", {"app": "web"})
    far = three[0].container("far", {"app": "web"})
    other.policy(**OPEN)
    reachable(far, other)
    used = {f"uses/{OVERLAY}/1/{host.name}" for host in (three[0], alone)}
    eventually(lambda: used <= etcd_keys(lab), "etcd knows who uses the identity")
    wait_until_connected(lab, *three)
    before, keys = kernels(three), etcd_keys(lab)

    with unbroken((one, other)):
        lab.cut_etcd(alone)
        eventually(lambda: mentions(three[0], part_of(alone)) == NOWHERE, "the others take it for dead", LATE_S + 1)
        eventually(lambda: told(alone)["state"] == "away", "it knows")
        assert reaches(one, other)
        lab.heal(alone)
        reachable(far, other)
    wait_until_connected(lab, *three)
    become(three, before)
    eventually(lambda: etcd_keys(lab) == keys, "also in etcd")
    assert "this host was taken for dead" in alone.daemon.log


def test_a_host_that_reboots_has_the_same_part_and_is_reached_again(lab: Lab, three: list[Host]) -> None:
    host, part = three[2], part_of(three[2])
    far = three[0].container("far", {"app": "web"})
    first = host.container("db")
    first.policy(**OPEN)
    reachable(far, first)
    before = kernels(three[:2])

    lab.reboot(host)
    again = host.container("again")
    again.policy(**OPEN)

    assert part_of(host) == part
    reachable(far, again)
    become(three[:2], before)
    assert [mentions(host, part_of(one)) for one in three[:2]] == [EVERYWHERE] * 2


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nobody_notices_that_a_daemon_restarts(lab: Lab, three: list[Host], how: str) -> None:
    host = three[2]
    one, other = three[0].container("one", {"app": "web"}), host.container("other", {"app": "web"})
    for each in (one, other):
        each.policy(**OPEN)
    reachable(one, other)
    before = kernels(three)
    said = {one.name: len(one.daemon.log) for one in three}

    with unbroken((one, other), (other, one)) as streams:
        getattr(lab, how)(host)
        streams[0].goes_on(0.1)
        lab.start(host)
        wait_until_connected(lab, host)
        streams[0].goes_on(TTL_S + 1.0)  # past the end of the lease it had before
    become(three, before)
    assert [name for name, start in said.items() if "host left" in lab.host(name).daemon.log[start:]] == []


def test_a_host_that_rp_filter_would_not_let_be_heard_is_named(lab: Lab) -> None:
    one, far = lab.hosts[0], lab.hosts[2]
    one.netns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    one.netns.run("ip", "link", "add", "elsewhere", "up", "type", "bridge")
    one.netns.run("ip", "route", "add", str(far.address), "dev", "elsewhere")
    try:
        assert {answer.status for answer in define(lab.hosts[:3])} == {201}
        eventually(lambda: f"drops packets from {far.address}" in one.daemon.log, "it is said")
        assert f"drops packets from {lab.hosts[1].address}" not in one.daemon.log
    finally:
        one.netns.run("ip", "link", "del", "elsewhere")
        one.netns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
