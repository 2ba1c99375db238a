"""Which errors conetd raises, one class per decision a caller can take.

Every error carries an HTTP `status`, a stable machine-readable `code` and, where single fields of a
document are to blame, `fields`: path of the field (`attach_to[1].network`) to what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class ConetError(Exception):
    """Anything conetd itself reports. `str(error)` is a whole sentence for the person who asked."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, str] = dict(fields or {})
        self.details: dict[str, Any] = {}
        """What else the caller is told, beside code, message and fields: JSON."""


class Invalid(ConetError):
    """The document is wrong; sending it again unchanged will fail again."""

    status = 422
    code = "invalid"


class NotFound(ConetError):
    """The thing named in the path does not exist."""

    status = 404
    code = "not_found"


class Conflict(ConetError):
    """Somebody else holds what was asked for, or the state forbids it. The message names the holder."""

    status = 409
    code = "conflict"


class Exhausted(ConetError):
    """Nothing left to allocate: addresses, ports of the pool, ports of a bridge."""

    status = 507
    code = "exhausted"


class Unavailable(ConetError):
    """conetd cannot do this now, but may soon: it is stopping, or not yet started."""

    status = 503
    code = "unavailable"


class DriverError(ConetError):
    """A driver could not do its work, or broke its contract."""

    status = 502
    code = "driver_error"


class DriverTimeout(DriverError):
    """A driver's call did not end within the setting `driver_timeout`."""

    status = 504
    code = "driver_timeout"


class KernelError(DriverError):
    """The kernel refused an operation.

    `errno` is the kernel's positive number, `operation` what was attempted ("create", "delete" …) and
    `object` on what ("link cv1234", "nftables transaction").
    """

    code = "kernel_error"

    def __init__(self, operation: str, object: str, errno: int, detail: str = "") -> None:
        reason = os.strerror(errno) + (f" ({detail})" if detail else "")
        super().__init__(f"could not {operation} {object}: {reason}")
        self.operation = operation
        self.object = object
        self.errno = errno
        self.detail = detail
