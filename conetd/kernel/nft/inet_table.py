"""How the inet table judges packets: which fixed chains stand at which hook, and what each of their rules is for."""

from __future__ import annotations

import struct

from conetd.kernel.nft import expressions as e
from conetd.kernel.nft import tunnel_table
from conetd.kernel.nft.bridge_table import MAPPED_BIT
from conetd.kernel.nft.chain import Chain, KernelRule
from conetd.kernel.nft.hooks import (
    FORWARD,
    INPUT,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    BaseChain,
    accept,
    drop,
    interface,
    rules,
)
from conetd.kernel.nft.matches import (
    GROUP_FRAME,
    destination_and_port,
    icmpv6,
    interface_and_source,
    known_flow,
    link_local,
    pair,
    state,
    status,
    tcp_that_begins_nothing,
    udp,
    words,
)
from conetd.plan import NetworkFilter

# linux/netfilter_ipv4.h
_RAW, _DSTNAT, _AFTER_DSTNAT, _FILTER, _SRCNAT, _AFTER_SRCNAT = -300, -100, -99, 0, 100, 101
_INGRESS = _FILTER + 1  # a hook of its own: what a container may send, another must also be willing to take
_BOTH = (4, 6)
_SOLICITATION, _ADVERTISEMENT = 135, 136
_HOST_PROHIBITED, _ADMIN_PROHIBITED = 10, 1  # ICMP type 3, ICMPv6 type 1


def _prerouting() -> tuple[Chain | BaseChain, ...]:
    """Only endpoints speak, in every packet whatever the flow, so that nothing passes once they are gone.

    A look by the interface's name is the most that a rule costs, so one leads to all that is asked of a packet. No
    link is in `entry` and shut at a time.
    """
    no_address = e.family_is(6) + e.source(6) + e.equal(bytes(16))
    unspecified = rules(
        ("duplicate address detection", no_address + icmpv6(_SOLICITATION) + accept()),
        ("of nobody", drop()),
    )
    source = rules(
        ("encapsulated by a container", tunnel_table.encapsulated() + drop()),
        *(
            (f"of an endpoint, IPv{family}", interface_and_source(family) + e.verdict_map(f"source{family}"))
            for family in _BOTH
        ),
        ("of none", e.goto("unspecified")),
    )
    entry = rules(
        tunnel_table.at_once(),
        ("from an interface of ours, or a tunnel", e.meta(e.IIFNAME) + e.verdict_map("entry")),
        *tunnel_table.entry(),
    )
    return (
        *tunnel_table.chains(),
        Chain("unspecified", unspecified),
        Chain("source", source),
        BaseChain("filter", PREROUTING, _RAW, Chain("prerouting", entry)),
    )


def _mapped(family: int) -> bytes:
    """Go on only with what a mapping of every address means, whose target is then in register 0."""
    key = e.meta(e.L4PROTO) + e.destination_port(1)
    return e.family_is(family) + key + e.lookup(f"published{family}", into=0)


def _mapped_at(family: int) -> bytes:
    """As `_mapped`, of one address."""
    return e.family_is(family) + destination_and_port(family) + e.lookup(f"published_at{family}", into=0)


def _published(family: int) -> bytes:
    if family == 4:
        not_loopback = e.destination(4, 8) + e.masked(b"\xff\0\0\0", 8) + e.equal(b"\x7f\0\0\0", 8, negate=True)
    else:
        not_loopback = e.destination(6, 8) + e.equal(bytes(15) + b"\1", 8, negate=True)
    return _mapped(family) + not_loopback + e.destination_is_local() + e.dnat(family, 0, words(family))


def _published_at(family: int) -> bytes:
    return _mapped_at(family) + e.dnat(family, 0, words(family))


def _nat() -> tuple[Chain | BaseChain, ...]:
    publish = rules(
        *((f"on one address, IPv{family}", _published_at(family)) for family in _BOTH),
        *((f"on every address, IPv{family}", _published(family)) for family in _BOTH),
    )
    mapped_bit = e.meta(e.MARK) + e.masked(
        struct.pack("=I", ~MAPPED_BIT & 0xFFFFFFFF), xor=struct.pack("=I", MAPPED_BIT)
    )
    to_isolated = rules(
        *(
            (f"into an isolated network, IPv{family}", pair(family, f"isolated{family}") + mapped_bit + e.set_mark())
            for family in _BOTH
        )
    )
    redirect = rules(("published ports", e.jump("publish")))
    return (
        Chain("publish", publish),
        Chain("to_isolated", to_isolated),
        BaseChain("nat", PREROUTING, _DSTNAT, Chain("nat_prerouting", redirect)),
        BaseChain("nat", OUTPUT, _DSTNAT, Chain("nat_output", redirect)),
        BaseChain("nat", POSTROUTING, _SRCNAT, Chain("nat_postrouting", _masquerade())),
    )


def _masquerade() -> tuple[KernelRule, ...]:
    dnated = status(e.IPS_DST_NAT, on=True)
    return rules(
        ("group frame inside a bridge", GROUP_FRAME + accept()),
        ("to link-local", link_local(e.destination(6)) + accept()),
        *(
            (f"published, from the same network, IPv{family}", dnated + pair(family, f"same{family}") + e.masquerade())
            for family in _BOTH
        ),
        *(
            (
                f"published, default route elsewhere, IPv{family}",
                e.family_is(family)
                + dnated
                + destination_and_port(family)
                + e.lookup(f"snat{family}")
                + e.masquerade(),
            )
            for family in _BOTH
        ),
        *(
            (
                f"out of the network, IPv{family}",
                pair(family, f"masquerade{family}") + pair(family, f"same{family}", negate=True) + e.masquerade(),
            )
            for family in _BOTH
        ),
    )


def _forward() -> tuple[Chain | BaseChain, ...]:
    not_mapped = status(e.IPS_DST_NAT, on=False)
    inside = rules(
        # else a connection that the ingress of its sender forbids now would come back as one of the sender's own
        *(
            (
                f"no flow's segment, IPv{family}",
                tcp_that_begins_nothing() + interface_and_source(family) + e.lookup(f"guarded{family}") + drop(),
            )
            for family in _BOTH
        ),
        *(
            (f"of an endpoint, IPv{family}", interface_and_source(family) + e.verdict_map(f"inside{family}"))
            for family in _BOTH
        ),
        ("of one that sends freely", accept()),
    )
    egress = rules(
        ("group frame inside a bridge", GROUP_FRAME + accept()),
        *((f"isolated, IPv{family}", not_mapped + pair(family, f"isolated{family}") + drop()) for family in _BOTH),
        *((f"inside a network, IPv{family}", pair(family, f"same{family}") + e.goto("inside")) for family in _BOTH),
        # the kernel forwards none: again frames inside a bridge
        ("from link-local", link_local(e.source(6)) + accept()),
        ("to link-local", link_local(e.destination(6)) + accept()),
        # address translation passes it by: it would leave with the container's own address
        ("of no flow, and no beginning of one", state(e.CT_INVALID) + drop()),
        *(
            (f"of an endpoint, IPv{family}", interface_and_source(family) + e.verdict_map(f"egress{family}"))
            for family in _BOTH
        ),
        # one element a network, not one rule a container: the kernel goes through all of them at each change
        ("what it has no rule for", e.meta(e.IIFNAME) + e.verdict_map("network")),
        ("without a network", drop()),
    )
    to_strangers = interface("ours", e.OIFNAME, negate=True)
    forward = rules(
        ("known flow", known_flow() + accept()),
        *(
            (
                f"no router for strangers, IPv{family}",
                e.family_is(family) + interface(f"opened{family}") + to_strangers + drop(),
            )
            for family in _BOTH
        ),
        ("into a tunnel, from no container", tunnel_table.from_strangers() + drop()),
        ("from a container", interface("ours") + e.goto("egress")),
    )
    ingress = rules(
        ("known flow", known_flow() + accept()),
        # else one that its receiver may not hold any more would come back as one of the other end's
        ("no flow's segment, from another host", tcp_that_begins_nothing() + interface("vteps") + drop()),
        *(
            # elsewhere this traffic never reaches us, so it is not judged here either
            (f"inside a bridged network, IPv{family}", interface("bridges") + pair(family, f"same{family}") + accept())
            for family in _BOTH
        ),
        *(
            (
                f"to an endpoint, IPv{family}",
                e.family_is(family) + e.destination(family) + e.verdict_map(f"ingress{family}"),
            )
            for family in _BOTH
        ),
        ("from another host, to none that says who may", interface("vteps") + drop()),
    )
    return (
        Chain("inside", inside),
        Chain("egress", egress),
        BaseChain("filter", FORWARD, _FILTER, Chain("forward", forward)),
        BaseChain("filter", FORWARD, _INGRESS, Chain("ingress", ingress)),
    )


def _input() -> tuple[Chain | BaseChain, ...]:
    to_host = rules(
        ("known flow", known_flow() + accept()),
        ("neighbour solicitation", icmpv6(_SOLICITATION) + accept()),
        ("neighbour advertisement", icmpv6(_ADVERTISEMENT) + accept()),
        ("what its network opens of the host", e.meta(e.IIFNAME) + e.verdict_map("host")),
        ("host access", interface("host_access") + accept()),
        ("host-prohibited", e.family_is(4) + e.reject_icmp(_HOST_PROHIBITED)),
        ("admin-prohibited", e.family_is(6) + e.reject_icmp(_ADMIN_PROHIBITED)),
    )
    # Translation passes a segment by that is outside its connection's window: the host would reset the connection.
    stray = rules(
        *((f"to a port published on one address, IPv{family}", _mapped_at(family) + drop()) for family in _BOTH),
        *((f"to a published port, IPv{family}", _mapped(family) + drop()) for family in _BOTH),
    )
    entry = rules(
        tunnel_table.judged_before(),
        ("may be encapsulated", udp() + e.jump("outer")),
        ("known flow", known_flow() + accept()),
        ("of no flow, and no beginning of one", state(e.CT_INVALID) + e.jump("stray")),
        ("from a container", interface("ours") + e.goto("to_host")),
        ("from a container of another host", interface("vteps") + e.goto("to_host")),
    )
    return (
        Chain("to_host", to_host),
        Chain("stray", stray),
        BaseChain("filter", INPUT, _FILTER, Chain("input", entry)),
    )


def chains() -> tuple[Chain | BaseChain, ...]:
    """Every fixed chain; one that others lead to stands before them."""
    return _prerouting() + _nat() + _forward() + _input()


WHILE_CLOSED = ("closed_in", "closed_out")
"""The chains that are there while any link is shut for packets."""


def optional() -> tuple[BaseChain, ...]:
    """The chains that are there only while they have something to do: each costs every packet at its hook."""
    mapped = rules(("mapped", status(e.IPS_DST_NAT, on=True) + e.goto("to_isolated")))
    closed_in = rules(("from a link that is shut", interface("closed") + drop()))
    closed_out = rules(("to a link that is shut", interface("closed", e.OIFNAME) + drop()))
    return (
        BaseChain("filter", PREROUTING, _RAW, Chain("closed_in", closed_in)),
        BaseChain("filter", POSTROUTING, _RAW, Chain("closed_out", closed_out)),
        BaseChain("filter", PREROUTING, _AFTER_DSTNAT, Chain("mapped", mapped)),
        BaseChain("filter", OUTPUT, _RAW, Chain("output", tunnel_table.own_rules())),
        BaseChain("filter", POSTROUTING, _AFTER_SRCNAT, Chain("leaving", tunnel_table.leaving_rules())),
    )


def optional_of(network: NetworkFilter) -> tuple[str, ...]:
    """Which of the optional chains a network needs."""
    return (*(("mapped",) if network.isolated else ()), *(("output", "leaving") if network.tunnel else ()))
