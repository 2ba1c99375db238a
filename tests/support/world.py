"""A host with an uplink, a daemon on it, and containers: everything the end-to-end tests work with."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_netns import Netns, NetnsFactory

from lab.daemon import PATIENCE_S, Answer, Daemon, eventually
from lab.talk import ask, serving

__all__ = ["HOOK", "PATIENCE_S", "Answer", "Daemon", "World", "ask", "eventually", "open_world", "serving"]

HOOK = Path(__file__).parents[2] / "hook" / "conet-hook"


@dataclass
class World:
    """A host with a daemon, and another machine at its uplink."""

    netns: NetnsFactory
    host: Netns
    outside: Netns
    daemon: Daemon

    def container(self, name: str) -> Netns:
        return self.netns.make(name)

    def remains(self) -> dict[str, Any]:
        """What of conetd is in the host's kernel now: links, rules' elements and chains, rows, listening sockets."""
        links = [one["ifname"] for one in self.host.json("ip", "-j", "link")]
        return {"links": sorted(links), "rules": _rules(self.host), "rows": _rows(self.daemon.database)}


@contextlib.contextmanager
def open_world(
    netns: NetnsFactory, folder: Path, settings: str = "", environment: dict[str, str] | None = None
) -> Iterator[World]:
    """A host with an uplink (192.0.2.1, 2001:db8::1) towards an outside machine (.2), and a daemon not yet started.

    At the end the daemon is stopped, and must not have logged a traceback; whoever provokes one empties its log.
    """
    host, outside = netns.make("host"), netns.make("outside")
    addresses = {"2001:db8::1/64": "2001:db8::2/64"}
    host.connect(outside, "192.0.2.1/24", "192.0.2.2/24", name="up0", peer_name="eth0", extra=addresses)
    host.run("ip", "route", "add", "default", "via", "192.0.2.2")
    host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    daemon = Daemon(host, folder, settings, environment=environment or {})
    yield World(netns, host, outside, daemon)
    if daemon.process is not None and daemon.process.poll() is None:
        assert daemon.stop() == 0, daemon.log
    if (folder / "log").exists():
        assert "Traceback" not in daemon.log, daemon.log


def _rules(host: Netns) -> list[str]:
    listed = host.run("nft", "-s", "list", "ruleset").stdout
    legacy = host.run("sh", "-c", "iptables-legacy-save -t filter 2>/dev/null | grep -v '^#\\|^:' || true").stdout
    return [line.strip() for line in (listed + legacy).splitlines()]


def _rows(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = ("networks", "containers", "attachments", "claims", "policies", "host_ports")
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
