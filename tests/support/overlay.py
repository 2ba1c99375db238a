"""A cluster with an overlay, as the tests of the overlay's dataplane share one for each module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pytest_netns import missing as missing_for_namespaces

from lab.cluster import Lab
from lab.daemon import eventually
from lab.etcd import missing as missing_for_etcd
from lab.hosts import Host, done

VNI, PORT = 100, 4789  # of the lab's overlay
SUBNETS = {4: ip_network("10.1.0.0/16"), 6: ip_network("fd00:10:1::/64")}
ANYBODY: dict[str, Any] = {"default_ingress": "allow"}


@contextlib.contextmanager
def open_lab(
    folder: Path, hosts: int = 3, *, rp_filter: int = 1, underlay: int = 4, ttl: int = 20, **policy: Any
) -> Iterator[Lab]:
    """A lab whose hosts are all in the network `overlay`, with this default policy; `rp_filter` is that of every host.

    At the end no daemon may have had a bug to report.
    """
    if reason := missing_for_namespaces() or missing_for_etcd():
        pytest.skip(reason)
    with Lab(hosts, folder, etcd_members=1, ttl=ttl, underlay=underlay) as lab:
        for host in lab.hosts:
            for which in ("all", "default", "eth0"):
                host.netns.sysctl(f"net.ipv4.conf.{which}.rp_filter", rp_filter)
            # else the kernel answers only so many packets a second with a refusal
            host.netns.sysctl("net/ipv4/icmp_ratemask", 0)
            host.netns.sysctl("net/ipv6/icmp/ratelimit", 0)
        eventually(lambda: all(connected(one) for one in lab.hosts), "every daemon has found etcd")
        lab.network(default_policy=policy)
        lab.wait_until_joined()
        yield lab
        for host in lab.hosts:
            assert "Traceback" not in host.daemon.log, host.daemon.log


def connected(host: Host) -> bool:
    """Whether the host's daemon has etcd."""
    return bool(host.daemon.get("/status").body["cluster"]["state"] == "connected")


def lease(host: Host, network: str = "overlay") -> dict[str, Any]:
    """What the host has of the network."""
    found: dict[str, Any] = host.daemon.get("/status").body["cluster"]["networks"][network]["lease"]
    return found


def vtep(host: Host) -> dict[int, str]:
    """The addresses of the host's VTEP: the first of its parts, by IP version."""
    part = lease(host)
    return {4: part["subnet"].partition("/")[0], 6: part["subnet6"].partition("/")[0]}


def vtep_mac(host: Host) -> str:
    """The MAC of the host's VTEP, as the kernel has it."""
    [link] = host.netns.json("ip", "-j", "link", "show", "type", "vxlan")
    return str(link["address"])


def default_policy(lab: Lab, **policy: Any) -> None:
    """Replace the overlay's default policy; returns when every host has it in force."""
    wanted = done(lab.hosts[0].daemon.put("/networks/overlay/default_policy", policy)).body["default_policy"]

    def known() -> bool:
        return all(one.daemon.get("/networks/overlay").body["default_policy"] == wanted for one in lab.hosts)

    eventually(known, "every host has the default policy")
