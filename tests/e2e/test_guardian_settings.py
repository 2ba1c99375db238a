"""contrib/guardian: the settings do what Guardian does without flags, and what its README tells to type works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conetd_bridge import BridgeDriver
from docpages import ROOT, page, table_rows
from guardian import Guardian
from pytest_netns import NetnsFactory
from world import HOOK, World, ask, open_world, serving

from conetd import settings
from conetd.check import check
from conetd.driver import Attachment, Network, Requested
from conetd.errors import Exhausted

FOLDER = ROOT / "contrib" / "guardian"
FILE = FOLDER / "conetd.toml"
TEXT = FILE.read_text()
README = page("contrib/guardian/README.md")
# guardian's guardiancmd/command.go, those of the networker and those whose meaning a plugin changes
FLAGS = [
    "network-plugin",
    "network-plugin-extra-arg",
    "network-pool",
    "deny-network",
    "allow-host-access",
    "mtu",
    "external-ip",
    "port-pool-start",
    "port-pool-size",
    "port-pool-properties-path",
    "dns-server",
    "additional-dns-server",
    "additional-host-entry",
    "enable-container-network-metrics",
    "max-containers",
    "properties-path",
    "destroy-containers-on-startup",
    "iptables-bin",
    "iptables-restore-bin",
    "tag",
    "tcp-keepalive-time",
    "tcp-keepalive-interval",
    "tcp-keepalive-probes",
    "tcp-retries1",
    "tcp-retries2",
]


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path) -> Iterator[World]:
    """A host whose daemon runs with that very file, but for state and sockets of its own."""
    with open_world(netns, tmp_path, TEXT) as world:
        world.daemon.start()
        yield world


@pytest.fixture
def guardian(world: World, tmp_path: Path) -> Guardian:
    return Guardian(HOOK, tmp_path / "depot", ["--socket", str(world.daemon.private_socket)])


def declared(text: str) -> dict[str, Any]:
    """The one network that the settings declare."""
    [network] = tomllib.loads(text)["networks"]
    assert isinstance(network, dict)
    return network


def shell(number: int) -> str:
    """One of the README's blocks of commands, in their order."""
    return [block.text for block in README.blocks if block.language == "sh"][number]


# The file, looked at


def test_conetd_takes_the_file_as_it_is() -> None:
    argv = [sys.executable, "-m", "conetd", "check", "--config", str(FILE)]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert told["networks"] == [declared(TEXT)]


def test_beside_the_network_the_file_says_what_holds_anyway() -> None:
    """So whoever sets up conetd without it has missed nothing but the network."""
    told = settings.load(FILE, {}).document()
    assert told | {"networks": [], "default_attach_to": []} == settings.Settings().document()
    assert told["default_attach_to"] == [declared(TEXT)["name"]]


@pytest.mark.parametrize("line", re.findall(r"^#(\w+ = .*)$", TEXT, re.MULTILINE))
def test_a_line_for_a_flag_can_take_the_place_of_the_default(line: str) -> None:
    key = line.partition(" ")[0]
    without = re.sub(rf"^{key} = .*\n", "", TEXT, flags=re.MULTILINE)
    changed = without.replace(f"#{line}", line)
    check(settings.parse(tomllib.loads(changed)))
    assert tomllib.loads(changed) != tomllib.loads(TEXT)


def test_the_network_takes_as_many_containers_as_the_readme_says() -> None:
    [said] = re.findall(r"A /22 has (\d+) addresses", README.text)
    driver = BridgeDriver()
    network = Network("garden", "bridge", driver.config_schema().load(declared(TEXT)["config"]))
    anyone = Attachment("garden", "anyone", "a" * 12, "eth0", Requested())
    held: set[str] = set()
    count = 0
    try:
        while True:
            held |= driver.allocate(network, anyone, held).claims
            count += 1
    except Exhausted:
        assert count == int(said)


@pytest.mark.parametrize("flag", FLAGS)
def test_the_readme_says_what_becomes_of_the_flag(flag: str) -> None:
    assert f"--{flag}" in table_rows(README.text)


def test_the_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README.text)
    assert links
    for target in links:
        path, _, anchor = target.partition("#")
        there = (FOLDER / path).resolve()
        assert there.exists(), target
        headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]


# The file, in use


def test_a_container_that_names_no_network_gets_an_address_of_guardians_pool(world: World, guardian: Guardian) -> None:
    guardian.create("web", world.container("web").pid)
    told = guardian.info("web")
    assert (told["ContainerIP"], told["HostIP"]) == ("10.254.0.2", "10.254.0.1")
    assert guardian.hosts("web") == "127.0.0.1 localhost\n10.254.0.2 web\n"


def test_the_external_ip_is_left_to_guardian(world: World, guardian: Guardian) -> None:
    guardian.external_ip = "203.0.113.77"
    guardian.create("web", world.container("web").pid)
    assert guardian.info("web")["ExternalIP"] == "203.0.113.77"


def test_dns_servers_are_left_to_guardian(world: World, guardian: Guardian) -> None:
    guardian.dns_servers, guardian.additional_dns_servers = ["192.0.2.53"], ["192.0.2.54"]
    guardian.create("web", world.container("web").pid)
    assert guardian.resolv_conf("web") == "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"


def test_host_ports_come_from_guardians_pool_and_lead_to_the_container(world: World, guardian: Guardian) -> None:
    web = world.container("web")
    guardian.create("web", web.pid, netin=[{"container_port": 8080}])
    assert guardian.info("web")["MappedPorts"] == [{"HostPort": 61001, "ContainerPort": 8080}]
    assert guardian.net_in("web", 0, 0) == (61002, 61002)
    with serving(web, 8080):
        assert ask(world.outside, "192.0.2.1", 61001) == "hello 192.0.2.2"


def test_nothing_outside_is_denied(world: World, guardian: Guardian) -> None:
    web = world.container("web")
    guardian.create("web", web.pid)
    with serving(world.outside, 7000):
        assert ask(web, "192.0.2.2", 7000) == "hello 192.0.2.1"


def test_containers_reach_each_other(world: World, guardian: Guardian) -> None:
    web, app = world.container("web"), world.container("app")
    guardian.create("web", web.pid)
    guardian.create("app", app.pid)
    with serving(web, 8080):
        assert ask(app, "10.254.0.2", 8080) == "hello 10.254.0.3"


@pytest.mark.parametrize("address", ["10.254.0.1", "192.0.2.1"])
def test_the_host_itself_is_closed(world: World, guardian: Guardian, address: str) -> None:
    web = world.container("web")
    guardian.create("web", web.pid)
    with serving(world.host, 7000):
        assert ask(web, address, 7000) == "No route to host"


# What the README tells to type


def guardians_global_chains() -> list[list[str]]:
    """What of Guardian's own networker is left when its last container is destroyed, as commands that make it."""
    accept, back = ["-j", "ACCEPT"], ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"]
    chains = [["-N", f"w--{name}"] for name in ("input", "forward", "default")]
    rules = [
        ["-A", "INPUT", "-i", "w+", "-j", "w--input"],
        ["-A", "FORWARD", "-i", "w+", "-j", "w--forward"],
        ["-A", "w--input", "-i", "up0", *accept],
        ["-A", "w--input", *back, *accept],
        ["-A", "w--input", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"],
        ["-A", "w--forward", "-i", "up0", *accept],
        ["-A", "w--forward", "-j", "DROP"],
        ["-A", "w--default", *back, *accept],
        ["-A", "w--default", "-d", "10.0.0.0/8", "-j", "REJECT"],
    ]
    nat = [
        ["-N", "w--prerouting"],
        ["-N", "w--postrouting"],
        ["-A", "PREROUTING", "-j", "w--prerouting"],
        ["-A", "OUTPUT", "-o", "lo", "-j", "w--prerouting"],
        ["-A", "POSTROUTING", "-j", "w--postrouting"],
        ["-A", "w--postrouting", "-s", "10.254.0.0/30", "!", "-d", "10.254.0.0/30", "-j", "MASQUERADE"],
    ]
    return [["iptables", *one] for one in chains + rules] + [["iptables", "-t", "nat", *one] for one in nat]


def test_what_guardian_never_removes_is_gone_after_the_readmes_commands(netns: NetnsFactory) -> None:
    host = netns.make("host")
    for command in guardians_global_chains():
        host.run(*command)
    assert "w--" in host.run("iptables-save").stdout
    host.run("sh", "-euc", shell(0))
    assert "w--" not in host.run("iptables-save").stdout


def test_after_going_back_as_the_readme_says_nothing_is_left(world: World, guardian: Guardian) -> None:
    daemon, web = world.daemon, world.container("web")
    switch = daemon.get("/status").body["sysctls_changed"]["ipv4/conf/up0/forwarding"]
    guardian.create("web", web.pid, netin=[{"container_port": 8080}])
    guardian.destroy("web")
    assert daemon.stop() == 0
    daemon.settings = ""
    daemon.start()
    assert daemon.delete("/networks/garden").status == 204
    assert daemon.stop() == 0
    world.host.run("sh", "-euc", shell(1))
    assert sorted(world.remains()["links"]) == ["lo", "up0"]
    assert world.host.run("nft", "list", "ruleset").stdout == ""
    assert world.host.sysctl("net/ipv4/conf/up0/forwarding") == switch["old"] != switch["new"]
