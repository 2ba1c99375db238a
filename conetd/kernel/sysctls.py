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
    """Set the value. On a kernel without IPv6 whatever lies below `ipv6/` is passed over. Raises KernelError."""
    try:
        fd = os.open(_checked(path), os.O_WRONLY | os.O_CLOEXEC)
    except OSError as err:
        if err.errno == errno.ENOENT and path.startswith("ipv6/") and not has_ipv6():
            return
        raise KernelError("set", f"sysctl net/{path} to {value}", err.errno or 0) from err
    try:
        os.write(fd, value.encode())
    except OSError as err:
        raise KernelError("set", f"sysctl net/{path} to {value}", err.errno or 0) from err
    finally:
        os.close(fd)


@cache
def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all (`ipv6.disable=1` at boot takes it away for good)."""
    return os.path.isdir(_ROOT + "ipv6")  # noqa: PTH112


def _checked(path: str) -> str:
    # A plan's path must not lead out of /proc/sys/net, whatever an interface is called.
    if path.startswith("/") or ".." in path.split("/"):
        raise Invalid(f"sysctl {path!r} does not lie below /proc/sys/net")
    return _ROOT + path
