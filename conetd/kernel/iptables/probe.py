"""Whether legacy tables can be had here."""

from __future__ import annotations

import ctypes
import importlib.util
import socket
import struct

_GET_REVISION_TARGET = 67  # IPT_SO_GET_REVISION_TARGET
_REVISION = struct.Struct("=29sB")  # struct xt_get_revision
_libc = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Whether python-iptables is installed and the kernel answers for legacy tables now. Creates no table."""
    if importlib.util.find_spec("iptc") is None:
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            asked = ctypes.create_string_buffer(_REVISION.pack(b"REJECT", 0), _REVISION.size)
            size = ctypes.c_uint32(_REVISION.size)
            found = _libc.getsockopt(raw.fileno(), socket.IPPROTO_IP, _GET_REVISION_TARGET, asked, ctypes.byref(size))
            return bool(found == 0)
    except PermissionError:
        return False
