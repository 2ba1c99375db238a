"""Whether this kernel carries packets through VTEPs as conetd makes them, and whether rp_filter lets them in.

The test packet goes through a pair of VTEPs in two network namespaces of its own, made with the very plans of the
real ones. Their checksums are computed and verified by the kernel: what network cards make of them is not tried.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from conetd.errors import KernelError
from conetd.kernel import batch, routes, sysctls
from conetd.kernel.holdings import values
from conetd.kernel.namespaces import NetNS, inside
from conetd.kernel.netlink import Netlink
from conetd.kernel.work import Failures, Work, index_of, open_rtnetlink
from conetd.model import IPAddress
from conetd.plan import Address, FdbEntry, Neighbour, Plan, Route, Side, Veth, Vxlan

PATIENCE = 0.25  # seconds until a packet is called lost
_INTERVAL = 0.01  # seconds between two packets: a new link may lose the first
_MARK = 0x51234  # of which the low sixteen bits travel
_PORT = 9
_SO_RCVMARK = 75  # asm-generic/socket.h, since Linux 5.19
_OVERHEAD = {4: 50, 6: 70}  # bytes of outer headers, by IP version of the underlay
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_UNDERLAY = {4: ("192.0.2.1", "192.0.2.2", 30), 6: ("2001:db8::1", "2001:db8::2", 126)}
_UNDERLAY_MACS = ("0a:00:00:00:00:01", "0a:00:00:00:00:02")
_INNER = (IPv4Address("10.255.1.0"), IPv4Address("10.255.2.0"))
_INNER_MACS = ("ee:ee:0a:ff:01:00", "ee:ee:0a:ff:02:00")
_libc = ctypes.CDLL(None, use_errno=True)  # os.unshare came with Python 3.12


def tunnel_fault(wanted: Vxlan) -> str | None:
    """Send a packet as large as the MTU through VTEPs set like the wanted one; what is wrong with it, or None.

    Takes some milliseconds, and at most 0.3 s when the packet is lost. Nothing of it is left, and the namespace of
    the calling thread is not touched: the test runs in a thread that ends in a namespace of its own. Raises
    KernelError when the test cannot be made.
    """
    found: Future[str | None] = Future()

    def run() -> None:
        try:
            found.set_result(_try(wanted))
        except OSError as err:
            found.set_exception(KernelError("make", "the test of a tunnel", err.errno or 0))
        except BaseException as err:  # whatever it is, it is the caller's
            found.set_exception(err)

    thread = threading.Thread(target=run, name="tunnel-test")
    thread.start()
    thread.join()
    return found.result()


def _try(wanted: Vxlan) -> str | None:
    with ExitStack() as stack:
        near = stack.enter_context(_fresh_namespace())
        far = stack.enter_context(_fresh_namespace())
        with inside(near):
            _make(stack.enter_context(open_rtnetlink()), _underlay(wanted) + _end(wanted, 0), far)
            _compute_checksums("near0")
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        _make(stack.enter_context(open_rtnetlink()), _end(wanted, 1))
        receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        return _send(sender, receiver, wanted)


def _fresh_namespace() -> NetNS:
    """A new network namespace, with the calling thread in it."""
    if _libc.unshare(_CLONE_NEWNET):
        raise KernelError("make", "a network namespace", ctypes.get_errno())
    return NetNS(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))


def _underlay(wanted: Vxlan) -> Plan:
    """What joins the two hosts: a veth between them that knows both, so that nobody has to be asked."""
    near, far, length = _UNDERLAY[wanted.local.version]
    mtu = min(wanted.mtu + _OVERHEAD[wanted.local.version], 65535)
    return Plan(
        links=(Veth("near0", "far0", _UNDERLAY_MACS[1], mtu, host_mac=_UNDERLAY_MACS[0]),),
        addresses=(
            Address("near0", ip_interface(f"{near}/{length}")),
            Address("far0", ip_interface(f"{far}/{length}"), Side.CONTAINER),
        ),
        neighbours=(
            Neighbour("near0", ip_address(far), _UNDERLAY_MACS[1]),
            Neighbour("far0", ip_address(near), _UNDERLAY_MACS[0], Side.CONTAINER),
        ),
    )


def _end(wanted: Vxlan, own: int) -> Plan:
    """The VTEP of one host with its entries for the other one."""
    other = 1 - own
    underlay = _UNDERLAY[wanted.local.version]
    local, remote = ip_address(str(underlay[own])), ip_address(str(underlay[other]))
    name = wanted.name
    return Plan(
        links=(replace(wanted, local=local, mac=_INNER_MACS[own]),),
        addresses=(Address(name, ip_interface(_INNER[own])),),
        routes=(Route(ip_network((_INNER[other], 24)), name, _INNER[other], _INNER[own], onlink=True),),
        neighbours=(Neighbour(name, _INNER[other], _INNER_MACS[other]),),
        fdb=(FdbEntry(name, _INNER_MACS[other], remote),),
    )


def _make(netlink: Netlink, plan: Plan, far: NetNS | None = None) -> None:
    failures = Failures(1)
    batch.make(netlink, [Work(plan, netns=far)], failures)
    if failures.errors[0] is not None:
        raise failures.errors[0]


def _compute_checksums(name: str) -> None:
    """Have the kernel compute the checksums of what leaves by that link; a veth would leave them out."""
    value = array.array("I", (_ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), value.buffer_info()[0]))


def _send(sender: socket.socket, receiver: socket.socket, wanted: Vxlan) -> str | None:
    receiver.bind((str(_INNER[1]), _PORT))
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
    receiver.settimeout(_INTERVAL)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
    packet = os.urandom(wanted.mtu - 28)  # less the inner headers of IPv4 and UDP
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        sender.sendto(packet, (str(_INNER[1]), _PORT))
        try:
            came, controls, _, _ = receiver.recvmsg(len(packet), 64)
        except TimeoutError:
            continue
        mark = next((struct.unpack("=I", data)[0] for _, kind, data in controls if kind == socket.SO_MARK), 0)
        expected = _MARK & 0xFFFF if wanted.gbp else 0
        if came != packet:
            return "a packet sent through a VTEP arrives with another content"
        if mark != expected:
            return f"a packet sent through a VTEP arrives with the mark {mark:#x}, not {expected:#x}"
        return None
    return f"a packet of {wanted.mtu} bytes sent through a VTEP with the UDP port {wanted.port} does not arrive"


def rp_filter_fault(netlink: Netlink, interface: str, source: IPAddress) -> str | None:
    """Why the kernel would drop packets from `source` that come in by `interface` because of rp_filter; None: it won't.

    The calling thread must be in the socket's namespace. Raises KernelError when there is no such interface.
    """
    if source.version == 6:
        return None  # there is no such setting
    modes = [int(sysctls.read(f"ipv4/conf/{name}/rp_filter") or "0") for name in ("all", interface)]
    mode = max(modes)  # as Documentation/networking/ip-sysctl.rst has it
    if mode == 0:
        return None
    ways = _ways(netlink, source)
    index = index_of(netlink, interface)
    if index in ways or (ways and mode != 1):
        return None
    what = "no route leads back" if not ways else "the route back leads by another interface"
    return f"rp_filter is {mode} on {interface}, which drops packets from {source}: {what}"


def _ways(netlink: Netlink, destination: IPAddress) -> set[int]:
    """The indexes of the links by which packets to that address may leave; none without a route."""
    try:
        [(_, payload)] = netlink.dump(routes.get_route(destination))
    except KernelError:
        return set()
    told = values(payload, routes.ROUTE.size)
    if routes.RTA_OIF in told:
        return {struct.unpack("=I", told[routes.RTA_OIF])[0]}
    several = told.get(routes.RTA_MULTIPATH, b"")
    found = set()
    while len(several) >= 8:  # rtnexthop: length, flags, hops, index
        length, index = struct.unpack_from("=HxxI", several)
        found.add(index)
        several = several[max((length + 3) & ~3, 8) :]
    return found
