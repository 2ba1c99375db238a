"""Which interfaces the host must forward on for its containers, and how that is switched on and back.

IPv4 forwarding is a switch per interface, ours and the uplinks'. IPv6 has one in newer kernels (`force_forwarding`);
elsewhere the switch is global, and a host that becomes a router stops taking router advertisements unless told.

What is to change is planned first, so that it can be recorded with the old values before it is done.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from conetd.errors import ConetError, KernelError
from conetd.kernel import routes, seen, sysctls
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink

_ALL4 = "ipv4/conf/all/forwarding"
_ALL6 = "ipv6/conf/all/forwarding"
_FORCE6 = "ipv6/conf/all/force_forwarding"  # there since Linux 6.17
_FAMILY = {2: 4, 10: 6}
_ADDRESS = struct.Struct("=BBBBI")
_SCOPE_GLOBAL = 0
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class SysctlChange:
    """A sysctl below /proc/sys/net that is to have a `new` value instead of its `old` one."""

    path: str
    old: str
    new: str


def uplinks(version: int, ours: Collection[str]) -> frozenset[str]:
    """The interfaces the host itself speaks by: neither ours nor lo, with a global address of that IP version."""
    found = set()
    with Netlink(NETLINK_ROUTE) as netlink:
        for _, payload in netlink.dump(routes.list_addresses()):
            family, _, _, scope, index = _ADDRESS.unpack_from(payload)
            if _FAMILY.get(family) == version and scope == _SCOPE_GLOBAL:
                try:
                    found.add(socket.if_indextoname(index))
                except OSError:
                    continue  # gone since the list was made
    return frozenset(found) - frozenset(ours) - {"lo"}


def plan_forwarding(versions: Collection[int], ours: Collection[str]) -> tuple[SysctlChange, ...]:
    """What has to change so that packets of these IP versions pass between our interfaces and the uplinks.

    `ours` are our interfaces that have addresses or routes of the host; those that do not exist are passed over.
    Reads only. In the order in which it is to be done.
    """
    changes: list[SysctlChange] = []
    if 4 in versions:
        for name in sorted({*ours, *uplinks(4, ours)}):
            changes += _change(f"ipv4/conf/{name}/forwarding", "1")
    if 6 in versions and sysctls.read(_ALL6) == "0":
        outward = sorted(uplinks(6, ours))
        if sysctls.read(_FORCE6) is not None:
            for name in sorted({*ours, *outward}):
                changes += _change(f"ipv6/conf/{name}/force_forwarding", "1")
        else:
            for name in outward:
                if sysctls.read(f"ipv6/conf/{name}/accept_ra") == "1":
                    changes += _change(f"ipv6/conf/{name}/accept_ra", "2")
            changes += _change(_ALL6, "1")
    return tuple(changes)


def _change(path: str, new: str) -> Iterable[SysctlChange]:
    old = sysctls.read(path)
    return () if old is None or old == new else (SysctlChange(path, old, new),)


def apply(changes: Sequence[SysctlChange]) -> None:
    """Make the changes, in order. An interface that is gone by now is passed over. Raises KernelError."""
    for change in changes:
        _set(change.path, change.new)


def restore(changes: Sequence[SysctlChange]) -> None:
    """Put the old values back, the latest change first, wherever the value is still the one we set.

    Goes on past failures and raises the first one at the end.
    """
    errors: list[ConetError] = []
    for change in reversed(changes):
        try:
            if sysctls.read(change.path) == change.new:
                _set(change.path, change.old)
        except ConetError as err:
            errors.append(err)
    if errors:
        raise errors[0]


def opened(recorded: Iterable[SysctlChange], version: int, ours: Collection[str]) -> frozenset[str]:
    """The interfaces, none of ours, on which packets of that IP version are forwarded only because of us.

    `recorded` are the changes made so far. Where the host forwards on all interfaces by its own wish there are none.
    """
    switched = {change.path for change in recorded if (change.old, change.new) == ("0", "1")}
    others = seen.names() - frozenset(ours) - {"lo"}
    every, one = (_ALL4, "ipv4/conf/{}/forwarding") if version == 4 else (_ALL6, "ipv6/conf/{}/force_forwarding")
    if every in switched:
        return others
    if sysctls.read(every) != "0":
        return frozenset()
    return frozenset(name for name in others if one.format(name) in switched)


def _set(path: str, value: str) -> None:
    # The kernel gives up a write to a forwarding switch when somebody else holds its lock for links and routes, and
    # an interrupted one may leave the old value behind: what counts is what can be read.
    for _ in range(_ATTEMPTS):
        if sysctls.read(path) is None:
            return
        sysctls.write(path, value)
        if sysctls.read(path) in (value, None):
            return
    raise KernelError("set", f"sysctl net/{path} to {value}", errno.EAGAIN, "it does not keep the value")
