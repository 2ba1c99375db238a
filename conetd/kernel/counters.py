"""How many bytes have passed an interface inside a container's network namespace."""

from __future__ import annotations

import errno
from pathlib import Path

from conetd.driver import Namespace
from conetd.errors import KernelError
from conetd.kernel.namespaces import inside

_TABLE = Path("/proc/thread-self/net/dev")  # of the namespace the reading thread is in
_SENT = 8  # column of the bytes sent; the first is that of the bytes received, see dev_seq_printf_stats()


def received_and_sent(netns: Namespace, interface: str) -> tuple[int, int]:
    """Bytes the interface has received and sent since it was made. Not for the main thread.

    Raises KernelError when there is no such interface.
    """
    with inside(netns):
        lines = _TABLE.read_bytes().split(b"\n")
    # bytes: whoever rules the container names its interfaces, and a name need be no text
    for line in lines:
        name, colon, numbers = line.partition(b":")
        if colon and name.strip() == interface.encode():
            columns = numbers.split()
            return int(columns[0]), int(columns[_SENT])
    raise KernelError("get", f"link '{interface}'", errno.ENODEV)
