"""A host with its daemon, and the containers on it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pytest_netns import Netns, NetnsFactory

from lab.daemon import Answer, Daemon
from lab.errors import LabError
from lab.underlay import Place, Trouble

OVERLAY = "overlay"
# The kernel has one boot id for all namespaces; each host is shown a file in its place.
_BOOTED = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"'


@dataclass(eq=False)
class Container:
    """A namespace that is up on networks of its host. `addresses` are those of the first of them, by IP version."""

    name: str
    host: Host
    netns: Netns
    attachments: list[dict[str, Any]]

    @property
    def addresses(self) -> dict[int, str]:
        if not self.attachments:
            return {}
        found = [ip_interface(one).ip for one in self.attachments[0]["addresses"]]
        return {one.version: str(one) for one in found}

    def policy(self, *, network: str = OVERLAY, **policy: Any) -> Answer:
        """Replace its policy on a network, and on all others by their default; returns the answer to that."""
        return done(self.host.daemon.policy(self.name, **{network: policy}))

    def down(self) -> None:
        """Take it down and end its namespace. What clients said of it stays, as they would want."""
        done(self.host.daemon.down(self.name))
        self.netns.close()
        self.host.containers.pop(self.name, None)

    def remove(self) -> None:
        """As `down`, and have its config and policy forgotten, so that another host can have one of its name."""
        self.down()
        done(self.host.daemon.delete(f"/containers/{self.name}"))


@dataclass(eq=False)
class Host:
    """A machine on the underlay with its daemon. `address` is that by which the other hosts reach it."""

    place: Place
    netns: Netns
    daemon: Daemon
    address: str
    factory: NetnsFactory
    containers: dict[str, Container] = field(default_factory=dict)
    trouble: Trouble = field(default_factory=Trouble)
    without_etcd: bool = False

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def addresses(self) -> dict[int, str]:
        """On the underlay, by IP version."""
        return self.place.addresses

    @property
    def boot_id(self) -> Path:
        return self.daemon.folder / "boot_id"

    @property
    def runs(self) -> bool:
        """Whether its daemon does."""
        return self.daemon.process is not None and self.daemon.process.poll() is None

    def boot(self) -> None:
        """Have the daemon see another boot from its next start on."""
        self.boot_id.write_text(f"{uuid.uuid4()}\n")

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon."""
        before = ["unshare", "--mount", "sh", "-c", _BOOTED, "sh", str(self.boot_id)]
        self.daemon.start(wait=wait, before=before)

    def container(
        self, name: str, labels: Mapping[str, str] | None = None, networks: Sequence[Any] = (OVERLAY,)
    ) -> Container:
        """A container that is up on these networks, items being what `attach_to` takes. Raises LabError."""
        config = {"attach_to": list(networks), "labels": dict(labels or {})}
        done(self.daemon.put(f"/containers/{name}/config", config))
        netns = self.factory.make(name)
        try:
            told = done(self.daemon.up(name, netns)).body
        except BaseException:
            netns.close()
            raise
        made = self.containers[name] = Container(name, self, netns, told["attachments"])
        return made


def done(answer: Answer) -> Answer:
    """The answer. Raises LabError when it is a refusal."""
    if answer.status >= 300:
        raise LabError(f"the daemon answered {answer.status}: {answer.error['message']}")
    return answer
