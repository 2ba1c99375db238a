"""A client of etcd: keys are read, committed, leased and watched, on whichever member answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from conetd.cluster import messages
from conetd.cluster.connections import Tls
from conetd.cluster.errors import EtcdDown, LeaseGone, MemberFailed
from conetd.cluster.gateway import Credentials, Gateway
from conetd.cluster.messages import Committed, Compare, KeyValue, Operation
from conetd.cluster.watch import Watch
from conetd.errors import Invalid
from conetd.model import JSON
from conetd.settings import ClusterSettings

_PAGE = 1000  # keys


@dataclass(frozen=True, slots=True)
class Status:
    """The etcd that answered, by the number that is its own, where, and whether that member knows a leader."""

    cluster_id: int
    endpoint: str
    leader: bool


class Etcd:
    """etcd, by the URLs of its members. From any thread; a context manager that closes it.

    Each call is carried out on the member that answered last, or on the next that does; where one fails after
    `timeout_s` seconds, the next is asked. A call takes three times that at most. It raises EtcdDown when none carries
    it out, and EtcdRefused.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        credentials: Credentials | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        """Connects to nobody yet; the files of `tls` are read now. Raises Invalid for those of no use."""
        self._gateway = Gateway(endpoints, tls=tls, credentials=credentials, timeout_s=timeout_s)

    def __enter__(self) -> Etcd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connections. Watches stay open until they are closed."""
        self._gateway.connections.close()

    def get(self, key: str) -> KeyValue | None:
        """The key as it stands now, None where there is none."""
        answer, _ = self._gateway.call("kv/range", {"key": messages.encode(key)})
        return next(iter(messages.key_values(answer)), None)

    def list(self, prefix: str, revision: int = 0) -> tuple[int, tuple[KeyValue, ...]]:
        """All keys that begin with the prefix, sorted, as they stood at the revision (0: now), and that revision.

        Raises Compacted when that is forgotten, which may happen under a long list: ask for it anew.
        """
        body = messages.below(prefix) | {"limit": str(_PAGE), "revision": str(revision)}
        found: list[KeyValue] = []
        while True:
            answer, _ = self._gateway.call("kv/range", body)
            revision = revision or messages.revision_of(answer)
            found += messages.key_values(answer)
            if not answer.get("more"):
                return revision, tuple(found)
            body |= {"key": messages.encode(found[-1].key + "\0"), "revision": str(revision)}

    def commit(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Committed:
        """Carry out all of `then` if all of `compare` hold, else all of `otherwise`; nobody sees a part of it.

        It may have been carried out although EtcdDown is raised, and an attempt that got no answer is repeated: see
        `Committed.repeated`. etcd refuses more than 128 of each of the three (its --max-txn-ops), bodies above 1.5 MB,
        and one key put twice. Raises LeaseGone when a put names a lease that is no more.
        """
        answer, repeated = self._gateway.call("kv/txn", messages.transaction(compare, then, otherwise))
        return messages.committed(answer, repeated=repeated)

    def grant(self, ttl_s: int) -> int:
        """A lease that ends after so many seconds without `keep_alive`; etcd may make them more."""
        answer, _ = self._gateway.call("lease/grant", {"TTL": str(ttl_s)})
        return messages.number(answer, "ID")

    def keep_alive(self, lease: int) -> int:
        """Let the lease's time begin anew. The seconds it has then; 0: it is gone, and its keys with it."""
        answer, _ = self._gateway.call("lease/keepalive", {"ID": str(lease)})
        return messages.number(answer, "TTL")

    def revoke(self, lease: int) -> None:
        """End the lease and delete its keys. One that is gone is success."""
        try:
            self._gateway.call("lease/revoke", {"ID": str(lease)})
        except LeaseGone:
            return

    def watch(self, prefix: str, revision: int = 0) -> Watch:
        """What changes below the prefix from that revision on, it included (0: from now on). To be closed."""
        return Watch(self._gateway, prefix, revision)

    def status(self) -> Status:
        """How etcd is: told by a member that knows a leader, if one can be reached, else by one that does not."""
        reasons: dict[str, str] = {}
        lost: Status | None = None
        for endpoint in self._gateway.in_turn():
            try:
                answer = self._gateway.ask(endpoint, "maintenance/status", {}, self._gateway.timeout_s, leader=False)
            except MemberFailed as err:
                reasons[endpoint.url] = str(err)
                continue
            header: JSON = answer.get("header", {})
            told = Status(
                messages.number(header, "cluster_id"), endpoint.url, leader=messages.number(answer, "leader") != 0
            )
            if told.leader:
                return told
            lost = lost or told
        if lost is None:
            raise EtcdDown.of(reasons)
        return lost


def open_etcd(settings: ClusterSettings, timeout_s: float = 2.0) -> Etcd:
    """The cluster's etcd as the settings say it; its files are read now. Raises Invalid for those of no use."""
    credentials = None
    if settings.user is not None and settings.password_file is not None:
        try:
            password = settings.password_file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as err:
            reason = getattr(err, "strerror", None) or str(err)
            raise Invalid(f"cluster.password_file: {settings.password_file} cannot be read: {reason}") from err
        credentials = Credentials(settings.user, password)
    tls = Tls(settings.ca, settings.cert, settings.key)
    return Etcd(settings.etcd, tls=tls, credentials=credentials, timeout_s=timeout_s)
