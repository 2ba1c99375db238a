"""Whether policies, labels and handles mean the same on all hosts, whichever host is told, while containers change."""

from __future__ import annotations

from typing import Any

import pytest
from clustered import (
    at_once,
    etcd_keys,
    from_labels,
    network_of,
    reachable,
    reaches,
    rows,
    told,
    unbroken,
    wait_until_connected,
)

from lab.cluster import Lab
from lab.daemon import eventually
from lab.hosts import OVERLAY, Container, Host

FROM_WEB = from_labels(app="web")
FROM_ALL: dict[str, Any] = {"policies": [{"direction": "ingress", "peer": {"network": OVERLAY}}]}


@pytest.fixture
def web(overlay: Lab) -> Container:
    return overlay.hosts[0].container("web", {"app": "web", "tier": "front"})


@pytest.fixture
def db(overlay: Lab) -> Container:
    return overlay.hosts[1].container("db", {"app": "db"})


@pytest.fixture
def third(overlay: Lab) -> Host:
    """Where neither of them runs."""
    return overlay.hosts[2]


def put(host: Host, handle: str, policy: Any) -> dict[str, Any]:
    """Make it the container's policy, as told to that host; returns what the answer says of the cluster."""
    answer = host.daemon.put(f"/containers/{handle}/policy", {"networks": {OVERLAY: policy} if policy else {}})
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.body.get("cluster", {})
    return found


def put_labels(container: Container, **labels: str) -> None:
    answer = container.host.daemon.put(
        f"/containers/{container.name}/config", {"attach_to": [OVERLAY], "labels": labels}
    )
    assert answer.status == 200, answer


def identity(container: Container) -> int:
    """The number it has by its host's store."""
    [(number,)] = rows(container.host, f"SELECT identity FROM attachments WHERE handle = '{container.name}'")
    return int(number)


def unreachable(one: Container, other: Container) -> None:
    eventually(lambda: not reaches(one, other), f"{one.name} reaches {other.name} no longer")


# Where it is put


def test_a_policy_that_is_put_on_another_host_is_in_force_where_the_container_runs(
    web: Container, db: Container, third: Host
) -> None:
    assert not reaches(web, db)
    put(third, "db", FROM_WEB)
    reachable(web, db)
    put(web.host, "db", {"policies": []})
    unreachable(web, db)


def test_the_last_policy_that_was_put_holds_wherever_it_was(web: Container, db: Container, third: Host) -> None:
    for host in (third, db.host, web.host, third):
        put(host, "db", FROM_WEB)
        reachable(web, db)
        put(host, "db", {"policies": []})
        unreachable(web, db)


def test_a_policy_that_is_put_before_the_container_comes_up_elsewhere_is_in_force(
    overlay: Lab, web: Container, third: Host
) -> None:
    put(third, "db", FROM_WEB)
    wait_until_connected(overlay)
    db = overlay.hosts[1].container("db", {"app": "db"})
    assert reachable(web, db)


def test_policies_that_are_put_while_the_container_is_made_are_in_force(overlay: Lab, web: Container) -> None:
    """At whichever instant: on another host, between its config and its start."""
    for number in range(12):
        name = f"db{number}"
        at_once(
            [
                lambda name=name: overlay.hosts[1].container(name, {"app": "db"}),
                lambda name=name: put(overlay.hosts[2], name, FROM_WEB),
            ],
            lambda work: work(),
        )
        reachable(web, overlay.containers[name])


def test_a_default_policy_holds_on_all_hosts_for_who_has_none_of_its_own(
    overlay: Lab, web: Container, db: Container, third: Host
) -> None:
    own = third.container("own", {"app": "own"})
    own.policy(policies=[])
    wait_until_connected(overlay)
    answer = db.host.daemon.put(f"/networks/{OVERLAY}/default_policy", FROM_ALL)
    assert answer.status == 200
    assert answer.body["cluster"]["confirmed"] is True
    for one, other in ((web, db), (db, web), (own, web)):
        reachable(one, other)
    assert not reaches(web, own)
    assert {str(host.daemon.get(f"/networks/{OVERLAY}").body["default_policy"]) for host in overlay.hosts} == {
        str(answer.body["default_policy"])
    }
    web.host.daemon.put(f"/networks/{OVERLAY}/default_policy", {})
    unreachable(web, db)
    unreachable(own, web)


def test_a_deleted_container_takes_its_policy_with_it(overlay: Lab, web: Container, db: Container, third: Host) -> None:
    put(third, "db", FROM_WEB)
    reachable(web, db)
    db.remove()
    eventually(lambda: f"policies/{OVERLAY}/db" not in etcd_keys(overlay), "etcd has forgotten it")
    again = overlay.hosts[1].container("db", {"app": "db"})
    assert not reaches(web, again)
    wait_until_connected(overlay)
    eventually(lambda: third.daemon.get("/containers/db").status == 404, "so has the host it was put on")


def test_an_answer_says_that_the_others_can_know_and_when_they_do(overlay: Lab, db: Container, third: Host) -> None:
    first = put(db.host, "db", FROM_WEB)
    second = put(db.host, "db", FROM_ALL)
    assert (first["confirmed"], second["confirmed"]) == (True, True)
    assert second["generation"] > first["generation"]
    eventually(lambda: told(third)["revision"] >= second["generation"], "another host has got that far")
    last = put(third, "db", FROM_WEB)
    assert last["generation"] > second["generation"]


# Whom it means


def test_labels_that_change_live_change_whom_policies_mean(web: Container, db: Container) -> None:
    put(db.host, "db", FROM_WEB)
    reachable(web, db)
    put_labels(web, app="other")
    unreachable(web, db)
    put_labels(web, app="web", more="labels")
    reachable(web, db)


def test_a_container_of_a_known_label_set_is_let_in_from_its_first_packet(
    overlay: Lab, web: Container, db: Container
) -> None:
    put(db.host, "db", FROM_WEB)
    reachable(web, db)
    for host in overlay.hosts:
        made = host.container(f"more-{host.name}", {"app": "web", "tier": "front"})
        assert reaches(made, db)


def test_a_container_that_is_named_gets_an_identity_of_its_own_and_gives_it_back(
    overlay: Lab, web: Container, db: Container, third: Host
) -> None:
    twin = third.container("twin", {"app": "web", "tier": "front"})
    shared = identity(web)
    assert identity(twin) == shared
    put(db.host, "db", {"policies": [{"direction": "ingress", "peer": {"handle": "web"}}]})
    reachable(web, db)
    assert not reaches(twin, db)
    assert identity(web) not in (0, shared)
    assert identity(twin) == shared
    put(db.host, "db", None)
    unreachable(web, db)
    eventually(lambda: identity(web) == shared, "it is one of its label set again")


def test_naming_a_container_loses_none_of_its_packets(overlay: Lab, web: Container, db: Container, third: Host) -> None:
    """Its number changes under way, and both have to be let in."""
    named = third.container("named")
    put(db.host, "db", FROM_WEB)
    reachable(web, db)
    wait_until_connected(overlay)
    before = identity(web)
    with unbroken((web, db)):
        put(third, "named", {"policies": [{"direction": "ingress", "peer": {"handle": "web"}}]})
        reachable(web, named)
        eventually(lambda: identity(web) != before, "it has a number of its own")
        put(third, "named", None)
        eventually(lambda: identity(web) == before, "it has it no longer")


def test_a_container_that_is_named_before_it_is_there_is_let_in(overlay: Lab, db: Container, third: Host) -> None:
    put(db.host, "db", {"policies": [{"direction": "ingress", "peer": {"handle": "late"}}]})
    wait_until_connected(overlay)
    late = third.container("late", {"app": "late"})
    assert reachable(late, db)


def test_what_may_be_sent_by_labels_follows_the_containers_that_come_and_go(
    overlay: Lab, web: Container, db: Container, third: Host
) -> None:
    put(db.host, "db", FROM_ALL)
    reachable(web, db)
    put(web.host, "web", {"policies": [{"direction": "egress", "peer": {"labels": {"app": "queue"}}}]})
    unreachable(web, db)
    first = third.container("queue", {"app": "queue"})
    first.policy(**FROM_ALL)
    reachable(web, first)
    assert any(key.startswith(f"addresses/{OVERLAY}/") for key in etcd_keys(overlay))
    second = db.host.container("queue2", {"app": "queue"})
    second.policy(**FROM_ALL)
    reachable(web, second)
    for one in (first, second):
        one.remove()
    eventually(
        lambda: not any(key.startswith(f"addresses/{OVERLAY}/") for key in etcd_keys(overlay)), "etcd has no address"
    )
    other = third.container("other", {"app": "other"})  # with the address that `queue` had
    other.policy(**FROM_ALL)
    unreachable(web, other)
    put(web.host, "web", None)
    reachable(web, other)
    eventually(lambda: not any(key.startswith(f"asks/{OVERLAY}/h1") for key in etcd_keys(overlay)), "nobody asks")


def test_what_may_be_sent_to_a_host_that_died_may_not_be_sent_when_another_has_its_part(
    overlay: Lab, web: Container, third: Host
) -> None:
    """Its containers are gone, and their addresses another's."""
    queue = third.container("queue", {"app": "queue"})
    queue.policy(**FROM_ALL)
    put(web.host, "web", {"policies": [{"direction": "egress", "peer": {"labels": {"app": "queue"}}}]})
    reachable(web, queue)
    wait_until_connected(overlay)
    overlay.cut(third)
    overlay.kill(third)
    eventually(lambda: third.name not in network_of(web.host)["hosts"], "it is taken for dead")
    assert web.host.daemon.delete(f"/cluster/hosts/{third.name}").status == 204
    eventually(
        lambda: not any(key.startswith(f"addresses/{OVERLAY}/") for key in etcd_keys(overlay)), "etcd has no address"
    )
    eventually(lambda: rows(web.host, "SELECT * FROM identity_addresses") == [], "the host has none either")
