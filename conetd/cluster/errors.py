"""What can go wrong with etcd, one class per decision a caller can take."""

from __future__ import annotations

from collections.abc import Mapping

from conetd.errors import ConetError, Unavailable


class EtcdDown(Unavailable):
    """No member of etcd carries this out now; the message has the reason of each that was asked.

    A commit that ends so may have been carried out all the same.
    """

    @classmethod
    def of(cls, reasons: Mapping[str, str]) -> EtcdDown:
        """The error for endpoints that all failed, each for its reason."""
        return cls(f"etcd does not answer: {'; '.join(f'{url}: {reason}' for url, reason in reasons.items())}")


class EtcdRefused(ConetError):
    """etcd answered and will not do it, whichever member is asked: wrong password, no permission, too large."""

    status = 502
    code = "cluster_refused"


class LeaseGone(EtcdRefused):
    """The lease that a key was to hang on has expired or was revoked."""


class Compacted(ConetError):
    """What happened since the revision asked for is forgotten: list anew.

    `revision` is the oldest that is still known, 0 where etcd does not say.
    """

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class MemberFailed(Exception):
    """One member did not carry it out, and another may. Does not leave `conetd.cluster`."""

    def __init__(self, reason: str, *, alive: bool, unsure: bool) -> None:
        super().__init__(reason)
        self.alive = alive
        """Something answers there: asking again in a moment may help."""
        self.unsure = unsure
        """It may have been carried out all the same."""


class TokenRefused(Exception):
    """The user has to prove anew who it is. Does not leave `conetd.cluster`."""
