"""Every pair talks where policy allows and only there: a table of what should be, against what really happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from overlay import default_policy, open_lab, vtep
from traffic import FLOWS, SILENCE_S, SILENT, Services, ask
from truth import Documents, Party, Policy, differences, every, expected, try_all
from world import Daemon, eventually

from lab.cluster import Lab
from lab.hosts import OVERLAY, done

WEB, DB, OTHER = 8080, 5432, 9000
PORTS = (WEB, DB, OTHER)
LABELS: dict[str, dict[str, str]] = {
    "web1": {"app": "web", "stage": "live"},
    "web2": {"app": "web", "stage": "test"},
    "web3": {"app": "web", "stage": "live"},
    "db1": {"app": "db"},
    "db2": {"app": "db"},
    "db3": {"app": "db"},
    "client1": {"app": "client"},
    "client2": {"app": "client"},
    "client3": {"app": "client"},
    "backup2": {"app": "client"},  # which a policy names
}


def entry(direction: str, protocol: str = "all", *ports: tuple[int, int], log: bool = False, **peer: Any) -> Policy:
    """An entry of `policies`."""
    given: dict[str, Any] = {"direction": direction, "peer": peer, "protocol": protocol, "log": log}
    if len(ports) == 1:
        given["ports"] = {"start": ports[0][0], "end": ports[0][1]}
    elif ports:
        given["ports"] = [{"start": first, "end": last} for first, last in ports]
    return given


def policy(*entries: Policy, **more: Any) -> Policy:
    return {"policies": list(entries), **more}


@dataclass
class World:
    """The lab, who is in it, and what has been said of them."""

    lab: Lab
    parties: dict[str, Party]
    documents: Documents

    def say(self, policies: Mapping[str, Policy]) -> None:
        """Replace these containers' policies."""
        for name, one in policies.items():
            self.documents.policies[name] = one
            self.lab.containers[name].policy(**one)

    def label(self, **labels: dict[str, str]) -> None:
        """Replace these containers' labels while they run."""
        for name, one in labels.items():
            self.documents.labels[name] = one
            config = {"attach_to": [OVERLAY], "labels": one}
            done(self.lab.containers[name].host.daemon.put(f"/containers/{name}/config", config))

    def reset(self, documents: Documents) -> None:
        """Have nothing said but this."""
        self.documents = documents
        default_policy(self.lab, **documents.default)
        for name, labels in documents.labels.items():
            self.label(**{name: labels})
            self.lab.containers[name].policy(**documents.policies.get(name, documents.default))

    def check(self, ports: Iterable[int] = PORTS) -> None:
        """Try everything until all is as the documents say, which other hosts learn of a moment later."""
        containers = [one for one in self.parties.values() if one.name in self.documents.labels]
        attempts = every(self.parties.values(), containers, tuple(ports))
        wanted = expected(self.documents, self.parties, attempts)
        assert len(set(wanted.values())) > 1, "a table with one verdict only shows nothing"
        last: list[str] = []

        def same() -> bool:
            last[:] = differences(wanted, try_all(wanted, self.parties))
            return not last

        try:
            eventually(same, "", seconds=6.0)
        except AssertionError:
            pytest.fail(f"{len(last)} of {len(wanted)} came out otherwise:\n" + "\n".join(last[:40]), pytrace=False)


@contextlib.contextmanager
def populated(lab: Lab, labels: dict[str, dict[str, str]]) -> Iterator[World]:
    """Start the containers, the digit in whose name is that of their host, and have everybody serve every port."""
    parties = {host.name: Party(host.name, host.name, host.netns, vtep(host)) for host in lab.hosts}
    with contextlib.closing(Services()) as services:
        for name, given in labels.items():
            one = lab.host(f"h{name[-1]}").container(name, given)
            parties[name] = Party(name, one.host.name, one.netns, one.addresses)
            for port in PORTS:
                for protocol in ("tcp", "udp"):
                    services.open(one.netns, name, protocol, port)
        yield World(lab, parties, Documents(OVERLAY, dict(labels), {}))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab, populated(lab, LABELS) as world:
        yield world


@pytest.fixture
def world(built: World) -> World:
    """Three hosts with three containers and more on each, and a policy of every kind in force."""
    built.reset(Documents(OVERLAY, dict(LABELS), dict(of_every_kind(built))))
    return built


def of_every_kind(world: World) -> dict[str, Policy]:
    """Policies with every kind of peer, in both directions; backup2 and db2 have none."""
    web1, client3 = world.parties["web1"].addresses, world.parties["client3"].addresses
    part2 = f"{world.parties['h2'].addresses[4]}/24"
    return {
        "web1": policy(
            entry("ingress", "tcp", (WEB, WEB), labels={"app": "client"}),
            entry("ingress", "udp", (OTHER, OTHER + 1), network=OVERLAY),
            entry("ingress", cidr=part2),
        ),
        "web2": policy(entry("ingress", "tcp", (1, DB), (WEB, WEB), network=OVERLAY)),
        "web3": policy(default_ingress="allow"),
        "db1": policy(
            entry("ingress", labels={"app": "web", "stage": "live"}),
            entry("ingress", "tcp", (DB, DB), handle="backup2"),
        ),
        "db3": policy(
            entry("ingress", "udp", labels={"stage": "test"}),
            entry("ingress", handle="backup2"),
            entry("ingress", "tcp", (WEB, OTHER), cidr=f"{client3[6]}/128"),
            entry("egress", "tcp", labels={"app": "web"}),
        ),
        "client1": policy(
            entry("egress", "tcp", labels={"app": "web"}),
            entry("ingress", "udp", (OTHER, OTHER), handle="db3"),
        ),
        "client2": policy(
            entry("egress", "tcp", (WEB, OTHER), cidr=f"{web1[4]}/32"),
            entry("egress", cidr=f"{web1[6]}/128"),
            default_ingress="allow",
        ),
        "client3": policy(
            entry("egress", handle="web1"),
            entry("egress", "udp", network=OVERLAY),
        ),
    }


def test_every_pair_talks_where_policy_allows_and_only_there(world: World) -> None:
    world.check()


def test_without_policies_only_hosts_reach_their_own(world: World) -> None:
    world.reset(Documents(OVERLAY, dict(LABELS), {}))
    world.check()


def test_a_default_policy_holds_for_whoever_has_none_of_its_own(world: World) -> None:
    world.documents.default = {"default_ingress": "allow"}
    for host in world.lab.hosts:
        for name in ("backup2", "db2", "db1"):
            world.documents.policies.pop(name, None)
            if name in host.containers:
                done(host.daemon.policy(name))
    default_policy(world.lab, **world.documents.default)
    world.check()


def test_changed_policies_hold_at_once_in_both_directions(world: World) -> None:
    world.check(ports=[WEB])
    world.say(
        {
            "web1": policy(),
            "web3": policy(entry("ingress", "udp", labels={"app": "db"})),
            "db1": policy(entry("ingress", handle="web2"), entry("ingress", "tcp", (OTHER, OTHER), handle="client3")),
            "client3": policy(default_ingress="allow"),
            "client2": policy(entry("egress", labels={"app": "db"}), entry("ingress", cidr="10.1.0.0/16")),
        }
    )
    world.check()


def test_changed_labels_hold_for_containers_that_run(world: World) -> None:
    world.check(ports=[WEB])
    world.label(
        web3={"app": "web", "stage": "test"},
        client2={"app": "web", "stage": "live"},
        web1={"app": "retired"},
        backup2={"app": "web", "stage": "live", "more": "label"},
    )
    world.check()


def test_a_killed_daemon_changes_nothing_neither_dead_nor_started_again(world: World) -> None:
    world.check(ports=[WEB])
    second = world.lab.host("h2")
    with world.lab.restored():
        world.lab.kill(second)
        world.check(ports=[DB])
        world.lab.start(second)
        world.check(ports=[WEB])
    world.say({"web1": policy(entry("ingress", "tcp", labels={"app": "db"}))})
    world.check(ports=[WEB, OTHER])


def test_what_was_said_while_a_daemon_was_dead_holds_when_it_is_back(world: World) -> None:
    second = world.lab.host("h2")
    with world.lab.restored():
        world.lab.kill(second)
        world.documents.policies["web2"] = policy(entry("ingress", "udp", labels={"app": "db"}))
        first = world.lab.host("h1").daemon
        done(first.policy("web2", **{OVERLAY: world.documents.policies["web2"]}))
        world.label(client1={"app": "db"})
        world.lab.start(second)
        world.check()


def test_what_is_let_in_and_what_is_not_is_logged_where_it_was_asked_for(world: World) -> None:
    world.say({"db3": policy(entry("ingress", "tcp", (DB, DB), log=True, handle="backup2"), log_denied=True)})
    eventually(
        lambda: ask(world.parties["backup2"].netns, FLOWS[0], world.parties["db3"].addresses[4], DB) != SILENT, ""
    )
    db, log = world.parties["db3"], world.lab.host("h3").daemon
    for name, event, port in (("backup2", "packet allowed", DB), ("web2", "packet denied", WEB)):
        party = world.parties[name]
        for flow in FLOWS[::2]:
            answer = ask(party.netns, flow, db.addresses[flow.family], port, patience=SILENCE_S)
            assert (answer == SILENT) == (event == "packet denied"), (name, flow)
            said = (f" {event} ", "handle=db3", f"source={party.addresses[flow.family]} ", f"destination_port={port}")
            eventually(partial(has_line, log, said), f"{said} is logged")


def has_line(daemon: Daemon, words: tuple[str, ...]) -> bool:
    """Whether a line of its log has all these words."""
    return any(all(one in line for one in words) for line in daemon.log.splitlines())


# The same on an underlay of the other IP version, with less in it


SMALL = {name: LABELS[name] for name in ("web1", "db2", "client1", "client2")}


def test_an_ipv6_underlay_carries_the_same_verdicts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_lab(tmp_path_factory.mktemp("lab"), 2, underlay=6) as lab, populated(lab, SMALL) as world:
        world.say(
            {
                "web1": policy(entry("ingress", "tcp", (WEB, WEB), labels={"app": "client"})),
                "db2": policy(entry("ingress", labels={"app": "web"}), entry("ingress", "udp", handle="client1")),
                "client1": policy(entry("egress", "udp", handle="db2"), entry("ingress", handle="db2")),
                "client2": policy(default_ingress="allow"),
            }
        )
        world.check()
        world.say({"web1": policy(entry("ingress", "udp", handle="client2"))})
        world.label(client1={"app": "web"})
        world.check()
