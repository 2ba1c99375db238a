"""Host ports held by bound sockets, in a namespace: conflicts, their holders, and sockets kept over a restart."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from ipaddress import ip_address
from typing import IO, cast

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.errors import Conflict, Invalid
from conetd.kernel.hostports import HostPorts, fdname
from conetd.model import TCP, UDP, HostPort

LISTEN = """
import socket, sys
family, kind, address = (socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET), sys.argv[2], sys.argv[1]
sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
sock.bind((address, 8080))
if kind == "tcp": sock.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    host = netns.make("host")
    host.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    host.run("ip", "address", "add", "192.0.2.2/32", "dev", "lo")
    host.run("ip", "address", "add", "2001:db8::1/128", "dev", "lo", "nodad")
    return host


@pytest.fixture
def ports() -> HostPorts:
    return HostPorts()


@pytest.fixture(autouse=True)
def _closing(ports: HostPorts) -> object:
    with contextlib.closing(ports):
        yield


def port(host_ip: str | None = None, protocol: int = TCP, number: int = 8080) -> HostPort:
    return HostPort(protocol, number, 80, ip_address(host_ip) if host_ip else None)


def can_bind(family: int, kind: int, address: str, number: int = 8080) -> bool:
    with socket.socket(family, kind) as sock:
        try:
            sock.bind((address, number))
        except OSError:
            return False
        return True


@pytest.mark.parametrize(("protocol", "kind"), [(TCP, socket.SOCK_STREAM), (UDP, socket.SOCK_DGRAM)])
@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "::"), (socket.AF_INET6, "::1")],
)
def test_nobody_else_can_bind_a_held_port(
    host: Netns, ports: HostPorts, protocol: int, kind: int, family: int, address: str
) -> None:
    host.call(ports.bind, port(protocol=protocol), "web")
    assert not host.call(can_bind, family, kind, address)


def test_a_port_held_on_one_address_is_free_on_another(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port("192.0.2.1"), "web")
    host.call(ports.bind, port("192.0.2.2"), "db")
    assert not host.call(can_bind, socket.AF_INET, socket.SOCK_STREAM, "192.0.2.2")


def test_a_port_held_on_an_ipv6_address_is_free_for_ipv4(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port("2001:db8::1"), "web")
    assert host.call(can_bind, socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0")


def test_tcp_and_udp_are_apart(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port(), "web")
    host.call(ports.bind, port(protocol=UDP), "dns")
    assert [held.owner for held in ports.held()] == ["web", "dns"]


def test_nobody_can_connect_to_a_held_port(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port(), "web")
    with pytest.raises(ConnectionRefusedError):
        host.call(socket.create_connection, ("127.0.0.1", 8080), 5)


@pytest.mark.parametrize("second", [port(), port("192.0.2.1"), port("2001:db8::1")])
def test_a_conflict_names_the_container_that_holds_the_port(host: Netns, ports: HostPorts, second: HostPort) -> None:
    host.call(ports.bind, port(), "web")
    with pytest.raises(Conflict, match=r'^host port 8080/tcp is held by container "web"$'):
        host.call(ports.bind, second, "other")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_conflict_names_the_process_that_holds_the_port(
    host: Netns, ports: HostPorts, address: str, protocol: str
) -> None:
    process = host.popen([sys.executable, "-c", LISTEN, address, protocol], stdin=-1, stdout=-1, text=True)
    assert cast(IO[str], process.stdout).readline() == "ready\n"
    wanted = port(protocol={"tcp": TCP, "udp": UDP}[protocol])
    with pytest.raises(Conflict, match=rf"^host port 8080/{protocol} is held by process {process.pid} \(python"):
        host.call(ports.bind, wanted, "web")


def test_a_conflict_with_what_no_process_shows_says_so(host: Netns, ports: HostPorts) -> None:
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 8080))  # does not listen: in no table of /proc/net
        with pytest.raises(Conflict, match="is held by a socket of this host"):
            host.call(ports.bind, port(), "web")


def test_a_conflict_with_a_connection_that_has_just_ended_says_so(host: Netns, ports: HostPorts) -> None:
    def connection() -> None:
        with socket.create_server(("127.0.0.1", 8080)) as server, socket.create_connection(("127.0.0.1", 8080)) as one:
            other, _ = server.accept()
            other.close()  # who closes first is left waiting
            one.recv(1)

    host.call(connection)
    with pytest.raises(Conflict, match=r"has just ended \(TIME_WAIT\)"):
        host.call(ports.bind, port(), "web")


def test_trying_a_busy_port_tells_so(host: Netns, ports: HostPorts) -> None:
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 8080))
        assert host.call(ports.try_bind, port(), "web") is False
    host.call(ports.bind, port(number=8081), "web")
    assert host.call(ports.try_bind, port(number=8081), "db") is False
    assert host.call(ports.try_bind, port(number=8082), "db") is True


def test_binding_twice_for_the_same_owner_is_once(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port(), "web")
    host.call(ports.bind, port(), "web")
    ports.release(port())
    assert host.call(can_bind, socket.AF_INET6, socket.SOCK_STREAM, "::")


def test_releasing_what_is_not_held_is_fine(host: Netns, ports: HostPorts) -> None:
    ports.release(port())
    assert ports.held() == []


def test_a_busy_port_holds_nothing_afterwards(host: Netns, ports: HostPorts) -> None:
    with host.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 8080))
        assert host.call(ports.try_bind, port(), "web") is False
    assert (ports.held(), dict(ports.sockets())) == ([], {})


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8::7", "fe80::7"])
def test_an_address_that_is_not_local_is_refused(host: Netns, ports: HostPorts, address: str) -> None:
    with pytest.raises(Invalid, match=f"host_ip {address} is not an address of this host") as refused:
        host.call(ports.bind, port(address), "web")
    assert list(refused.value.fields) == ["host_ip"]


def test_without_ipv6_a_port_is_held_for_ipv4(host: Netns, ports: HostPorts, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    class Ipv4Only(real):  # type: ignore[valid-type,misc]
        """A host without IPv6, which this kernel cannot be made to be for one namespace."""

        def __init__(self, family: int = -1, *args: object, **kwargs: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", Ipv4Only)
    host.call(ports.bind, port(), "web")
    assert not host.call(can_bind, socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0")


@pytest.mark.parametrize("wanted", [port(), port("192.0.2.1"), port("2001:db8::1", UDP)])
def test_a_socket_kept_over_a_restart_holds_the_port_all_the_while(
    host: Netns, ports: HostPorts, wanted: HostPort
) -> None:
    host.call(ports.bind, wanted, "web")
    kept = {name: os.dup(fd) for name, fd in ports.sockets().items()}
    ports.close()
    assert not host.call(can_bind, socket.AF_INET6, socket.SOCK_STREAM if wanted.protocol == TCP else 2, "::")
    with contextlib.closing(HostPorts(kept)) as later:
        assert later.held() == []
        host.call(later.bind, wanted, "web")
        assert [held.port for held in later.held()] == [wanted]
        assert dict(later.sockets()) == kept


def test_what_was_kept_and_is_not_asked_for_is_given_back_on_demand(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port(), "web")
    kept = {name: os.dup(fd) for name, fd in ports.sockets().items()}
    ports.close()
    dropped: list[str] = []
    with contextlib.closing(HostPorts(kept, drop=dropped.append)) as later:
        later.release_unclaimed()
        assert host.call(can_bind, socket.AF_INET6, socket.SOCK_STREAM, "::")
    assert dropped == ["hostport-tcp-8080"]


def test_what_was_kept_gives_way_to_another_mapping_of_the_port(host: Netns, ports: HostPorts) -> None:
    host.call(ports.bind, port(), "web")
    kept = {name: os.dup(fd) for name, fd in ports.sockets().items()}
    ports.close()
    with contextlib.closing(HostPorts(kept)) as later:
        host.call(later.bind, port("192.0.2.1"), "db")
        assert list(later.sockets()) == ["hostport-tcp-8080-192.0.2.1"]


def test_a_descriptor_that_is_no_host_port_is_closed_and_dropped() -> None:
    dropped: list[str] = []
    reading, writing = os.pipe()
    stranger = socket.socket(socket.AF_UNIX).detach()
    HostPorts({"hostport-tcp-1": reading, "hostport-tcp-2": stranger}, drop=dropped.append)
    os.close(writing)
    assert dropped == ["hostport-tcp-1", "hostport-tcp-2"]
    for fd in (reading, stranger):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_each_socket_is_reported_while_it_is_held(host: Netns) -> None:
    told: list[str] = []
    with contextlib.closing(
        HostPorts(keep=lambda name, fd: told.append(f"keep {name}"), drop=lambda name: told.append(f"drop {name}"))
    ) as ports:
        host.call(ports.bind, port(), "web")
        host.call(ports.bind, port(), "web")
        ports.release(port())
        ports.release(port())
    assert told == ["keep hostport-tcp-8080", "drop hostport-tcp-8080"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (fdname(TCP, None, 8080), "hostport-tcp-8080"),
        (fdname(UDP, ip_address("192.0.2.1"), 53), "hostport-udp-53-192.0.2.1"),
        (fdname(TCP, ip_address("2001:db8::1"), 80), "hostport-tcp-80-2001_db8__1"),
    ],
)
def test_a_kept_socket_has_a_name_the_service_manager_takes(name: str, expected: str) -> None:
    assert name == expected
