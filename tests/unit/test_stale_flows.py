"""Which flows a changed port mapping makes stale: all that went where it no longer sends them, and nobody else's."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conetd.kernel.flows import Flow, stale_for_mapping
from conetd.model import IPAddress
from conetd.plan import PortMapping

HOST, OTHER_HOST_ADDRESS, LOOPBACK = ip_address("192.0.2.1"), ip_address("198.51.100.1"), ip_address("127.0.0.1")
HOST6 = ip_address("2001:db8::1")
LOCAL = [HOST, OTHER_HOST_ADDRESS, LOOPBACK, HOST6]
CLIENT, STRANGER = ip_address("192.0.2.9"), ip_address("203.0.113.7")
WEB, DB, FOREIGN = ip_address("10.0.0.2"), ip_address("10.0.0.3"), ip_address("172.17.0.2")
OURS = [ip_network("10.0.0.0/24")]
DNAT = 1 << 5

OLD = PortMapping(protocol=6, host_port=8080, to=WEB, to_port=80)
NEW = PortMapping(protocol=6, host_port=8080, to=DB, to_port=80)


def flow(
    destination: IPAddress = HOST,
    port: int = 8080,
    *,
    to: tuple[IPAddress, int] | None = None,
    protocol: int = 6,
    source_port: int = 40000,
) -> Flow:
    target, target_port = to or (destination, port)
    return Flow(
        protocol=protocol,
        source=CLIENT,
        source_port=source_port,
        destination=destination,
        destination_port=port,
        reply_source=target,
        reply_source_port=target_port,
        reply_destination=CLIENT,
        reply_destination_port=source_port,
        status=DNAT if to else 0,
    )


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(flow(to=(WEB, 80)), id="sent to the old target"),
        pytest.param(flow(OTHER_HOST_ADDRESS, to=(WEB, 80)), id="by another local address"),
        pytest.param(flow(), id="begun before there was a mapping"),
        pytest.param(flow(to=(WEB, 81)), id="sent to a third target in our networks"),
    ],
)
def test_flows_that_the_new_mapping_sends_elsewhere_are_stale(one: Flow) -> None:
    assert stale_for_mapping([one], local=LOCAL, old=OLD, new=NEW, ours=OURS) == [one]


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(flow(to=(DB, 80)), id="sent to the new target already"),
        pytest.param(flow(STRANGER), id="forwarded to that port of another machine"),
        pytest.param(flow(to=(FOREIGN, 80)), id="sent elsewhere by somebody else"),
        pytest.param(flow(port=8081, to=(WEB, 80)), id="another published port of the old target"),
        pytest.param(flow(protocol=17, to=(WEB, 80)), id="the same port of another protocol"),
        pytest.param(flow(WEB, 80), id="straight to the container"),
        pytest.param(flow(WEB, 8080), id="straight to the container's port of the same number"),
        pytest.param(flow(LOOPBACK), id="to that port of loopback, which is never mapped"),
        pytest.param(flow(HOST6), id="of the other IP version"),
    ],
)
def test_flows_of_others_are_not_stale(one: Flow) -> None:
    assert stale_for_mapping([one], local=LOCAL, old=OLD, new=NEW, ours=OURS) == []


def test_a_removed_mapping_leaves_what_was_never_translated() -> None:
    mapped, plain = flow(to=(WEB, 80)), flow()
    assert stale_for_mapping([mapped, plain], local=LOCAL, old=OLD) == [mapped]


def test_an_unchanged_mapping_makes_nothing_stale_that_it_made() -> None:
    assert stale_for_mapping([flow(to=(WEB, 80))], local=LOCAL, old=OLD, new=OLD, ours=OURS) == []


def test_a_mapping_narrowed_to_one_address_keeps_that_address_flows_alone() -> None:
    narrowed = dataclasses.replace(OLD, host_ip=HOST)
    kept, stale = flow(HOST, to=(WEB, 80)), flow(OTHER_HOST_ADDRESS, to=(WEB, 80))
    assert stale_for_mapping([kept, stale], local=LOCAL, old=OLD, new=narrowed) == [stale]


mappings = st.builds(
    PortMapping,
    protocol=st.sampled_from([6, 17]),
    host_port=st.sampled_from([8080, 8081]),
    to=st.sampled_from([WEB, DB]),
    to_port=st.sampled_from([80, 81]),
    host_ip=st.sampled_from([None, HOST, OTHER_HOST_ADDRESS]),
)
strangers = st.one_of(
    st.builds(flow, st.just(STRANGER), st.sampled_from([8080, 8081])),  # passes through
    st.builds(flow, st.sampled_from([WEB, DB]), st.sampled_from([80, 8080])),  # straight to a container
    st.builds(  # published by another program
        flow,
        st.just(HOST),
        st.just(8080),
        to=st.tuples(st.just(FOREIGN), st.just(80)),
        protocol=st.sampled_from([6, 17]),
    ),
)


def sent_by(mapping: PortMapping) -> list[Flow]:
    """One flow by each address at which the mapping can be reached."""
    places = [mapping.host_ip] if mapping.host_ip else [HOST, OTHER_HOST_ADDRESS]
    to = (mapping.to, mapping.to_port)
    return [flow(place, mapping.host_port, to=to, protocol=mapping.protocol) for place in places]


@given(mappings, st.none() | mappings, st.lists(strangers))
def test_no_flow_of_the_old_mapping_outlives_it_unless_the_new_one_sends_it_there_too(
    old: PortMapping, new: PortMapping | None, others: list[Flow]
) -> None:
    stale = stale_for_mapping([*others, *sent_by(old)], local=LOCAL, old=old, new=new, ours=OURS)
    survivors = [one for one in sent_by(old) if one not in stale]
    assert set(survivors) <= set(sent_by(new) if new else [])


@given(mappings, mappings, st.lists(strangers))
def test_no_flow_of_a_stranger_or_of_the_new_mapping_is_taken(
    old: PortMapping, new: PortMapping, others: list[Flow]
) -> None:
    kept = [*others, *sent_by(new)]
    assert stale_for_mapping(kept, local=LOCAL, old=old, new=new, ours=OURS) == []
