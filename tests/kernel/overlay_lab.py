"""What the tests of overlays plan: a network's VTEP, and what it has for each other host."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

from conetd.plan import Address, FdbEntry, Neighbour, Plan, Route, Vxlan

VTEP = Vxlan("vx7", 7, ip_address("192.0.2.1"), 4790, "ee:ee:0a:80:00:00", 1450)
ALIAS = "conetd:overlay"
OWN = (ip_address("10.128.0.0"), ip_address("fd00::"))
WHOLE = (ip_network("10.128.0.0/9"), ip_network("fd00::/64"))
NETWORK = Plan(
    links=(VTEP,),
    addresses=(Address("vx7", ip_interface("10.128.0.0/32")), Address("vx7", ip_interface("fd00::/128"))),
    unreachable=WHOLE,
)


def mac(number: int) -> str:
    """The MAC of another host's VTEP."""
    return "ee:ee:" + (IPv4Address("10.128.0.0") + number * 256).packed.hex(":")


def member(number: int, to: str | None = None) -> Plan:
    """What the VTEP has for another host, which is at the underlay address `to`."""
    four, six = IPv4Address("10.128.0.0") + number * 256, IPv6Address("fd00::") + number * 256
    return Plan(
        routes=(
            Route(IPv4Network((four, 24)), "vx7", four, OWN[0], onlink=True),
            Route(IPv6Network((six, 120)), "vx7", six, OWN[1], onlink=True),
        ),
        neighbours=(Neighbour("vx7", four, mac(number)), Neighbour("vx7", six, mac(number))),
        fdb=(FdbEntry("vx7", mac(number), ip_address(to) if to else IPv4Address("192.0.2.0") + number),),
    )


def whole(*members: Plan) -> Plan:
    """The network's plan and those of other hosts in one, as the core compares it."""
    return Plan.of([NETWORK, *members])
