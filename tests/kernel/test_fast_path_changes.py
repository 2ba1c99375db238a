"""What takes connections off the fast path: each change to what is in force, with it and not after it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from pytest_netns import Netns

from conetd.kernel.netlink import NETLINK_NETFILTER, attributes
from conetd.kernel.nft import NftablesBackend, fast_path, wire
from conetd.model import AddressRange, Rule, Verdict
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, TunnelPeer
from tests.kernel import tunnel_lab
from tests.kernel.fast_path_lab import (
    MANY,
    Connection,
    elements,
    forget,
    gauge,
    look,
    on_fast_path,
    raised,
    tables,
    take_up,
    until,
    watching,
)
from tests.kernel.traffic import Frames
from tests.kernel.tunnel_lab import ANYBODY, NETWORK, STRANGER, TunnelLab, of, peer

pytestmark = pytest.mark.parametrize("built_tunnel", [4], indirect=True, ids=["underlay4"])
FAMILIES = pytest.mark.parametrize("family", [4, 6])
DENIED = Rule(Verdict.REJECT, destinations=(AddressRange(STRANGER[4], STRANGER[4]),), origin="deny_networks[0]")
BOTH = {"netdev conetd", "inet conetd_sample"}


def put(*objects: FilterObject) -> Callable[[TunnelLab], None]:
    """A change that puts objects."""
    return lambda tunnel: tunnel.one.backend.apply(put=objects)


def drop(*identities: tuple[str, str]) -> Callable[[TunnelLab], None]:
    """A change that drops objects."""
    return lambda tunnel: tunnel.one.backend.apply(drop=identities)


CHANGES: dict[str, Callable[[TunnelLab], object]] = {
    "the policy of a container changes": put(EndpointPolicy("a", ingress=(of("d"),))),
    "a container may send less": put(EndpointPolicy("a", (DENIED,), ingress=(ANYBODY,))),
    "the policy of another container changes": put(EndpointPolicy("b", ingress=(of("d"),))),
    "a policy is dropped": drop(("EndpointPolicy", "a")),
    "a container is dropped": drop(("Endpoint", "a"), ("EndpointPolicy", "a")),
    "a container comes before its policy is dropped": drop(("Endpoint", "b")),
    "a container has another address": lambda tunnel: tunnel.one.backend.apply(
        put=[replace(tunnel.a.endpoint, addresses=(ip_address("10.1.3.9"),))]
    ),
    "a container has another identity": lambda tunnel: tunnel.one.backend.apply(
        put=[replace(tunnel.a.endpoint, mark=0x0009)]
    ),
    "the network denies more": put(replace(NETWORK, rules=(DENIED,))),
    "the network opens the host": put(replace(NETWORK, host_access=True)),
    "another host is dropped": drop(("TunnelPeer", peer("two").key)),
    "another host moves": put(replace(peer("absent"), underlay=STRANGER[4])),
    "a new container comes with a changed one": put(
        EndpointPolicy("new", ingress=(ANYBODY,)), EndpointPolicy("b", ingress=(of("d"),))
    ),
    "an uplink is opened beside another": lambda tunnel: tunnel.one.backend.set_opened(4, ["up0", "up1"]),
    "everything is told again": lambda tunnel: tunnel.one.backend.sync(tunnel.one.objects),
    "everything is removed": lambda tunnel: tunnel.one.backend.remove_all(),
}
NEW_CONTAINER = Endpoint("new", "net", "handle-new", "cvnew", (ip_address("10.1.3.9"),), "02:00:00:00:03:09", mark=9)
NEW_HOST = TunnelPeer(
    "net-new", "cx0", tunnel_lab.PORT, tunnel_lab.VNI, ip_address("192.0.2.10"), "ee:ee:0a:01:06:00", ()
)
HARMLESS: dict[str, Callable[[TunnelLab], object]] = {
    "a container comes": put(NEW_CONTAINER, EndpointPolicy("new", ingress=(ANYBODY,))),
    "another host comes": put(NEW_HOST),
    "a network comes": put(NetworkFilter("other", (), "br0", rules=(DENIED,))),
    "the same is told again": lambda tunnel: tunnel.one.backend.apply(put=tunnel.one.objects),
    "somebody unknown is dropped": drop(("Endpoint", "nobody"), ("TunnelPeer", "nobody")),
    "the same uplinks are open": lambda tunnel: tunnel.one.backend.set_opened(4, ["up0"]),
    "somebody asks whether all is well": lambda tunnel: tunnel.one.backend.check(tunnel.one.objects),
}


@pytest.fixture
def opened(tunnel: TunnelLab) -> Iterator[TunnelLab]:
    """The overlay, with an uplink that only we have opened."""
    tunnel.one.backend.set_opened(4, ["up0"])
    yield tunnel
    tunnel.one.backend.set_opened(4, [])


@FAMILIES
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_cleared_when(opened: TunnelLab, family: int, change: str) -> None:
    host = opened.one
    with on_fast_path(opened, family) as connection, watching(host) as busy:
        look(host, busy)
        connection.talk(1)
        assert tables(host) == BOTH
        CHANGES[change](opened)
        assert not tables(host)
        assert take_up(host, busy) == 0
        assert not tables(host)


@FAMILIES
@pytest.mark.parametrize("change", HARMLESS)
def test_it_stays_when(opened: TunnelLab, family: int, change: str) -> None:
    host = opened.one
    with on_fast_path(opened, family) as connection, watching(host) as busy, gauge(host) as seen:
        look(host, busy)
        HARMLESS[change](opened)
        assert tables(host) == BOTH
        connection.talk()
        assert seen.segments == 0
        with Connection(opened.d.netns, opened.b.netns, opened.b.addresses[family]) as other:
            other.talk()
            assert take_up(host, busy) == 2


class Transactions:
    """What the kernel tells of each transaction in a namespace: kind, family and table of all that comes and goes."""

    def __init__(self, netns: Netns) -> None:
        self._socket = netns.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 1 << 7 - 1))  # NFNLGRP_NFTABLES

    def told(self) -> list[set[tuple[int, int, str]]]:
        """Those since it was asked last. The kernel tells of a transaction before whoever makes it goes on."""
        found: list[set[tuple[int, int, str]]] = [set()]
        with contextlib.suppress(BlockingIOError):
            while True:
                received, offset = self._socket.recv(1 << 20, socket.MSG_DONTWAIT), 0
                while offset < len(received):
                    size, kind = struct.unpack_from("=IH", received, offset)
                    payload = received[offset + 16 : offset + size]
                    if kind & 0xFF == wire.NEWGEN:
                        found.append(set())
                    else:
                        names = (bytes(value) for number, value in attributes(payload, 4) if number == 1)
                        found[-1].add((kind & 0xFF, payload[0], next(names).rstrip(b"\0").decode()))
                    offset += size + 3 & ~3
        return found[:-1]

    def __enter__(self) -> Transactions:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_cleared_in_one_transaction_with_what_changes(opened: TunnelLab, change: str) -> None:
    host = opened.one
    with on_fast_path(opened, 4), watching(host) as busy:
        look(host, busy)
        with Transactions(host.netns) as transactions:
            CHANGES[change](opened)
            told = transactions.told()
    clearing = {(wire.DELTABLE, wire.NETDEV, "conetd"), (wire.DELTABLE, wire.INET, "conetd_sample")}
    in_force = {(kind, wire.INET, "conetd") for kind in (wire.NEWSETELEM, wire.DELSETELEM, wire.DELTABLE)}
    assert [clearing <= one for one in told].count(True) == 1
    assert clearing <= told[-1]
    assert not any(in_force & one for one in told[:-1])
    assert in_force & told[-1] or change == "everything is told again"


@FAMILIES
def test_once_it_is_cleared_the_next_segment_is_judged(tunnel: TunnelLab, family: int) -> None:
    with on_fast_path(tunnel, family) as connection, gauge(tunnel.one) as seen:
        tunnel.policy(tunnel.b, ingress=())
        connection.talk()
        assert seen.segments >= 2 * MANY
        assert raised(tunnel.one, connection) == 2
        before = seen.segments
        connection.talk()
        assert seen.segments == before


@FAMILIES
def test_what_is_forbidden_now_carries_nothing_more(tunnel: TunnelLab, family: int) -> None:
    with (
        on_fast_path(tunnel, family, tunnel.one, tunnel.two) as connection,
        Frames(tunnel.a.netns) as to_a,
        Frames(tunnel.c.netns) as to_c,
    ):
        ways = ((b"from c", connection.near, to_a), (b"from a", connection.far, to_c))
        for word, sender, frames in ways:
            sender.sendall(word + b" while it may be")
            assert frames.arrives(word + b" while it may be")
        tunnel.policy(tunnel.a, ingress=[of("d")])
        assert forget(tunnel.one, tunnel.a) == 1
        for word, sender, frames in ways:
            sender.sendall(word + b" when it may not")
            assert not frames.arrives(word + b" when it may not")


@FAMILIES
def test_a_container_that_is_gone_is_not_reached_by_what_it_had_open(tunnel: TunnelLab, family: int) -> None:
    with on_fast_path(tunnel, family) as connection, Frames(tunnel.a.netns) as to_a, Frames(tunnel.c.netns) as to_c:
        tunnel.one.backend.apply(drop=[("Endpoint", "a"), ("EndpointPolicy", "a")])
        for word, sender, frames in ((b"from c", connection.near, to_a), (b"from a", connection.far, to_c)):
            sender.sendall(word + b" after its end")
            assert not frames.arrives(word + b" after its end")


@FAMILIES
def test_what_was_seen_before_a_change_is_not_taken_up_after_it(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one
    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection,
        watching(host) as busy,
        watching(host) as other,
    ):
        look(host, busy)
        connection.talk()
        tunnel.policy(tunnel.b, ingress=[of("d")])
        look(host, other)
        connection.talk()
        assert take_up(host, busy) == 0, "it has begun to look before the change"
        assert not tables(host)


@FAMILIES
def test_what_was_seen_before_it_was_cleared_is_not_taken_up_after_it(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one
    with on_fast_path(tunnel, family) as connection, watching(host) as busy:
        look(host, busy)
        connection.talk()
        host.backend.fast_path.clear()
        assert not tables(host)
        assert take_up(host, busy) == 0
        assert raised(host, connection) == 2


@FAMILIES
@pytest.mark.parametrize("change", ["put", "told", "removed"])
def test_nothing_fails_when_somebody_has_removed_it(tunnel: TunnelLab, family: int, change: str) -> None:
    host = tunnel.one
    with on_fast_path(tunnel, family) as connection:
        host.netns.run("nft", "delete table netdev conetd")
        connection.talk()
        if change == "put":
            wanted = tunnel.policy(tunnel.b, ingress=[of("d")])
            assert host.backend.held("EndpointPolicy", "b") == wanted
            assert not host.backend.check([wanted])
        elif change == "told":
            assert not host.backend.sync(host.objects)
        else:
            host.backend.remove_all()
            assert not host.netns.json("nft", "-j", "list", "tables")["nftables"][1:]
            host.backend.sync(host.objects)
        connection.talk()
        assert raised(host, connection) == 2


@FAMILIES
def test_somebodys_flush_of_all_rules_is_noticed_and_mended(tunnel: TunnelLab, family: int) -> None:
    host = tunnel.one
    with on_fast_path(tunnel, family) as connection, watching(host) as busy:
        look(host, busy)
        host.netns.run("nft", "flush ruleset")
        assert host.netns.call(host.backend.disturbed)
        assert host.backend.sync(host.objects)
        assert take_up(host, busy) == 0
        assert raised(host, connection) == 2


def test_what_an_earlier_process_has_left_goes_with_the_first_sync(tunnel: TunnelLab) -> None:
    host = tunnel.one
    with on_fast_path(tunnel, 4) as connection, watching(host) as busy:
        look(host, busy)
        assert tables(host) == BOTH
        second = host.netns.call(NftablesBackend)
        try:
            assert not second.sync(host.objects)
            assert not tables(host)
            assert not host.netns.call(second.disturbed)
        finally:
            second.close()
        connection.talk()


def test_what_an_earlier_process_has_left_goes_with_everything(tunnel: TunnelLab) -> None:
    host = tunnel.one
    with on_fast_path(tunnel, 4), watching(host) as busy:
        look(host, busy)
        second = host.netns.call(NftablesBackend)
        try:
            second.remove_all()
            assert not tables(host)
        finally:
            second.close()


@FAMILIES
def test_its_own_changes_do_not_disturb_the_filter(
    tunnel: TunnelLab, family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_path, "LASTS_S", 1)
    host = tunnel.one

    def disturbed() -> bool:
        return host.netns.call(host.backend.disturbed)

    with (
        Connection(tunnel.c.netns, tunnel.a.netns, tunnel.a.addresses[family]) as connection,
        watching(host) as busy,
    ):
        look(host, busy)
        assert not disturbed()
        connection.talk()
        assert take_up(host, busy) == 2
        assert not disturbed()
        until(lambda: not elements(host, family), "it lapses")
        assert not disturbed()
        host.backend.fast_path.clear()
        assert not disturbed()
    assert not host.backend.check(host.objects)
