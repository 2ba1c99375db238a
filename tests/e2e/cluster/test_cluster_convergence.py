"""Whether hosts that could not hear of each other know everything afterwards, and nothing of it twice."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from clustered import (
    OWN,
    Stream,
    all_of,
    etcd_content,
    etcd_keys,
    from_labels,
    holders,
    kernels,
    mentions,
    network_of,
    part_of,
    reachable,
    reaches,
    revision,
    rows,
    told,
    unbroken,
    wait_for_members,
    wait_until_connected,
)

from lab.cluster import Lab
from lab.daemon import eventually
from lab.hosts import OVERLAY, Container, Host

FROM_WEB = from_labels(app="web")
FROM_ALL: dict[str, Any] = {"policies": [{"direction": "ingress", "peer": {"network": OVERLAY}}]}


@pytest.fixture
def each(overlay: Lab) -> list[Container]:
    """A container on each host, of a label set of its own, all closed, and known everywhere."""
    made = [host.container(f"c-{host.name}", {"app": host.name}) for host in overlay.hosts]
    wait_until_connected(overlay)
    all_of(overlay.hosts, lambda host: network_of(host)["identities"] == 3, "knows them")
    return made


def wait_until_away(*hosts: Host) -> None:
    all_of(hosts, lambda host: told(host)["state"] == "away", "misses etcd", 30)


def policy_at(host: Host, handle: str) -> Any:
    return host.daemon.get(f"/containers/{handle}/policy").body["networks"].get(OVERLAY, {})


def put(host: Host, handle: str, policy: Any) -> None:
    """Make it the policy of a container, wherever that runs."""
    answer = host.daemon.put(f"/containers/{handle}/policy", {"networks": {OVERLAY: policy} if policy else {}})
    assert answer.status == 200, answer


def put_default(host: Host, policy: Any) -> None:
    answer = host.daemon.put(f"/networks/{OVERLAY}/default_policy", policy)
    assert answer.status == 200, answer


def default_at(host: Host) -> Any:
    return host.daemon.get(f"/networks/{OVERLAY}").body["default_policy"]


def expected_keys(containers: list[Container], *, policies: dict[str, str]) -> set[str]:
    """What etcd has to have: containers of a label set each, with policies of them at those hosts."""
    hosts = [container.host for container in containers]
    numbers = {container.attachments[0]["identity"]: container.host.name for container in containers}
    keys = {f"networks/{OVERLAY}", f"next/{OVERLAY}"}
    keys |= {f"hosts/{host.name}" for host in hosts} | {f"leases/{OVERLAY}/{host.name}" for host in hosts}
    keys |= {f"claims/{OVERLAY}/subnet:{part_of(host)}" for host in hosts}
    keys |= {f"identities/{OVERLAY}/{number}" for number in numbers}
    keys |= {f"uses/{OVERLAY}/{number}/{host}" for number, host in numbers.items()}
    keys |= {f"policies/{OVERLAY}/{handle}" for handle in policies}
    return keys | {f"asks/{OVERLAY}/{host}" for host in policies.values()}


def without_digests(keys: set[str]) -> set[str]:
    return {key for key in keys if not key.startswith("identity-of/")}


def test_policies_that_were_put_on_several_hosts_without_etcd_are_everywhere(
    overlay: Lab, each: list[Container]
) -> None:
    one, two, three = each
    overlay.etcd.kill()
    wait_until_away(*overlay.hosts)
    put(one.host, one.name, from_labels(app="h2"))
    put(two.host, two.name, from_labels(app="h3"))
    put(one.host, three.name, from_labels(app="h1"))  # which runs elsewhere
    assert reaches(two, one)
    assert not reaches(one, three)

    overlay.etcd.start()
    wait_until_connected(overlay)
    for sender, receiver in ((two, one), (three, two), (one, three)):
        reachable(sender, receiver)
        assert not reaches(receiver, sender)
    wanted = expected_keys(each, policies={one.name: "h1", two.name: "h2", three.name: "h3"})
    eventually(lambda: without_digests(etcd_keys(overlay)) == wanted, "etcd has each thing once")
    assert sum(key.startswith("identity-of/") for key in etcd_keys(overlay)) == 3
    assert [told(host)["pending"] for host in overlay.hosts] == [0, 0, 0]


def test_what_was_put_without_etcd_outlives_a_killed_daemon(overlay: Lab, each: list[Container]) -> None:
    one, _, three = each
    overlay.cut_etcd(one.host)
    wait_until_away(one.host)
    put(one.host, three.name, from_labels(app="h1"))
    overlay.kill(one.host)
    overlay.start(one.host)
    assert told(one.host)["pending"] > 0
    overlay.heal()
    wait_until_connected(overlay)
    assert reachable(one, three)


def test_a_host_that_heard_nothing_lists_anew_what_etcd_has_forgotten(overlay: Lab, each: list[Container]) -> None:
    one, two, three = each
    gone = part_of(two.host)
    overlay.cut_etcd(three.host)
    wait_until_away(three.host)
    put(one.host, three.name, from_labels(app="late"))
    late = one.host.container("late", {"app": "late"})
    two.remove()
    assert two.host.daemon.delete(f"/networks/{OVERLAY}").status == 204
    eventually(lambda: f"leases/{OVERLAY}/h2" not in etcd_keys(overlay), "etcd knows")
    overlay.etcd.compact(revision(overlay))
    assert mentions(three.host, gone)["routes"] == 1

    overlay.heal()
    wait_until_connected(overlay)
    wait_for_members([one.host, three.host])
    assert mentions(three.host, gone) == {"routes": 0, "neighbours": 0, "fdb": 0, "rules": 0}
    assert reachable(late, three)
    assert not reaches(one, three)


def test_a_default_policy_that_changed_meanwhile_is_in_force(overlay: Lab, each: list[Container]) -> None:
    one, _, three = each
    overlay.cut_etcd(three.host)
    wait_until_away(three.host)
    put_default(one.host, FROM_ALL)
    assert not reaches(one, three)
    overlay.heal()
    wait_until_connected(overlay)
    assert reachable(one, three)
    assert default_at(three.host) == default_at(one.host)
    assert "frozen" not in network_of(three.host)


def test_a_default_policy_that_was_put_without_etcd_is_in_force_everywhere(overlay: Lab, each: list[Container]) -> None:
    one, _, three = each
    overlay.cut_etcd(three.host)
    wait_until_away(three.host)
    put_default(three.host, FROM_ALL)
    assert not reaches(three, one)
    overlay.heal()
    wait_until_connected(overlay)
    assert reachable(three, one)
    assert default_at(three.host) == default_at(one.host)
    assert "frozen" not in network_of(three.host)


def test_a_policy_that_was_put_without_etcd_outdoes_an_earlier_one_without_an_instant_of_that(
    overlay: Lab, each: list[Container]
) -> None:
    one, _, three = each
    overlay.cut_etcd(three.host)
    wait_until_away(three.host)
    put(one.host, three.name, {"policies": []})
    eventually(lambda: f"policies/{OVERLAY}/{three.name}" in etcd_keys(overlay), "etcd has it")
    put(three.host, three.name, FROM_ALL)
    near = three.host.container("near", {"app": "h3"})
    with unbroken((near, three)) as [stream]:
        overlay.heal()
        wait_until_connected(overlay)
        stream.goes_on(0.5)
    assert reachable(one, three)
    eventually(lambda: policy_at(one.host, three.name)["policy"]["policies"], "the one who put the other has it too")


def test_a_policy_that_was_taken_away_meanwhile_does_not_come_back(overlay: Lab, each: list[Container]) -> None:
    one, _, three = each
    put(three.host, three.name, FROM_ALL)
    reachable(one, three)
    wait_until_connected(overlay)
    overlay.cut_etcd(three.host)
    wait_until_away(three.host)
    put(one.host, three.name, FROM_ALL)  # so that it is known there
    put(one.host, three.name, None)
    eventually(lambda: f"policies/{OVERLAY}/{three.name}" not in etcd_keys(overlay), "etcd has forgotten it")
    overlay.heal()
    wait_until_connected(overlay)
    eventually(lambda: not reaches(one, three), "the default is in force again")
    assert f"policies/{OVERLAY}/{three.name}" not in etcd_keys(overlay)


def test_a_host_that_was_taken_for_dead_registers_again_and_says_so(overlay: Lab, each: list[Container]) -> None:
    one, _, three = each
    put(three.host, three.name, FROM_ALL)
    reachable(one, three)
    wait_until_connected(overlay)
    before, keys = kernels(overlay.hosts), etcd_keys(overlay)
    [found] = json.loads(overlay.etcd.ctl("get", f"{OWN}hosts/h3", "-w", "json"))["kvs"]
    overlay.etcd.ctl("lease", "revoke", f"{found['lease']:x}")

    eventually(lambda: "this host was taken for dead" in three.host.daemon.log, "it says so")
    eventually(lambda: "hosts/h3" in etcd_keys(overlay), "it is registered again")
    wait_until_connected(overlay)
    wait_for_members(overlay.hosts)
    assert reachable(one, three)
    assert etcd_keys(overlay) == keys
    eventually(lambda: kernels(overlay.hosts) == before, "all is as it was")


# Its data is gone


def lose_all_data(lab: Lab) -> None:
    """As if etcd had been set up anew, while it was away."""
    lab.etcd.kill()
    wait_until_away(*lab.hosts)
    for folder in (lab.hosts[0].daemon.folder.parent / "etcd").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    lab.etcd.start()


def test_hosts_put_back_what_they_have_when_etcd_lost_its_data(overlay: Lab, each: list[Container]) -> None:
    one, two, three = each
    for container, allowed in ((one, "h2"), (two, "h3"), (three, "h1")):
        put(container.host, container.name, from_labels(app=allowed))
    reachable(one, three)
    wait_until_connected(overlay)
    held, before = holders(overlay), without_digests(etcd_keys(overlay))
    policies = {key: value for key, value in etcd_content(overlay).items() if key.startswith("policies/")}

    lose_all_data(overlay)
    wait_until_connected(overlay)
    wait_for_members(overlay.hosts)
    assert holders(overlay) == held
    for sender, receiver in ((two, one), (three, two), (one, three)):
        reachable(sender, receiver)
        assert not reaches(receiver, sender)
    shape = {key.split("/")[0] for key in before}
    eventually(lambda: {key.split("/")[0] for key in without_digests(etcd_keys(overlay))} == shape, "all kinds")
    content = etcd_content(overlay)
    assert {key: value for key, value in content.items() if key.startswith("policies/")} == policies
    numbers = [value for key, value in content.items() if key.startswith("identity-of/")]
    assert len(set(numbers)) == len(numbers) == 3


def test_identities_keep_their_numbers_when_etcd_lost_its_data(overlay: Lab, each: list[Container]) -> None:
    """Else a container could for a moment be taken for one of another label set."""
    before = [rows(host, "SELECT number, labels FROM identities ORDER BY number") for host in overlay.hosts]
    lose_all_data(overlay)
    wait_until_connected(overlay)
    wait_for_members(overlay.hosts)
    all_of(overlay.hosts, lambda host: network_of(host)["identities"] == 3, "knows three")
    assert [rows(host, "SELECT number, labels FROM identities ORDER BY number") for host in overlay.hosts] == before


def test_nobody_is_let_in_by_another_label_sets_number_when_etcd_lost_its_data(
    overlay: Lab, each: list[Container]
) -> None:
    """The stranger sends all the time, and nothing of it gets through."""
    one, two, three = each
    put(one.host, one.name, from_labels(app="h2"))
    reachable(two, one)
    wait_until_connected(overlay)
    with Stream(three, one) as stranger:
        lose_all_data(overlay)
        wait_until_connected(overlay)
        wait_for_members(overlay.hosts)
        reachable(two, one)
        stranger.goes_on(0.5)
        assert stranger.arrived() == set()
