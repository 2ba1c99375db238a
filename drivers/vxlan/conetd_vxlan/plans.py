"""What should exist for a vxlan network, its other hosts, an attachment to it, and its policy."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface

from conetd.driver import JSON, Attachment, IPAddress, Network
from conetd.plan import (
    Address,
    Endpoint,
    EndpointPolicy,
    FdbEntry,
    IPNetwork,
    Neighbour,
    NetworkFilter,
    Plan,
    Route,
    Side,
    Sysctl,
    Tunnel,
    TunnelPeer,
    Veth,
    Vxlan,
)
from conetd.plan.ipv6 import container_ipv6, link_ipv6
from conetd.policy.common import MTU6_MIN, MTU_MAX, MTU_MIN, deny, resolvers
from conetd_vxlan import rules
from conetd_vxlan.addresses import HOST_MAC
from conetd_vxlan.config import VxlanConfig
from conetd_vxlan.hosts import Part, part_of, read_part
from conetd_vxlan.policy import VxlanPolicy

# The host's ends answer for them. They never leave a link, so every container can have the same.
GATEWAY, GATEWAY6 = IPv4Address("169.254.1.1"), IPv6Address("fe80::1")

_OVERHEAD = {4: 50, 6: 70}  # bytes: inner Ethernet 14, VXLAN 8, UDP 8, outer IP 20 or 40
_EVERYWHERE: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


def vtep_name(network: Network[VxlanConfig]) -> str:
    """The name of the network's VTEP: `cx` and the network's key."""
    return f"cx{network.key}"


def end_name(attachment: Attachment) -> str:
    """The name of the attachment's link in the host namespace: `cv` and its key."""
    return f"cv{attachment.key}"


def vtep_mac(part: IPv4Network) -> str:
    """The MAC of the VTEP of the host that has the part: ee:ee and its four bytes, so that every host knows it."""
    return ":".join(f"{byte:02x}" for byte in (0xEE, 0xEE, *part.network_address.packed))


def mtu(network: Network[VxlanConfig]) -> int:
    """Bytes: what is configured, else the underlay's without what the tunnel adds, but never less than IP needs."""
    if network.config.mtu is not None:
        return network.config.mtu
    part = part_of(network)
    low = MTU_MIN if network.config.subnet6 is None else MTU6_MIN
    return min(max(part.mtu - _OVERHEAD[part.underlay.version], low), MTU_MAX)


def plan_network(network: Network[VxlanConfig]) -> Plan:
    """The VTEP with this host's addresses on the network, what holds for all containers, and the hosts of `peers`."""
    config = network.config
    part = part_of(network)
    name = vtep_name(network)
    wanted = NetworkFilter(
        network.key,
        config.subnets,
        name=network.name,
        masquerade=config.masqueraded,
        rules=deny(config.deny_networks, "config.deny_networks"),
        host_rules=resolvers(config.dns_servers),
        tunnel=Tunnel(name, config.port, config.vni, config.prefixes, marks=network.agreed, local=part.underlay),
    )
    own = Plan(
        links=(Vxlan(name, config.vni, part.underlay, config.port, vtep_mac(part.subnet), mtu(network)),),
        addresses=tuple(Address(name, ip_interface(one)) for one in _vtep_addresses(part)),
        sysctls=_host_ipv6(network, name),
        filter=(wanted,),
        forward=frozenset(subnet.version for subnet in config.subnets),
        unreachable=config.subnets,
    )
    others = [
        _plan_host(network, peer.host, Part(peer.subnet, config.part6(peer.subnet), peer.underlay, part.mtu))
        for peer in config.peers
        if peer.subnet != part.subnet
    ]
    return Plan.of([own, *others])


def plan_member(network: Network[VxlanConfig], host: str, data: JSON) -> Plan:
    """The way to another host, and that packets from there are taken."""
    return _plan_host(network, host, read_part(data))


def _plan_host(network: Network[VxlanConfig], host: str, part: Part) -> Plan:
    own = part_of(network)
    if part.underlay.version != own.underlay.version:
        return Plan()  # the VTEP sends from one address only, so neither can reach the other
    if part.subnet == own.subnet:
        return Plan()  # another host has been given what this one has: its containers are not reached from here
    config = network.config
    return _member(vtep_name(network), config.vni, config.port, own, f"{network.key}/{host}", part)


# All hosts of a network are planned whole at each start, and compared whole.
@lru_cache(maxsize=8192)
def _member(vtep: str, vni: int, port: int, own: Part, key: str, part: Part) -> Plan:
    mac = vtep_mac(part.subnet)
    subnets: tuple[IPNetwork, ...] = (part.subnet,) if part.subnet6 is None else (part.subnet, part.subnet6)
    sources = {one.version: one for one in _vtep_addresses(own)}
    return Plan(
        routes=tuple(
            Route(one, vtep, via=one.network_address, source=sources.get(one.version), onlink=True) for one in subnets
        ),
        neighbours=tuple(Neighbour(vtep, one.network_address, mac) for one in subnets),
        fdb=(FdbEntry(vtep, mac, part.underlay),),
        filter=(TunnelPeer(key, vtep, port, vni, part.underlay, mac, subnets),),
    )


def plan_attachment(network: Network[VxlanConfig], attachment: Attachment) -> Plan:
    """The pair with the container's addresses and routes, the host's way to it, and who may speak through it."""
    addresses, mac = leased(attachment)
    end, inside = end_name(attachment), attachment.ifname
    gateways: dict[int, IPAddress] = {4: GATEWAY, 6: GATEWAY6}
    on_links: list[Address] = []
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    for address in addresses:
        alone = ip_interface(address)
        gateway = gateways[address.version]
        on_links.append(Address(inside, alone, Side.CONTAINER))
        routes.append(Route(alone.network, end))
        routes += [
            Route(reached, inside, via=gateway, onlink=True, side=Side.CONTAINER)
            for reached in _reached(network, attachment, address.version)
        ]
        # Nobody needs to ask for a MAC on a link that both ends know.
        neighbours.append(Neighbour(end, address, mac))
        neighbours.append(Neighbour(inside, gateway, HOST_MAC, Side.CONTAINER))
    return Plan(
        links=(Veth(end, inside, mac, mtu(network), host_mac=HOST_MAC),),
        addresses=tuple(on_links),
        routes=tuple(routes),
        neighbours=tuple(neighbours),
        sysctls=(*container_ipv6(on=len(addresses) > 1), *_forwarding(network, end)),
        filter=(
            Endpoint(attachment.key, network.key, attachment.handle, end, addresses, mac, mark=attachment.identity),
        ),
    )


def plan_policy(network: Network[VxlanConfig], attachment: Attachment, policy: VxlanPolicy) -> Plan:
    """What the container may send and receive."""
    wanted = EndpointPolicy(
        attachment.key,
        rules.outward(network, policy),
        ingress=rules.ingress(network, policy),
        inside=rules.inside(network, policy),
        log_denied=policy.log_denied,
    )
    return Plan(filter=(wanted,))


def describe(network: Network[VxlanConfig], attachment: Attachment) -> JSON:
    """What the client is told of an attachment."""
    config = network.config
    addresses, mac = leased(attachment)
    told: JSON = {"addresses": [str(ip_interface(one)) for one in addresses], "mac": mac, "gateway": str(GATEWAY)}
    if len(addresses) > 1:
        told["gateway6"] = str(GATEWAY6)
    return told | {
        "dns_servers": [str(one) for one in config.dns_servers],
        "search_domains": list(config.search_domains),
        "mtu": mtu(network),
    }


def leased(attachment: Attachment) -> tuple[tuple[IPAddress, ...], str]:
    """The IPv4 address and the IPv6 address if there is one, and the MAC of an attachment, from its lease."""
    assert attachment.lease is not None, "the core plans only for attachments with a lease"
    data = attachment.lease.data
    ip = IPv4Address(data["ip"])
    return (ip,) if "ip6" not in data else (ip, IPv6Address(data["ip6"])), data["mac"]


def _vtep_addresses(part: Part) -> tuple[IPAddress, ...]:
    if part.subnet6 is None:
        return (part.subnet.network_address,)
    return part.subnet.network_address, part.subnet6.network_address


def _reached(network: Network[VxlanConfig], attachment: Attachment, version: int) -> list[IPNetwork]:
    """What the container reaches by the network in an IP version: everything, or only the network itself."""
    if version in attachment.default_route:
        return [_EVERYWHERE[version]]
    return [subnet for subnet in network.config.subnets if subnet.version == version]


def _host_ipv6(network: Network[VxlanConfig], link: str) -> tuple[Sysctl, ...]:
    return link_ipv6(link, mtu(network), on=network.config.subnet6 is not None)


def _forwarding(network: Network[VxlanConfig], end: str) -> tuple[Sysctl, ...]:
    found = (*_host_ipv6(network, end), Sysctl(f"ipv4/conf/{end}/forwarding", "1"))
    if network.config.subnet6 is not None:
        found += (Sysctl(f"ipv6/conf/{end}/force_forwarding", "1"),)
    return found
