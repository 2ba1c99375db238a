"""What hosts decide together in etcd's transactions, each decision asked for by several at once, and given back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, cast

import pytest
from conetd_vxlan import VxlanDriver
from etcd import EtcdCluster
from pytest_netns import Netns

from conetd.cluster.etcd import Etcd
from conetd.cluster.keys import Key, Keys, Kind
from conetd.cluster.messages import delete_below, put
from conetd.errors import Conflict, Exhausted, NotFound
from conetd.model import IDENTITY_MAX, Labels, Lease, Network, label_set
from conetd.reconcile.core import Core
from conetd.reconcile.etcd.decisions import Decisions, identity_digest, identity_value
from conetd.reconcile.state import LiveNetwork
from conetd.registry import Loaded
from conetd.store import NetworkRecord

KEYS = Keys("/c")
WEB, DB = label_set({"app": "web"}), label_set({"app": "db"})
HOSTS = [f"h{number}" for number in range(8)]
ROUNDS = 100


class DriverAsker:
    """What decisions need of the core: calls into the driver."""

    def ask(self, loaded: Loaded, method: str, function: Callable[[], Any]) -> Any:
        return function()


CORE = cast("Core", DriverAsker())


@pytest.fixture(scope="module", autouse=True)
def uplink(single: EtcdCluster) -> None:
    """An address that other hosts can send to."""
    for command in ("link add up0 type veth peer name up1", "address add 192.0.2.9/24 dev up0", "link set up0 up"):
        single.home.run("ip", *command.split())


@pytest.fixture
def clients(single: EtcdCluster, etcd: Etcd) -> Iterator[list[Decisions]]:
    """Eight hosts, each with a client of its own, of an etcd that is empty."""
    found = [Etcd(single.endpoints, timeout_s=5) for _ in HOSTS]
    yield [Decisions(client, KEYS, host) for client, host in zip(found, HOSTS, strict=True)]
    for client in found:
        client.close()


@pytest.fixture
def one(clients: list[Decisions]) -> Decisions:
    return clients[0]


@pytest.fixture
def other(clients: list[Decisions]) -> Decisions:
    return clients[1]


def network(name: str = "n", lease: Lease | None = None, policy: Any = None, **more: Any) -> LiveNetwork:
    driver = VxlanDriver()
    schema = driver.config_schema()
    parsed = schema.load({"vni": 7, "subnet": "10.1.0.0/16", "underlay": "up0"} | more)
    record = NetworkRecord(name, "vxlan", schema.dump(parsed), policy or {}, 1500)
    loaded = Loaded("vxlan", driver, "conetd", "0")
    return LiveNetwork(record, loaded, Network(name, "vxlan", parsed, lease=lease))


def together(place: Netns, clients: list[Decisions], work: Callable[[Decisions], Any]) -> list[Any]:
    """What the work gives for each host, begun at the same instant; errors as values."""
    barrier = Barrier(len(clients))

    def begin(client: Decisions) -> Any:
        with place.inside():
            barrier.wait()
            try:
                return work(client)
            except Exception as err:
                return err

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(begin, clients))


def keys(etcd: Etcd) -> set[str]:
    return {found.key.removeprefix("/c/") for found in etcd.list("/c/")[1]}


def subnet(lease: Lease | None) -> str:
    assert lease is not None
    return str(lease.data["subnet"])


# Parts


def test_two_hosts_never_get_the_same_part_a_hundred_times(place: Netns, clients: list[Decisions]) -> None:
    for number in range(ROUNDS):
        live = network(f"n{number}")
        leases = together(place, clients[:2], partial(Decisions.lease, core=CORE, live=live))
        assert {subnet(lease) for lease in leases} == {"10.1.0.0/24", "10.1.1.0/24"}


def test_eight_hosts_at_once_have_eight_parts(place: Netns, clients: list[Decisions], etcd: Etcd) -> None:
    leases = together(place, clients, lambda host: host.lease(CORE, network()))
    parts = {host: subnet(lease) for host, lease in zip(HOSTS, leases, strict=True)}
    assert set(parts.values()) == {f"10.1.{number}.0/24" for number in range(8)}
    found = etcd.list("/c/claims/")[1]
    assert {json.loads(one.value)["host"]: one.key for one in found} == {
        host: f"/c/claims/n/subnet:{part}" for host, part in parts.items()
    }


def test_a_part_that_was_decided_on_is_kept_when_it_is_asked_for_again(one: Decisions, etcd: Etcd) -> None:
    first = one.lease(CORE, network())
    before = keys(etcd)
    assert one.lease(CORE, network()) == first  # its answer was lost
    assert one.lease(CORE, network(lease=first)) == first
    assert keys(etcd) == before


def test_a_part_that_another_has_meanwhile_is_a_conflict(one: Decisions, other: Decisions, etcd: Etcd) -> None:
    lost = one.lease(CORE, network())
    etcd.commit([], [delete_below("/c/")])
    assert other.lease(CORE, network()) == lost
    with pytest.raises(Conflict, match=r'host "h1" has "subnet:10\.1\.0\.0/24" of network "n" now'):
        one.lease(CORE, network(lease=lost))


def test_no_part_left_is_said(one: Decisions, other: Decisions, etcd: Etcd) -> None:
    etcd.commit([], [put(KEYS.claim("n", f"subnet:10.1.0.{part}/30"), '{"host":"x"}') for part in (0, 4, 8, 12)])
    with pytest.raises(Exhausted, match="no part left"):
        one.lease(CORE, network(subnet="10.1.0.0/28", host_prefix=30))


# Definitions


def test_the_first_definition_holds_and_another_is_refused_by_its_field(one: Decisions, other: Decisions) -> None:
    one.define(network())
    one.lease(CORE, network())
    other.define(network())
    other.define(network(underlay="192.0.2.9"))  # which is a host's own
    with pytest.raises(Conflict, match=r"its config\.vni is 7, not 8"):
        other.define(network(vni=8))
    with pytest.raises(Conflict, match=r"default_policy"):
        other.define(network(policy={"log_denied": True}))


def test_hosts_that_define_differently_at_once_agree_on_one(place: Netns, clients: list[Decisions]) -> None:
    def decide(host: Decisions) -> int:
        vni = 1 + clients.index(host)
        host.define(network(vni=vni))
        host.lease(CORE, network(vni=vni))
        return vni

    answers = together(place, clients, decide)
    assert len([one for one in answers if isinstance(one, int)]) >= 1
    assert all(isinstance(one, (int, Conflict)) for one in answers), answers


def test_a_definition_without_hosts_is_replaced_and_nothing_of_it_is_left(one: Decisions, etcd: Etcd) -> None:
    one.define(network())
    number = one.identity("n", WEB, None, ()).number
    one.define(network(vni=8))
    assert keys(etcd) == {"networks/n"}
    assert number == 1


def test_a_network_that_the_last_host_left_is_forgotten_wholly(one: Decisions, etcd: Etcd) -> None:
    one.define(network())
    one.identity("n", WEB, None, ())
    one.lease(CORE, network())
    etcd.commit([], [delete_below("/c/leases/")])
    one.sweep("n")
    assert keys(etcd) == set()


def test_a_network_is_not_forgotten_while_a_host_is_on_it(one: Decisions, other: Decisions, etcd: Etcd) -> None:
    one.define(network())
    one.lease(CORE, network())
    before = keys(etcd)
    other.sweep("n")
    assert keys(etcd) == before


def test_who_joins_while_the_last_one_leaves_is_on_a_network_that_is_defined(
    one: Decisions, other: Decisions, etcd: Etcd
) -> None:
    one.define(network())
    other.define(network())
    one.sweep("n")
    try:
        other.lease(CORE, network())
    except Conflict:
        return  # and asks again
    assert "networks/n" in keys(etcd)


# Identities


def test_one_label_set_gets_one_number_whoever_asks(place: Netns, clients: list[Decisions], etcd: Etcd) -> None:
    """Also when each of them takes other numbers for taken, and so tries another."""
    for turn in range(20):
        labels = label_set({"app": f"a{turn}"})

        def work(host: Decisions, labels: Labels = labels, first: int = 1 + 100 * turn) -> int:
            return host.identity("n", labels, None, range(1, first + clients.index(host))).number

        [number] = {*together(place, clients, work)}
        assert {f"uses/n/{number}/{host}" for host in HOSTS} <= keys(etcd)
        assert sum(key.startswith("identities/") for key in keys(etcd)) == turn + 1


def test_label_sets_get_numbers_of_their_own(place: Netns, clients: list[Decisions]) -> None:
    def work(host: Decisions, turn: int) -> int:
        return host.identity("n", label_set({"at": f"{turn} {clients.index(host)}"}), None, ()).number

    for turn in range(20):
        assert len({*together(place, clients, partial(work, turn=turn))}) == 8


def test_a_handle_has_a_number_beside_that_of_its_labels(one: Decisions) -> None:
    assert one.identity("n", WEB, None, ()).number != one.identity("n", WEB, "web", ()).number


def test_an_identity_goes_when_the_last_host_lets_go_of_it(one: Decisions, other: Decisions, etcd: Etcd) -> None:
    number = one.identity("n", WEB, None, ()).number
    assert other.identity("n", WEB, None, ()).number == number
    one.release("n", number)
    one.release("n", number)  # once more changes nothing
    assert KEYS.identity("n", number) in {found.key for found in etcd.list("/c/")[1]}
    other.release("n", number)
    assert keys(etcd) == {"next/n"}


def test_a_number_that_was_let_go_is_not_given_at_once_to_another(one: Decisions) -> None:
    number = one.identity("n", WEB, None, ()).number
    one.release("n", number)
    assert one.identity("n", DB, None, ()).number != number


def test_what_is_let_go_and_asked_for_at_once_is_either_kept_or_new(
    place: Netns, clients: list[Decisions], etcd: Etcd
) -> None:
    for _ in range(20):
        number = clients[0].identity("n", WEB, None, ()).number

        def work(host: Decisions, number: int = number) -> int:
            if host is clients[0]:
                host.release("n", number)
                return 0
            return host.identity("n", WEB, None, ()).number

        _, got = together(place, clients[:2], work)
        assert f"identities/n/{got}" in keys(etcd)
        assert f"uses/n/{got}/h1" in keys(etcd)
        clients[1].release("n", got)


def test_when_all_numbers_are_taken_one_is_said_to_be_missing_and_one_that_goes_can_be_had(
    one: Decisions, etcd: Etcd
) -> None:
    value = identity_value(WEB, None)
    for start in range(1, IDENTITY_MAX + 1, 120):
        numbers = range(start, min(start + 120, IDENTITY_MAX + 1))
        etcd.commit([], [put(KEYS.identity("n", number), value) for number in numbers])
    etcd.commit([], [put(KEYS.next("n"), "4711")])
    everything = range(1, IDENTITY_MAX + 1)
    with pytest.raises(Exhausted, match='network "n" has no identity left'):
        one.identity("n", DB, None, everything)
    etcd.commit([], [delete_below(KEYS.identity("n", 815))])  # and no other: none begins so
    assert one.identity("n", DB, None, set(everything) - {815}).number == 815


# Hosts


def test_a_dead_host_is_forgotten_with_all_it_had_and_nothing_else(
    one: Decisions, other: Decisions, etcd: Etcd
) -> None:
    for decisions in (one, other):
        decisions.define(network())
        decisions.lease(CORE, network())
        decisions.identity("n", WEB, None, ())
    for host in ("h0", "h1"):
        etcd.commit([], [put(KEYS.key(Key(Kind.ASK, "n", host=host)), "[]")])
    before = keys(etcd)
    other.forget_host("h0")
    assert before - keys(etcd) == {"leases/n/h0", "claims/n/subnet:10.1.0.0/24", "uses/n/1/h0", "asks/n/h0"}


def test_a_living_host_is_not_forgotten(one: Decisions, other: Decisions, etcd: Etcd) -> None:
    one.define(network())
    one.lease(CORE, network())
    etcd.commit([], [put(KEYS.host("h0"), "{}")])
    before = keys(etcd)
    with pytest.raises(Conflict, match='host "h0" lives'):
        other.forget_host("h0")
    with pytest.raises(NotFound, match='no network has a host "h7"'):
        other.forget_host("h7")
    assert keys(etcd) == before


def test_a_host_that_two_forget_takes_no_part_from_who_got_it_in_between(
    one: Decisions, other: Decisions, clients: list[Decisions], etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.define(network())
    assert subnet(one.lease(CORE, network())) == "10.1.0.0/24"
    clients[7].lease(CORE, network())  # so that the network stays
    listed = etcd.list(KEYS.all)
    clients[2].forget_host("h0")
    third = clients[3].lease(CORE, network())
    assert subnet(third) == "10.1.0.0/24"
    seen, now = iter([listed]), etcd.list
    monkeypatch.setattr(etcd, "list", lambda prefix, revision=0: next(seen, None) or now(prefix, revision))
    with contextlib.suppress(NotFound):
        Decisions(etcd, KEYS, "h1").forget_host("h0")
    assert KEYS.claim("n", "subnet:10.1.0.0/24") in {found.key for found in etcd.list("/c/claims/")[1]}


def test_the_digest_of_a_label_set_depends_on_nothing_else() -> None:
    assert identity_digest(label_set({"b": "2", "a": "1"}), None) == identity_digest(
        label_set({"a": "1", "b": "2"}), None
    )
    assert identity_digest(WEB, None) != identity_digest(WEB, "web")
