"""How a test gets network namespaces of its own, and how they vanish, also when the test run is killed.

One thread per namespace does the trick. It unshares its network namespace and stays; every long-lived process is
started by it and asks the kernel for SIGKILL when that thread ends (PR_SET_PDEATHSIG, by setpriv). So whatever ends
the thread, the end of the test or a kill -9 of pytest, ends the processes, and with the last of them the namespace
and its interfaces. Nothing is ever named under /run/netns.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
_IFF_UP = 0x1
_IFNAMSIZ = 16  # with the NUL

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare came with Python 3.12


def _syscall(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _die_with_parent(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The command that is killed as soon as the thread that starts it ends."""
    program = os.fspath(argv[0])
    if shutil.which(program) is None:  # asked here, because setpriv would answer with exit code 127
        raise FileNotFoundError(f"no program {program} to run in the namespace")
    return ["setpriv", "--pdeathsig", "KILL", "--", program, *(os.fspath(one) for one in argv[1:])]


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xH", request)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _sysctl_file(path: str) -> Path:
    # net/ipv4/conf/eth0.5/forwarding: with a slash in it the dots belong to names, as with sysctl(8)
    return Path("/proc/sys", path if "/" in path else path.replace(".", "/"))


class Netns:
    """One network namespace. Made by `NetnsFactory.make`; usable until its factory is closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[Any]] = []
        self._home = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"netns-{name}")
        try:
            self._holder = self._home.submit(self._begin).result()
            self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._home.shutdown()
            raise
        self.inode = os.fstat(self.fd).st_ino

    def __repr__(self) -> str:
        return f"<Netns {self.name} pid={self.pid} inode={self.inode}>"

    @property
    def pid(self) -> int:
        """A process that lives in the namespace and does nothing: `/proc/PID/ns/net` is the namespace."""
        return self._holder.pid

    def _begin(self) -> subprocess.Popen[bytes]:
        _syscall("unshare", _CLONE_NEWNET)
        for which in ("all", "default"):  # else a new IPv6 address is unusable for a second or two
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                _sysctl_file(f"net/ipv6/conf/{which}/accept_dad").write_text("0")
        _loopback_up()
        idle = _die_with_parent(["sleep", "infinity"])
        # in a session of its own: a Ctrl-C at the terminal is for what is in the foreground there
        return subprocess.Popen(idle, stdin=subprocess.DEVNULL, start_new_session=True)

    def run(self, *argv: str | os.PathLike[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` inside, with check, text and captured output unless told otherwise, for 60 s at most.

        A failure carries what the program said on stderr as a note.
        """
        if "stdout" not in kwargs and "stderr" not in kwargs:
            kwargs.setdefault("capture_output", True)
        options = {"check": True, "text": True, "timeout": 60} | kwargs
        try:
            return self.call(subprocess.run, _die_with_parent(argv), **options)  # type: ignore[arg-type]
        except subprocess.CalledProcessError as err:
            err.cmd = [os.fspath(one) for one in argv]
            err.add_note(f"in namespace {self.name}: {err.stderr or err.stdout or 'it said nothing'}")
            raise

    def json(self, *argv: str | os.PathLike[str], **kwargs: Any) -> Any:
        """What the program printed, parsed as JSON (`None` when it printed nothing, as `ip -j` may)."""
        printed = self.run(*argv, **kwargs).stdout
        return json.loads(printed) if printed.strip() else None

    def popen(self, argv: Sequence[str | os.PathLike[str]], **kwargs: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside, in a session of its own. The process is killed at the end of the test, or with
        pytest.
        """
        command = _die_with_parent(argv)
        options = {"start_new_session": True} | kwargs
        process: subprocess.Popen[Any] = self._home.submit(lambda: subprocess.Popen(command, **options)).result()
        self._processes.append(process)
        return process

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns, or raises, on a fresh thread inside the namespace.

        Sockets it opens stay in the namespace and keep it alive until they are closed.
        """
        with ThreadPoolExecutor(max_workers=1, initializer=self._enter) as thread:
            return thread.submit(function, *args, **kwargs).result()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the namespace for the length of the block."""
        with open("/proc/thread-self/ns/net") as before:  # noqa: PTH123
            self._enter()
            try:
                yield
            finally:
                _syscall("setns", before.fileno(), _CLONE_NEWNET)

    def sysctl(self, path: str, value: object = None) -> str:
        """The sysctl's value inside, after writing `value` if one is given. `net.ipv4.ip_forward` or with slashes."""

        def access() -> str:
            file = _sysctl_file(path)
            if value is not None:
                file.write_text(str(value))
            return file.read_text().strip()

        return self.call(access)

    def connect(
        self,
        other: Netns,
        addr: str | None = None,
        peer_addr: str | None = None,
        *,
        name: str | None = None,
        peer_name: str | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Join both namespaces by a veth pair, both ends up, with these addresses (`192.0.2.1/24`).

        `extra` maps further addresses of this end to further addresses of the other. Unnamed ends are called after
        the namespace they lead to.
        """
        name = name or other.name[: _IFNAMSIZ - 1]
        peer_name = peer_name or self.name[: _IFNAMSIZ - 1]
        pairs = {addr: peer_addr} | dict(extra or {})
        self._ip(f"link add {name} type veth peer name {peer_name} netns {other.pid}")
        self._ip(*(_address(one, name) for one in pairs if one), f"link set {name} up")
        other._ip(*(_address(one, peer_name) for one in pairs.values() if one), f"link set {peer_name} up")

    def _ip(self, *commands: str) -> None:
        self.run("ip", "-batch", "-", input="\n".join(commands) + "\n")

    def _enter(self) -> None:
        _syscall("setns", self.fd, _CLONE_NEWNET)

    def close(self) -> None:
        """Kill what runs inside and let the namespace go. Twice is once."""
        if self.fd < 0:
            return
        for process in (*self._processes, self._holder):
            process.kill()
        for pid in processes_in(self.inode):  # whatever those started in turn
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (*self._processes, self._holder):
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        os.close(self.fd)
        self.fd = -1
        self._home.shutdown()


def _address(address: str, link: str) -> str:
    return f"address add {address} dev {link}" + (" nodad" if ":" in address else "")


def processes_in(inode: int) -> list[int]:
    """The processes, except this one, whose network namespace has this inode number."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # ended since, or is not ours to look at
                if (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
    return found


class NetnsFactory:
    """Makes namespaces and removes them again: the fixture's value, and a context manager for fixtures of your own."""

    def __init__(self) -> None:
        self._made: list[Netns] = []

    def __enter__(self) -> NetnsFactory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def make(self, name: str = "netns") -> Netns:
        """A fresh namespace with `lo` up and IPv6 addresses usable at once. The name is for the reader only."""
        made = Netns(name)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Remove everything made so far, the latest first; what fails is raised after the rest is done."""
        failures: list[Exception] = []
        while self._made:
            try:
                self._made.pop().close()
            except Exception as err:
                failures.append(err)
        if failures:
            raise ExceptionGroup("could not remove every namespace", failures)


@functools.cache
def missing() -> str | None:
    """What keeps this process from making network namespaces, or None. Found out by trying."""
    for program in ("ip", "setpriv"):
        if shutil.which(program) is None:
            return f"needs the program {program}"

    def attempt() -> None:
        _syscall("unshare", _CLONE_NEWNET)
        _loopback_up()

    with ThreadPoolExecutor(max_workers=1) as thread:  # the new namespace ends with the thread
        failure = thread.submit(attempt).exception()
    if isinstance(failure, OSError):
        return f"needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make network namespaces: {failure.strerror}"
    if failure is not None:
        raise failure
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what asks for namespaces where none can be made: by a mark, which pytest sums up to one line a file."""
    asking = [item for item in items if {"netns", "netns_module"} & set(getattr(item, "fixturenames", ()))]
    if asking and (reason := missing()) is not None:
        for item in asking:
            item.add_marker(pytest.mark.skip(reason=reason))


def _factory() -> Iterator[NetnsFactory]:
    if (reason := missing()) is not None:  # a test that asks by getfixturevalue carries no mark
        pytest.skip(reason)
    with NetnsFactory() as factory:
        yield factory


@pytest.fixture
def netns() -> Iterator[NetnsFactory]:
    """Makes network namespaces that are gone after the test; without root the test is skipped."""
    yield from _factory()


@pytest.fixture(scope="module")
def netns_module() -> Iterator[NetnsFactory]:
    """As `netns`, for namespaces that all tests of a module share."""
    yield from _factory()
