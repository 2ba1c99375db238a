"""Which handles and names are allowed, and which kernel names follow from them."""

from __future__ import annotations

import base64
import hashlib
import re

from conetd.errors import Invalid

HANDLE = re.compile(r"[A-Za-z0-9._:@-]{1,255}")
NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# linux/if.h: IFNAMSIZ is 16 with the NUL; "/", ":" and white space are refused by dev_valid_name()
INTERFACE_NAME = re.compile(r"[A-Za-z0-9._-]{1,15}")
KEY_LENGTH = 12


def check_handle(handle: str) -> str:
    """Return the handle. Raises Invalid unless it is 1-255 of [A-Za-z0-9._:@-] and neither "." nor ".."."""
    if HANDLE.fullmatch(handle) and handle not in (".", ".."):
        return handle
    raise Invalid(
        f"handle {handle!r} is not allowed: 1 to 255 of A-Z a-z 0-9 . _ : @ -, and not . or ..",
        fields={"handle": f"not allowed: {handle!r}"},
    )


def is_interface_name(name: str) -> bool:
    """Whether the kernel takes this as the name of a link, and it is none that means something to it."""
    return bool(INTERFACE_NAME.fullmatch(name)) and name not in (".", "..", "lo", "all", "default")


def _digest(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:KEY_LENGTH]


def network_key(network: str) -> str:
    """12 characters of a-z2-7 that stand for the network in kernel names; the same in every run."""
    return _digest("network", network)


def attachment_key(network: str, handle: str) -> str:
    """12 characters of a-z2-7 that stand for the attachment in kernel names; the same in every run."""
    return _digest("attachment", network, handle)


def log_prefix(handle: str) -> str:
    """What precedes each log record of a container: the first 28 bytes of its handle and a space.

    Garden's form; the kernel's limit is 29 bytes in xt_LOG and 63 in NFLOG.
    """
    return handle.encode()[:28].decode(errors="ignore") + " "
