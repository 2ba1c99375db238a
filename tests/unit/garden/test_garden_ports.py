"""What NetIn means as entries of a bridge network's policy, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
from conetd_bridge.policy import PolicySchema
from hypothesis import given
from hypothesis import strategies as st

from conetd import documents
from conetd.errors import Invalid
from conetd.garden.rules import net_in_entries, net_in_entry
from conetd.garden.wire import NetIn
from conetd.model import TCP, PortRequest


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (NetIn(), PortRequest(TCP, 0, 0, None, "net_in[0]")),
        (NetIn(0, 8080), PortRequest(TCP, 0, 8080, None, "net_in[0]")),
        (NetIn(7000, 0), PortRequest(TCP, 7000, 0, None, "net_in[0]")),
        (NetIn(7000, 8080), PortRequest(TCP, 7000, 8080, None, "net_in[0]")),
        (NetIn(65535, 65535), PortRequest(TCP, 65535, 65535, None, "net_in[0]")),
    ],
)
def test_a_net_in_is_a_tcp_port_on_every_address(asked: NetIn, wanted: PortRequest) -> None:
    assert documents.load(PolicySchema(), {"net_in": [net_in_entry(asked)]}).net_in == (wanted,)


@pytest.mark.parametrize(
    ("asked", "field", "message"),
    [
        (NetIn(65536, 80), "host_port", "host_port: 65536 is no port: the highest is 65535"),
        (NetIn(70000, 80000), "host_port", "host_port: 70000 is no port: the highest is 65535"),
        (NetIn(0, 65536), "container_port", "container_port: 65536 is no port: the highest is 65535"),
        (NetIn(80, 4294967295), "container_port", "container_port: 4294967295 is no port: the highest is 65535"),
    ],
)
def test_a_number_that_is_no_port_is_refused_by_name(asked: NetIn, field: str, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        net_in_entry(asked)
    assert refused.value.message == message
    assert list(refused.value.fields) == [field]


def test_of_a_list_it_is_told_which_is_wrong() -> None:
    with pytest.raises(Invalid) as refused:
        net_in_entries([NetIn(), NetIn(80, 70000)], (), "netin")
    assert list(refused.value.fields) == ["netin[1].container_port"]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ([], []),
        ([NetIn(80, 8080), NetIn(81, 8080)], [(80, 8080), (81, 8080)]),
        # the very same mapping again is the same mapping
        ([NetIn(80, 8080), NetIn(), NetIn(80, 8080)], [(80, 8080), (0, 0)]),
        # while each "any port" is another
        ([NetIn(0, 8080), NetIn(0, 8080), NetIn(), NetIn()], [(0, 8080), (0, 8080), (0, 0), (0, 0)]),
    ],
)
def test_the_list_of_a_container_spec_is_taken_in_its_order(asked: Any, wanted: Any) -> None:
    found = documents.load(PolicySchema(), {"net_in": net_in_entries(asked, (), "netin")}).net_in
    assert [(one.host_port, one.container_port) for one in found] == wanted


def test_a_container_port_that_is_left_out_is_the_same_mapping_as_one_that_is_said() -> None:
    found = documents.load(PolicySchema(), {"net_in": net_in_entries([NetIn(80), NetIn(80, 80)], (), "netin")}).net_in
    assert len(found) == 1


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        ({"host_port": 80, "container_port": 8080, "protocol": "tcp"}, 1),
        ({"host_port": 80, "container_port": 8080}, 1),
        ({"host_port": 80, "container_port": 8080, "protocol": "udp"}, 2),
        ({"host_port": 81, "container_port": 8080, "protocol": "tcp"}, 2),
        ({"host_port": 0, "container_port": 8080, "protocol": "tcp"}, 2),
    ],
)
def test_a_mapping_that_the_policy_has_already_is_not_made_again(entry: Any, count: int) -> None:
    entries = net_in_entries([NetIn(80, 8080)], [entry], "netin")
    assert (entries[0], len(entries)) == (entry, count)


@pytest.mark.parametrize("standing", [(), ({"host_port": 80, "container_port": 8081, "protocol": "tcp"},)])
def test_a_host_port_that_leads_elsewhere_already_is_refused_at_its_place_in_the_list(standing: Any) -> None:
    asked = [NetIn(0, 80), NetIn(80, 8081), NetIn(80, 8080)]
    with pytest.raises(Invalid) as refused:
        net_in_entries(asked, standing, "netin")
    complaint = "host port 80/tcp leads to container port 8081 already, not to 8080"
    assert refused.value.fields == {"netin[2].host_port": complaint}


ports = st.integers(0, 65535)


@given(st.lists(st.builds(NetIn, ports, ports), unique_by=lambda one: one.host_port))
def test_whatever_ports_are_asked_for_are_a_policy_that_the_bridge_takes(asked: list[NetIn]) -> None:
    found = documents.load(PolicySchema(), {"net_in": net_in_entries(asked, (), "netin")}).net_in

    assert [NetIn(one.host_port, one.container_port) for one in found] == asked
