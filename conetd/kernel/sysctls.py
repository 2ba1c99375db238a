"""How to read and write sysctls below /proc/sys/net, of the calling thread's network namespace."""

from __future__ import annotations

import errno
import os
from functools import cache

from conetd.errors import Invalid, KernelError

_ROOT = "/proc/sys/net/"


def read(path: str) -> str | None:
    """The value, with single spaces between its fields; None when there is no such sysctl (here, now)."""
    try:
        fd = os.open(_checked(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise KernelError("read", f"sysctl net/{path}", err.errno or 0) from err
    try:
        return " ".join(os.read(fd, 4096).decode().split())
    except OSError as err:
        raise KernelError("read", f"sysctl net/{path}", err.errno or 0) from err
    finally:
        os.close(fd)


def write(path: str, value: str) -> None:
    """Set the value. What the kernel lacks for good, as `lacks` says, is passed over. Raises KernelError."""
    try:
        fd = os.open(_checked(path), os.O_WRONLY | os.O_CLOEXEC)
    except OSError as err:
        if err.errno == errno.ENOENT and lacks(path):
            return
        raise KernelError("set", f"sysctl net/{path} to {value}", err.errno or 0) from err
    try:
        os.write(fd, value.encode())
    except OSError as err:
        raise KernelError("set", f"sysctl net/{path} to {value}", err.errno or 0) from err
    finally:
        os.close(fd)


def lacks(path: str) -> bool:
    """Whether no interface of this kernel has such a sysctl: all of IPv6 where it does not speak that, and forwarding
    per interface, which IPv6 has since Linux 6.17; before it the global switch does it.
    """
    if not path.startswith("ipv6/"):
        return False
    return not has_ipv6() or (path.endswith("/force_forwarding") and not _has_force_forwarding())


@cache
def _has_force_forwarding() -> bool:
    return os.path.exists(_ROOT + "ipv6/conf/all/force_forwarding")  # noqa: PTH110


@cache
def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all (`ipv6.disable=1` at boot takes it away for good)."""
    return os.path.isdir(_ROOT + "ipv6")  # noqa: PTH112


def _checked(path: str) -> str:
    # A plan's path must not lead out of /proc/sys/net, whatever an interface is called.
    if path.startswith("/") or ".." in path.split("/"):
        raise Invalid(f"sysctl {path!r} does not lie below /proc/sys/net")
    return _ROOT + path
