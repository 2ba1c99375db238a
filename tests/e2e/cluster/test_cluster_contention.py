"""Whether hosts that ask for the same at the same instant never get the same part, and always the same number."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from clustered import all_of, at_once, define, etcd_content, holders, network_of, part_of, rows, wait_for_members

from lab.cluster import Lab
from lab.hosts import OVERLAY, Host

ROUNDS = 40


@pytest.fixture(scope="module")
def hosts() -> int:
    return 8


def leave(host: Host, name: str) -> int:
    return host.daemon.delete(f"/networks/{name}").status


def config(number: int) -> dict[str, Any]:
    return {"vni": 300 + number, "subnet": f"10.{100 + number}.0.0/16", "subnet6": f"fd00:{number}::/64"}


def test_two_hosts_that_ask_at_the_same_instant_never_share_a_part(lab: Lab) -> None:
    pairs = [(lab.hosts[n % 4], lab.hosts[4 + n % 3]) for n in range(ROUNDS)]
    for number, pair in enumerate(pairs):
        name = f"n{number}"
        assert [answer.status for answer in define(pair, name, **config(number))] == [201, 201]
        parts = {part_of(host, name) for host in pair}
        assert parts == {f"10.{100 + number}.{third}.0/24" for third in (0, 1)}
        assert sorted(holders(lab, name).values()) == sorted(host.name for host in pair)
        wait_for_members(pair, name)
        left = at_once(pair, partial(leave, name=name))
        assert left == [204, 204]


def test_eight_hosts_that_ask_at_the_same_instant_have_eight_parts(lab: Lab) -> None:
    assert [answer.status for answer in define(lab.hosts)] == [201] * 8
    assert {part_of(host) for host in lab.hosts} == {f"10.1.{number}.0/24" for number in range(8)}
    wait_for_members(lab.hosts)


def test_one_host_too_many_gets_nothing_and_the_others_each_a_part(lab: Lab) -> None:
    small: dict[str, Any] = {"subnet": "10.1.0.0/24", "subnet6": "fd00:10:1::/64", "host_prefix": 26}  # four parts
    answers = define(lab.hosts, **small)
    assert sorted(answer.status for answer in answers) == [201] * 4 + [507] * 4
    refused = next(answer for answer in answers if answer.status == 507)
    assert "has no part left for another host" in refused.error["message"]
    on = [host for host, answer in zip(lab.hosts, answers, strict=True) if answer.status == 201]
    assert len({part_of(host) for host in on}) == 4
    wait_for_members(on)


@pytest.mark.parametrize("round", range(3))
def test_one_label_set_that_is_new_on_all_hosts_at_once_gets_one_number(overlay: Lab, round: int) -> None:
    labels = {"app": f"same-{round}"}
    numbers = bring_up(overlay, [labels] * 8)
    assert len(set(numbers)) == 1
    assert identities(overlay) == 1
    all_of(overlay.hosts, lambda host: network_of(host)["identities"] == 1, "knows it")


def test_label_sets_that_are_new_at_once_get_numbers_of_their_own(overlay: Lab) -> None:
    numbers = bring_up(overlay, [{"app": host.name} for host in overlay.hosts])
    assert len(set(numbers)) == 8
    all_of(overlay.hosts, lambda host: network_of(host)["identities"] == 8, "knows them")
    known = {tuple(rows(host, "SELECT number, labels FROM identities ORDER BY number")) for host in overlay.hosts}
    assert len(known) == 1


def bring_up(lab: Lab, labels: list[dict[str, str]]) -> list[int]:
    """A container on each host, all at the same instant; returns their identities."""
    containers = [lab.hosts[0].factory.make(f"c{host.name}") for host in lab.hosts]

    def up(index: int) -> int:
        host: Host = lab.hosts[index]
        config = {"attach_to": [OVERLAY], "labels": labels[index]}
        assert host.daemon.put(f"/containers/c{host.name}/config", config).status == 201
        answer = host.daemon.up(f"c{host.name}", containers[index])
        assert answer.status == 200, answer
        return int(answer.body["attachments"][0]["identity"])

    return at_once(range(8), up)


def identities(lab: Lab) -> int:
    return sum(key.startswith(f"identities/{OVERLAY}/") for key in etcd_content(lab))
