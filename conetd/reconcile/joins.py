"""What an up joins, under which names, and who gives the default route: pure decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from conetd.errors import Conflict, Invalid
from conetd.model import HostPort, PortRequest
from conetd.store import AttachmentRecord, ContainerRecord, HostPortRecord, Join

PROPERTY = "network.attach_to"


def choose_joins(
    container: ContainerRecord | None, properties: Mapping[str, str], default: Sequence[str]
) -> tuple[Join, ...]:
    """The client's config, else Guardian's property, else the setting. Raises Invalid when none names a network.

    Guardian strips `network.` from the names of the properties it forwards, so both spellings are the property.
    """
    if container is not None and container.attach_to is not None:
        return container.attach_to
    named = properties.get(PROPERTY, properties.get("attach_to"))
    if named is not None:
        names = [name.strip() for name in named.split(",") if name.strip()]
        if len(set(names)) != len(names):
            raise Invalid(f"property {PROPERTY} names a network twice: {named!r}", fields={PROPERTY: "named twice"})
        return tuple(Join(name) for name in names)
    if default:
        return tuple(Join(name) for name in default)
    raise Invalid(
        "nothing says which networks the container joins: no config was PUT, "
        f"there is no property {PROPERTY}, and the setting default_attach_to is empty"
    )


def name_interfaces(joins: Sequence[Join], kept: Mapping[str, str]) -> dict[str, str]:
    """Network to interface name: what is `kept`, what was asked for, else eth0, eth1 … in the order of the joins.

    Raises Invalid when two want one name.
    """
    names = dict(kept)
    for number, join in enumerate(joins):
        if join.ifname is not None and join.network not in names:
            if join.ifname in names.values():
                raise Invalid(
                    f"interface name {join.ifname} is wanted twice", fields={f"attach_to[{number}].ifname": "taken"}
                )
            names[join.network] = join.ifname
    asked = {join.ifname for join in joins if join.ifname is not None}
    for number, join in enumerate(joins):
        if join.network not in names:
            taken = asked | set(names.values())
            position = number
            while f"eth{position}" in taken:
                position += 1
            names[join.network] = f"eth{position}"
    return names


def choose_default_routes(attachments: Sequence[AttachmentRecord]) -> list[AttachmentRecord]:
    """The attachments in their order, with the first that has a gateway giving the default route, per IP version."""
    free = {4, 6}
    chosen = []
    for one in attachments:
        given = one.lease.gateways & free
        free -= given
        chosen.append(replace(one, default_route=frozenset(given)))
    return chosen


def match_ports(
    requests: Sequence[PortRequest], held: Sequence[HostPortRecord]
) -> list[tuple[PortRequest, HostPortRecord | None]]:
    """Each request with the port it holds already: an entry that stands keeps its port."""
    left = list(held)
    matched: list[tuple[PortRequest, HostPortRecord | None]] = []
    for request in requests:
        asked = (request.protocol, request.host_ip, request.host_port, request.container_port)
        found = next(
            (
                one
                for one in left
                if (one.port.protocol, one.port.host_ip, one.asked_host, one.asked_container) == asked
            ),
            None,
        )
        if found is not None:
            left.remove(found)
        matched.append((request, found))
    return matched


def settle(request: PortRequest, host_port: int) -> HostPortRecord:
    """The record of a request whose host port is `host_port`. Container port 0 is the same number."""
    port = HostPort(request.protocol, host_port, request.container_port or host_port, request.host_ip)
    return HostPortRecord(port, request.host_port, request.container_port)


def check_unchanged(attachment: AttachmentRecord, join: Join, path: str) -> None:
    """Raise Conflict when a live attachment is asked for another address, MAC or interface name than it has."""
    wanted, had, claims = join.requested, attachment.requested, attachment.lease.claims
    for name, value, has in (
        ("ip", wanted.ip, wanted.ip == had.ip or f"ip:{wanted.ip}" in claims),
        ("ip6", wanted.ip6, wanted.ip6 == had.ip6 or f"ip:{wanted.ip6}" in claims),
        ("mac", wanted.mac, wanted.mac == had.mac or f"mac:{wanted.mac}" in claims),
        ("ifname", join.ifname, join.ifname == attachment.ifname),
    ):
        if value is not None and not has:
            raise Conflict(
                f'container "{attachment.handle}" is up on network "{attachment.network}" with another {name} '
                f"than {value}; it can change only while it is down",
                fields={f"{path}.{name}": f"cannot become {value} while the container is up"},
            )
