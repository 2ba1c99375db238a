"""Who may send into an overlay from the underlay: hosts of the network, each as itself and for containers only.

Each forged packet is followed by an honest one, so that there is no waiting for what does not come.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from forged import FORGED, HONEST, SERVICE, Watchers, ethertype, inner, send_encapsulated
from frames import datagram, ethernet, send
from overlay import ANYBODY, open_lab, vtep, vtep_mac
from pytest_netns import Netns
from world import eventually

from lab.cluster import Lab
from lab.hosts import OVERLAY, Host
from lab.underlay import WORLD

BRIDGE = {"subnet": "10.10.0.0/24", "subnet6": "fd00:10::/64"}
GATEWAY = {4: "10.10.0.1", 6: "fd00:10::1"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
TTL_S = 3
STRANGER = "e1"  # a machine on the underlay beside h1 that has nothing to do with the network


@pytest.fixture(scope="module", params=[4, 6], ids=["underlay4", "underlay6"])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three hosts: target, near, and one on a bridge on h1, which is sent to; far on h2. Everybody lets everybody in.

    Without a reverse path filter, so that it is not the kernel that drops.
    """
    folder = tmp_path_factory.mktemp("lab")
    with open_lab(folder, 3, rp_filter=0, ttl=TTL_S, underlay=request.param, **ANYBODY) as lab:
        lab.network("blue", type="bridge", **BRIDGE)
        for name, host, network in (("target", 0, OVERLAY), ("near", 0, OVERLAY), ("bridged", 0, "blue")):
            lab.hosts[host].container(name, networks=[network])
        lab.hosts[1].container("far")
        yield lab


@pytest.fixture
def watchers(lab: Lab) -> Iterator[Watchers]:
    """Wherever a packet that is sent to h1 may come to: containers, another host, the world, and the hosts as such."""
    machines = {name: one.netns for name, one in lab.containers.items()}
    with Watchers(machines | {"h3": lab.hosts[2].netns, "outside": lab.outside}, lab.hosts) as watchers:
        yield watchers


def seen_of(lab: Lab, watchers: Watchers, sender: Netns, *frames: bytes) -> list[str]:
    """Where anything is seen of these frames, sent to h1 by a machine; behind them an honest one from h3."""
    one, three = lab.hosts[0], lab.hosts[2]
    target = lab.containers["target"].addresses[4]
    for frame in frames:
        send_encapsulated(sender, one, frame, identity=lab.containers["far"].attachments[0]["identity"])
    send_encapsulated(three.netns, one, inner(vtep(three)[4], target, three, one, HONEST))
    return [name for name in watchers.seen(until="target") if name != "h3" or sender is not three.netns]


def as_far(lab: Lab, to: str, *, mac: str | None = None) -> bytes:
    """What h2 would send h1 for its container far."""
    far = lab.containers["far"].addresses[6 if ":" in to else 4]
    return inner(far, to, lab.hosts[1], lab.hosts[0], mac=mac)


def next_to(host: Host, family: int, step: int = 1) -> str:
    """An address so many behind the first of the host's part."""
    return str(ip_address(vtep(host)[family]) + step)


@FAMILIES
def test_what_another_host_sends_arrives(lab: Lab, watchers: Watchers, family: int) -> None:
    frame = as_far(lab, lab.containers["target"].addresses[family])
    assert seen_of(lab, watchers, lab.hosts[1].netns, frame) == ["target"]


# Hosts that are not of the network, or not any more


@FAMILIES
def test_what_an_unknown_machine_sends_goes_nowhere(lab: Lab, watchers: Watchers, family: int) -> None:
    stranger, _ = lab.machine(STRANGER)
    to = lab.containers["target"].addresses[family]
    assert seen_of(lab, watchers, stranger, as_far(lab, to)) == []


@FAMILIES
def test_nor_where_somebody_elses_rule_leaves_it_untracked(lab: Lab, watchers: Watchers, family: int) -> None:
    stranger, _ = lab.machine(STRANGER)
    host = lab.hosts[0].netns
    to = lab.containers["target"].addresses[family]
    rules = "table inet theirs { chain c { type filter hook prerouting priority -400; udp dport 4789 notrack; }; }"
    host.run("nft", rules)
    try:
        assert seen_of(lab, watchers, stranger, as_far(lab, to)) == []
    finally:
        host.run("nft", "delete table inet theirs")


def test_what_a_host_sends_that_has_left_goes_nowhere_until_it_is_back(lab: Lab, watchers: Watchers) -> None:
    one, two, _ = lab.hosts
    frames = [as_far(lab, lab.containers["target"].addresses[family]) for family in (4, 6)]

    def known() -> bool:
        return "h2" in one.daemon.get("/status").body["cluster"]["networks"][OVERLAY]["hosts"]

    with lab.restored():
        lab.kill(two)
        eventually(lambda: not known(), "h1 knows that h2 is gone")
        assert seen_of(lab, watchers, two.netns, *frames) == []
    eventually(known, "h1 knows that h2 is back")
    assert seen_of(lab, watchers, two.netns, *frames) == ["target"]


# Hosts that are


@FAMILIES
def test_a_host_speaks_for_its_own_part_only(lab: Lab, watchers: Watchers, family: int) -> None:
    one, two, three = lab.hosts
    sources = {
        "container of the receiver": lab.containers["near"].addresses[family],
        "VTEP of the receiver": vtep(one)[family],
        "container of a third host": next_to(three, family),
        "VTEP of a third host": vtep(three)[family],
        "nobody's part": next_to(one, family, 200 * 256),
        "underlay of the receiver": one.addresses[family],
        "underlay of the sender": two.addresses[family],
        "container of a bridge": lab.containers["bridged"].addresses[family],
        "world": WORLD[family],
        "loopback": "127.0.0.1" if family == 4 else "::1",
        "link-local": "169.254.1.1" if family == 4 else "fe80::1",
    }
    to = lab.containers["target"].addresses[family]
    frames = [inner(one_, to, two, one, FORGED + name.encode()) for name, one_ in sources.items()]
    assert seen_of(lab, watchers, two.netns, *frames) == []


@FAMILIES
def test_a_host_has_its_own_mac_only(lab: Lab, watchers: Watchers, family: int) -> None:
    one, two, three = lab.hosts
    to = lab.containers["target"].addresses[family]
    frames = [as_far(lab, to, mac=mac) for mac in (vtep_mac(three), vtep_mac(one), "02:00:00:00:00:99")]
    assert seen_of(lab, watchers, two.netns, *frames) == []


@FAMILIES
def test_a_host_does_not_pass_for_a_third_one(lab: Lab, watchers: Watchers, family: int) -> None:
    one, two, three = lab.hosts
    to = lab.containers["target"].addresses[family]
    frame = inner(next_to(three, family), to, two, one, mac=vtep_mac(three))
    assert seen_of(lab, watchers, two.netns, frame) == []


@FAMILIES
def test_from_the_tunnel_only_containers_of_the_network_are_reached(lab: Lab, watchers: Watchers, family: int) -> None:
    one, _, three = lab.hosts
    targets = (
        vtep(one)[family],
        one.addresses[family],
        GATEWAY[family],
        lab.containers["bridged"].addresses[family],
        next_to(one, family, 99),
        vtep(three)[family],
        next_to(three, family),
        three.addresses[family],
        WORLD[family],
    )
    assert seen_of(lab, watchers, lab.hosts[1].netns, *(as_far(lab, to) for to in targets)) == []


# Without a tunnel


@FAMILIES
def test_a_source_of_the_overlay_does_not_come_in_by_the_uplink(lab: Lab, watchers: Watchers, family: int) -> None:
    one, two, three = lab.hosts
    target = lab.containers["target"].addresses[family]
    sources = [lab.containers[name].addresses[family] for name in ("near", "far")]
    sources += [vtep(one)[family], vtep(two)[family], next_to(three, family), next_to(one, family, 200 * 256)]
    forged = [datagram(one_, to, SERVICE, FORGED) for one_ in sources for to in (target, one.addresses[family])]
    from_the_wire(lab, *forged, datagram(lab.machine(STRANGER)[1][family], target, SERVICE, HONEST))
    assert watchers.seen(until="target") == []


@FAMILIES
def test_no_host_is_a_way_into_the_tunnel_for_the_world(lab: Lab, family: int) -> None:
    stranger = lab.machine(STRANGER)[1][family]
    far, target = lab.containers["far"], lab.containers["target"]
    machines = {"far": far.netns, "wire of far's host": far.host.netns, "target": target.netns}
    with Watchers(machines) as watchers:
        forged = datagram(stranger, far.addresses[family], SERVICE, FORGED)
        from_the_wire(lab, forged, datagram(stranger, target.addresses[family], SERVICE, HONEST))
        assert watchers.seen(until="target") == []


def from_the_wire(lab: Lab, *packets: bytes) -> None:
    """Have the stranger send h1 packets as they are."""
    stranger, _ = lab.machine(STRANGER)
    [own] = stranger.json("ip", "-j", "link", "show", "eth0")
    kinds = [(ethertype("::" if one[0] >> 4 == 6 else ""), one) for one in packets]
    send(stranger, *(ethernet(lab.hosts[0].place.mac, own["address"], kind, one) for kind, one in kinds))
