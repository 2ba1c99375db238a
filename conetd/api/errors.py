"""Which refusals the HTTP door itself makes, beside those of the service."""

from __future__ import annotations

from conetd.errors import ConetError, NotFound


class BadRequest(ConetError):
    """The request cannot be read."""

    status = 400
    code = "bad_request"


class MalformedJson(BadRequest):
    """The body is no JSON text. The message says where it ceases to be."""

    code = "malformed_json"


class Forbidden(ConetError):
    """The peer may connect, but not ask this."""

    status = 403
    code = "forbidden"


class UnknownPath(NotFound):
    """Nothing is at this path, whatever the method."""

    code = "unknown_path"


class MethodNotAllowed(ConetError):
    """The path exists for other methods only."""

    status = 405
    code = "method_not_allowed"


class TooLarge(ConetError):
    """The body exceeds what the door takes."""

    status = 413
    code = "too_large"
