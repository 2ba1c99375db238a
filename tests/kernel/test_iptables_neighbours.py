"""How the iptables backend gets on with others who use the same legacy tables."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from conetd.kernel.iptables import IptablesBackend
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter, PortMapping

NETWORK = NetworkFilter("blue", (ip_network("10.0.0.0/16"),), "br0", (ip_network("10.0.0.0/16"),))
FOREIGN = {
    "filter": "-A FORWARD -i docker0 -m conntrack --ctstate NEW -j ACCEPT",
    "nat": "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "mangle": "-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "raw": "-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack",
}
TOOLS = ("iptables-legacy", "ip6tables-legacy")


def objects(number: int) -> list[FilterObject]:
    address = ip_address("10.0.0.0") + number
    mapping = PortMapping(6, 1024 + number, address, 80)
    return [
        Endpoint(f"c{number}", "blue", f"c{number}", "br0", (address,), "02:00:00:00:00:05", "veth5", mark=number),
        EndpointPolicy(f"c{number}", ports=(mapping,)),
    ]


def identities(number: int) -> list[tuple[str, str]]:
    return [("Endpoint", f"c{number}"), ("EndpointPolicy", f"c{number}")]


@pytest.fixture
def host(netns: Any) -> Any:
    return netns.make("host")


@pytest.fixture
def backend(host: Any) -> Iterator[IptablesBackend]:
    with contextlib.closing(host.call(IptablesBackend)) as made:
        yield made


def saved(host: Any, tool: str = "iptables-legacy", *options: str) -> str:
    return re.sub(r"(?m)^#.*\n", "", host.run(f"{tool}-save", *options).stdout)


def numbers(text: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, text))


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do the work again and again beside the block; raise its error after it."""
    over = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                work()
                if over.is_set():
                    return
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]


def test_rules_of_others_are_the_same_after_all_of_ours_are_gone(backend: IptablesBackend, host: Any) -> None:
    for table, rule in FOREIGN.items():
        for tool in TOOLS:
            if tool == "iptables-legacy" or table != "nat":
                host.run(tool, "-t", table, *rule.split())
            else:
                host.run(tool, "-t", table, "-N", "theirs")
    before = [saved(host, tool) for tool in TOOLS]
    backend.apply([NETWORK, *objects(1)])
    assert [saved(host, tool) for tool in TOOLS] != before
    backend.remove_all()
    assert [saved(host, tool) for tool in TOOLS] == before


def test_a_foreign_rule_that_jumps_to_us_does_not_keep_our_chains(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK])
    host.run("iptables-legacy", "-N", "theirs")
    host.run("iptables-legacy", "-A", "theirs", "-i", "eth7", "-j", "conetd-forward")
    backend.remove_all()
    assert "conetd" not in saved(host)


def test_nothing_is_lost_while_somebody_else_adds_rules(backend: IptablesBackend, host: Any) -> None:
    added = 0

    def add() -> None:
        nonlocal added
        host.run("iptables-legacy", "-w", "-A", "FORWARD", "-s", f"172.16.{added // 250}.{added % 250}", "-j", "DROP")
        added += 1

    with meanwhile(add):
        backend.apply([NETWORK])
        for number in range(1, 301):
            backend.apply(objects(number))
    assert backend.check([NETWORK, *(one for number in range(1, 301) for one in objects(number))]) == []
    assert saved(host).count("-s 172.16.") == added


def test_who_does_not_take_the_lock_makes_us_try_again(backend: IptablesBackend, host: Any, tmp_path: Any) -> None:
    added = 0
    elsewhere = {"XTABLES_LOCKFILE": str(tmp_path / "lock"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

    def add() -> None:
        nonlocal added
        source = f"172.16.{added // 250}.{added % 250}"
        host.run("iptables-legacy", "-A", "FORWARD", "-s", source, "-j", "DROP", env=elsewhere, check=False)
        added += 1

    wanted: list[FilterObject] = [NETWORK]
    with meanwhile(add):
        for number in range(1, 201):
            wanted += objects(number)
            backend.apply(wanted[-2:])
    backend.sync(wanted)
    assert backend.check(wanted) == []


def test_a_change_of_others_is_no_disturbance(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK])
    host.run("iptables-legacy", "-A", "FORWARD", "-j", "DROP")
    assert not backend.disturbed()


def test_what_we_left_ourselves_is_no_disturbance(backend: IptablesBackend) -> None:
    backend.apply([NETWORK, *objects(1)])
    assert not backend.disturbed()


@pytest.mark.parametrize("change", [("-F",), ("-F", "conetd-to"), ("-D", "FORWARD", "1"), ("-I", "conetd-to")])
def test_a_change_of_ours_is_a_disturbance_until_it_is_repaired(
    backend: IptablesBackend, host: Any, change: tuple[str, ...]
) -> None:
    backend.apply([NETWORK])
    host.run("iptables-legacy", *change)
    assert (backend.disturbed(), backend.disturbed()) == (True, True)
    backend.sync([NETWORK])
    assert not backend.disturbed()


def test_a_container_speaks_only_once_its_rules_stand(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK])

    def look() -> None:
        speaking = numbers(saved(host, "iptables-legacy", "-t", "raw"), r"comment (c\d+) -j RETURN")
        judged = numbers(saved(host, "iptables-legacy", "-t", "filter"), r"comment (c\d+) -g conetd-e")
        assert speaking <= judged

    with meanwhile(look):
        for number in range(1, 201):
            backend.apply(objects(number))


def test_the_rules_of_a_container_go_only_once_it_is_silent(backend: IptablesBackend, host: Any) -> None:
    backend.apply([NETWORK, *(one for number in range(1, 201) for one in objects(number))])

    def look() -> None:
        judged = numbers(saved(host, "iptables-legacy", "-t", "filter"), r"comment (c\d+) -g conetd-e")
        published = numbers(saved(host, "iptables-legacy", "-t", "nat"), r"comment (c\d+) -j DNAT")
        speaking = numbers(saved(host, "iptables-legacy", "-t", "raw"), r"comment (c\d+) -j RETURN")
        assert speaking | published <= judged

    with meanwhile(look):
        for number in range(1, 201):
            backend.apply(drop=identities(number))
