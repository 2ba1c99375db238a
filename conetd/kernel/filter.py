"""What every packet filter backend promises. nftables and iptables keep it, and pass one suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from conetd.plan import Drift, FilterObject

if TYPE_CHECKING:
    from conetd.kernel.nft.fast_path import FastPath

# NFLOG groups, in the daemon's namespace, that the backends' rules log to and the daemon reads.
NFLOG_ALLOWED = 25443  # a rule with `log` accepted a new connection
NFLOG_DENIED = 25444  # a packet was dropped or rejected, and the policy has `log_denied`, or the rule `log`


class FilterBackend(Protocol):
    """The packet filter as a set of objects, one of each `identity`. Used by one thread at a time."""

    name: str
    """`nftables` or `iptables`."""

    @property
    def fast_path(self) -> FastPath | None:
        """What passes this host beside the filter; None: everything passes through it.

        It is cleared in the transaction of every change to objects in force, and when somebody else has changed the
        filter.
        """

    def apply(self, put: Sequence[FilterObject] = (), drop: Sequence[tuple[str, str]] = ()) -> None:
        """Put objects in place of those of the same identity and remove those of the given identities.

        nftables: one transaction, all or nothing. Twice is once; dropping what is not there is success. An object may
        come before the ones it refers to. What the kernel holds otherwise than remembered (somebody flushed it) is
        read again and the work repeated. Raises KernelError, and then nothing has changed (iptables: per table).
        """

    def held(self, kind: str, key: str) -> FilterObject | None:
        """The object of that identity as last applied or synced by this process, None if there is none."""

    def sync(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """Make the kernel hold exactly these objects and tell what was not so.

        What is as wanted stays untouched: no packet of it is lost. For the start of the daemon, after a migration, and
        whenever `disturbed` says so.
        """

    def check(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """Tell where the kernel does not hold these objects as given. Changes nothing. Others are not looked for."""

    def disturbed(self) -> bool:
        """Whether somebody else may have changed what we hold since the last call. Cheap enough to ask each second."""

    def set_opened(self, version: int, uplinks: Sequence[str]) -> None:
        """Name the interfaces on which only conetd switched forwarding on, for one IP version (4 or 6).

        Packets of that version that come in by one of them and leave by an interface that is none of ours are dropped,
        as the kernel did before: the host does not become a router for strangers. Packets from or to our interfaces
        pass. Naming the same again costs nothing. Before the first `sync` or `apply` it is only remembered.
        """

    def remove_all(self) -> None:
        """Remove everything of ours from the kernel's filter. For changing the backend and for tests."""

    def close(self) -> None:
        """Release sockets and workers; the kernel keeps the rules."""
