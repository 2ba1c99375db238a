"""What should exist for a bridge network, an attachment to it, and its policy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from conetd.driver import JSON, Attachment, HostPort, IPAddress, Network
from conetd.plan import (
    Address,
    Bridge,
    Endpoint,
    EndpointPolicy,
    IPNetwork,
    Neighbour,
    NetworkFilter,
    Plan,
    PortMapping,
    Route,
    Side,
    Sysctl,
    Veth,
)
from conetd.plan.ipv6 import container_ipv6, link_ipv6
from conetd.policy.common import MTU6_MIN, deny, resolvers
from conetd.policy.leases import mac_of
from conetd_bridge.config import BridgeConfig
from conetd_bridge.policy import BridgePolicy

_EVERYWHERE, _EVERYWHERE6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")

# Neighbours that knew the address at another MAC are told. Only where one was asked for: a derived MAC stays with its
# address, and what is told reaches every port of the bridge, which with many containers costs more than the attach.
_TELL = (Sysctl("ipv4/conf/default/arp_notify", "1", Side.CONTAINER, early=True),)
_TELL6 = (Sysctl("ipv6/conf/default/ndisc_notify", "1", Side.CONTAINER, early=True),)


def bridge_name(network: Network[BridgeConfig]) -> str:
    """The bridge's name: the one configured, else `cb` and the network's key."""
    return network.config.bridge or f"cb{network.key}"


def port_name(attachment: Attachment) -> str:
    """The name of the attachment's link in the host namespace, a port of the bridge: `cv` and its key."""
    return f"cv{attachment.key}"


def mtu(network: Network[BridgeConfig]) -> int:
    """Bytes: what is configured, else the uplink's, but never less than IPv6 needs."""
    if network.config.mtu is not None:
        return network.config.mtu
    return network.uplink_mtu if network.config.subnet6 is None else max(network.uplink_mtu, MTU6_MIN)


def plan_network(network: Network[BridgeConfig]) -> Plan:
    """The bridge with the gateway's addresses, and what holds for all its containers."""
    config = network.config
    name = bridge_name(network)
    addresses = [Address(name, IPv4Interface((config.gateway, config.subnet.prefixlen)))]
    subnets: list[IPNetwork] = [config.subnet]
    if config.subnet6 is not None and config.gateway6 is not None:
        addresses.append(Address(name, IPv6Interface((config.gateway6, config.subnet6.prefixlen))))
        subnets.append(config.subnet6)
    wanted = NetworkFilter(
        network.key,
        tuple(subnets),
        name=network.name,
        interface=name,
        masquerade=config.masqueraded,
        rules=deny(config.deny_networks, "config.deny_networks"),
        host_access=config.allow_host_access,
        host_rules=resolvers(config.dns_servers),
        isolated=config.isolated,
    )
    return Plan(
        links=(Bridge(name, mac_of(config.gateway), mtu(network)),),
        addresses=tuple(addresses),
        sysctls=link_ipv6(name, mtu(network), on=config.subnet6 is not None),
        filter=(wanted,),
        forward=frozenset(subnet.version for subnet in subnets),
    )


def plan_attachment(network: Network[BridgeConfig], attachment: Attachment) -> Plan:
    """The pair with the container's addresses and default routes, and who may speak through it."""
    config = network.config
    ip, ip6, mac = leased(attachment)
    port = port_name(attachment)
    bridge = bridge_name(network)
    inside = attachment.ifname
    interfaces: list[IPv4Interface | IPv6Interface] = [IPv4Interface((ip, config.subnet.prefixlen))]
    gateways: list[IPAddress] = [config.gateway]
    routes: list[Route] = []
    if 4 in attachment.default_route:
        routes.append(Route(_EVERYWHERE, inside, via=config.gateway, side=Side.CONTAINER))
    if ip6 is not None and config.subnet6 is not None:
        interfaces.append(IPv6Interface((ip6, config.subnet6.prefixlen)))
        if config.gateway6 is not None:
            gateways.append(config.gateway6)
        if 6 in attachment.default_route:
            routes.append(Route(_EVERYWHERE6, inside, via=config.gateway6, side=Side.CONTAINER))
    addresses: tuple[IPAddress, ...] = (ip,) if ip6 is None else (ip, ip6)
    # Host and container know each other for good. To ask would go to every port, and from about 1000 ports on that is
    # more than a processor's queue takes (net.core.netdev_max_backlog): the answer behind it is lost, each time anew.
    to_gateway = tuple(Neighbour(inside, one, mac_of(config.gateway), Side.CONTAINER) for one in gateways)
    to_container = tuple(Neighbour(bridge, one, mac) for one in addresses)
    return Plan(
        links=(Veth(port, inside, mac, mtu(network), bridge=bridge),),
        addresses=tuple(Address(inside, one, Side.CONTAINER) for one in interfaces),
        routes=tuple(routes),
        neighbours=to_gateway + to_container,
        sysctls=_sysctls(ip, ip6, mac),
        filter=(Endpoint(attachment.key, network.key, attachment.handle, bridge, addresses, mac, port=port),),
    )


def _sysctls(ip: IPv4Address, ip6: IPv6Address | None, mac: str) -> tuple[Sysctl, ...]:
    found = container_ipv6(on=ip6 is not None)
    if mac == mac_of(ip):
        return found
    return found + (_TELL if ip6 is None else _TELL + _TELL6)


def plan_policy(attachment: Attachment, policy: BridgePolicy) -> Plan:
    """What the container may send, and the host ports that lead to it."""
    ip, ip6, _ = leased(attachment)
    targets: tuple[IPAddress, ...] = (ip,) if ip6 is None else (ip, ip6)
    mappings = tuple(
        _mapping(port, target, attachment) for port in attachment.ports for target in targets if _reaches(port, target)
    )
    wanted = EndpointPolicy(attachment.key, policy.rules, mappings, log_denied=policy.log_denied)
    return Plan(filter=(wanted,))


def describe(network: Network[BridgeConfig], attachment: Attachment) -> JSON:
    """What the client is told of an attachment."""
    config = network.config
    ip, ip6, mac = leased(attachment)
    told: JSON = {"addresses": [f"{ip}/{config.subnet.prefixlen}"], "mac": mac, "gateway": str(config.gateway)}
    if ip6 is not None and config.subnet6 is not None:
        told["addresses"].append(f"{ip6}/{config.subnet6.prefixlen}")
        told["gateway6"] = str(config.gateway6)
    return told | {
        "dns_servers": [str(one) for one in config.dns_servers],
        "search_domains": list(config.search_domains),
        "mtu": mtu(network),
    }


def leased(attachment: Attachment) -> tuple[IPv4Address, IPv6Address | None, str]:
    """IPv4 address, IPv6 address if there is one, and MAC of an attachment, from its lease."""
    assert attachment.lease is not None, "the core plans only for attachments with a lease"
    data = attachment.lease.data
    ip6 = data.get("ip6")
    return IPv4Address(data["ip"]), None if ip6 is None else IPv6Address(ip6), data["mac"]


def _reaches(port: HostPort, target: IPAddress) -> bool:
    return port.host_ip is None or port.host_ip.version == target.version


def _mapping(port: HostPort, target: IPAddress, attachment: Attachment) -> PortMapping:
    # Without the default route the container would answer by another network; the gateway's address brings it back.
    elsewhere = target.version not in attachment.default_route
    return PortMapping(port.protocol, port.host_port, target, port.container_port, port.host_ip, masquerade=elsewhere)
