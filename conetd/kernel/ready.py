"""When what was made can be spoken by: the kernel finishes some of it in workers of its own, after it has answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from conetd.errors import KernelError
from conetd.kernel import links, routes
from conetd.kernel.netlink import Netlink, attributes
from conetd.model import IPAddress
from conetd.plan import Plan, Side, Veth

_LINK, _OPERSTATE, _UP = 16, 16, 6  # bytes of ifinfomsg; linux/if_link.h: IFLA_OPERSTATE; linux/if.h: IF_OPER_UP
_TYPE, _LOCAL = 7, 2  # linux/rtnetlink.h: offset of rtm_type; RTN_LOCAL
_PATIENCE_S, _PAUSE_S = 1.0, 0.0002


def wait(host: Netlink, containers: Sequence[tuple[Netlink, Sequence[Plan]]]) -> None:
    """Return when the veths of these plans and their bridges send, and the addresses in the containers are spoken to.

    Each container is a socket in its namespace with its plans. A link drops what it is to send until a worker of the
    kernel has seen its carrier, and another makes the local routes of IPv6 addresses: that takes a millisecond, or many
    on a busy host. What is not so after a second is left to come on its own.
    """
    deadline = time.monotonic() + _PATIENCE_S
    for is_ready in _checks(host, containers):
        while not is_ready() and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)


def _checks(host: Netlink, containers: Sequence[tuple[Netlink, Sequence[Plan]]]) -> Iterator[Callable[[], bool]]:
    veths = [link for _, plans in containers for plan in plans for link in plan.links if isinstance(link, Veth)]
    # Since Linux 6.8 being asked is enough for a link to send. A bridge has its carrier from its ports: they go first.
    for name in (*(veth.name for veth in veths), *dict.fromkeys(veth.bridge for veth in veths if veth.bridge)):
        yield partial(_sends, host, name)
    for socket, plans in containers:
        for address in (address for plan in plans for address in plan.addresses):
            if address.side is Side.CONTAINER and address.interface.version == 6:
                yield partial(_is_local, socket, address.interface.ip)


def _sends(socket: Netlink, name: str) -> bool:
    try:
        found = socket.dump(links.get_link(name))
    except KernelError:
        return True  # it is gone again
    return any(kind == _OPERSTATE and value[0] == _UP for _, one in found for kind, value in attributes(one, _LINK))


def _is_local(socket: Netlink, address: IPAddress) -> bool:
    try:
        found = socket.dump(routes.get_route(address))
    except KernelError:  # ENETUNREACH
        return False
    return any(payload[_TYPE] == _LOCAL for _, payload in found)
