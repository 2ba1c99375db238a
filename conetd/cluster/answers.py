"""What an answer of etcd's gateway is: a document, a refusal, or a member that cannot do it now."""

from __future__ import annotations

import json

from conetd.cluster.errors import Compacted, EtcdRefused, LeaseGone, MemberFailed, TokenRefused
from conetd.model import JSON

# google.golang.org/grpc/codes
_INVALID, _NOT_FOUND, _EXHAUSTED, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 8, 11, 16
_PASSING = frozenset({1, 2, 4, 13, 14})  # cancelled, unknown, deadline exceeded, internal, unavailable
_TOKEN_TOO_OLD = ("user name is empty", "auth store is old")


def read_answer(status: int, raw: bytes, url: str) -> JSON:
    """The document of an answer, a stream's message without its envelope; raises what `failure` gives."""
    try:
        document = json.loads(raw)
        assert isinstance(document, dict)
    except (ValueError, AssertionError):
        said = raw[:80].decode(errors="replace").strip()
        if status >= 500:
            raise MemberFailed(f"HTTP {status} {said}", alive=True, unsure=True) from None
        raise EtcdRefused(f"{url} answers HTTP {status} {said!r}: is it etcd 3.4 or later?") from None
    if status != 200 or "error" in document:
        raise failure(document, url)
    result: JSON = document.get("result", document)
    return result


def failure(document: JSON, url: str) -> Exception:
    """What an answer that is an error has to be raised as.

    MemberFailed where another member may do better, TokenRefused where a fresh token may, else what etcd refuses.
    """
    inner = document["error"] if isinstance(document.get("error"), dict) else document  # so in a stream
    code = inner.get("code", inner.get("grpc_code", 0))
    said = str(inner.get("message") or inner.get("error") or document)
    if code == _UNAUTHENTICATED or (code == _INVALID and any(text in said for text in _TOKEN_TOO_OLD)):
        return TokenRefused(f"etcd at {url} refuses: {said}")
    if code in _PASSING or (code == _EXHAUSTED and "too many requests" in said) or "future revision" in said:
        return MemberFailed(said, alive=True, unsure="no leader" not in said)
    if code == _OUT_OF_RANGE:
        return Compacted(f"etcd at {url}: {said}")
    kind = LeaseGone if code == _NOT_FOUND and "lease" in said else EtcdRefused
    return kind(f"etcd at {url} refuses: {said}")
