"""Filters of others that drop forwarded packets are named; those that do not are left unnamed."""

from __future__ import annotations

import pytest
from pytest_netns import Netns, NetnsFactory

from conetd.kernel.foreign import ForeignDrop, foreign_drops

FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD_POLICIES { iifname "eth0" accept; return; }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname "lo" accept
        jump filter_FORWARD_POLICIES
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}
"""


@pytest.fixture
def host(netns: NetnsFactory) -> Netns:
    return netns.make("host")


def nft(host: Netns, rules: str) -> None:
    host.run("nft", "-f", "-", input=rules)


def found(host: Netns) -> list[tuple[str, str, str, str]]:
    return [(one.family, one.table, one.chain, one.reason) for one in host.call(foreign_drops)]


def test_a_host_without_filters_has_none(host: Netns) -> None:
    assert found(host) == []


def test_asking_makes_no_legacy_table(host: Netns) -> None:
    found(host)
    assert host.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout == ""


def test_a_chain_with_policy_drop_is_named(host: Netns) -> None:
    nft(host, "table ip mine { chain passing { type filter hook forward priority 0; policy drop; }; }")
    assert host.call(foreign_drops) == [ForeignDrop("mine", "passing", "ip", "has the policy drop")]


@pytest.mark.parametrize("family", ["ip", "ip6", "inet", "bridge"])
def test_every_family_that_forwards_is_looked_at(host: Netns, family: str) -> None:
    nft(host, f"table {family} mine {{ chain passing {{ type filter hook forward priority 0; policy drop; }}; }}")
    assert [one[0] for one in found(host)] == [family]


def test_a_chain_that_ends_in_a_reject_is_named(host: Netns) -> None:
    nft(host, FIREWALLD)
    reason = "rejects what no rule before let pass, by a rule without conditions"
    assert found(host) == [("inet", "firewalld", "filter_FORWARD", reason)]


def test_a_chain_that_leads_to_one_that_drops_is_named_with_it(host: Netns) -> None:
    nft(
        host,
        "table ip t { chain last { log; counter drop; }; chain passing { type filter hook forward priority 0; }; }",
    )
    nft(host, "add rule ip t passing goto last")
    ((_, _, chain, reason),) = found(host)
    assert chain == "passing"
    assert reason == 'drops what no rule before let pass, by a rule without conditions, in chain "last"'


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(
            "table ip t { chain c { type filter hook forward priority 0; ip daddr 1.2.3.4 drop; }; }", id="if"
        ),
        pytest.param(
            "table ip t { chain c { type filter hook forward priority 0; limit rate 1/second drop; }; }", id="l"
        ),
        pytest.param("table ip t { chain c { type filter hook input priority 0; policy drop; }; }", id="other hook"),
        pytest.param("table ip t { chain c { drop; }; }", id="no hook"),
        pytest.param(
            "table ip t { flags dormant; chain c { type filter hook forward priority 0; policy drop; }; }", id="z"
        ),
        pytest.param(
            "table ip t { chain c { type filter hook forward priority 0; policy drop; accept; }; }", id="accept"
        ),
        pytest.param("table inet conetd { chain c { type filter hook forward priority 0; policy drop; }; }", id="ours"),
    ],
)
def test_a_table_that_does_not_drop_our_packets_is_not_named(host: Netns, table: str) -> None:
    nft(host, table)
    assert found(host) == []


LEGACY, NFT = " (legacy iptables)", ""


@pytest.fixture(params=[("iptables-legacy", "ip", LEGACY), ("ip6tables-legacy", "ip6", LEGACY)])
def legacy(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"])
def tool(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    name: str = request.param
    return name, "ip6" if name.startswith("ip6") else "ip", LEGACY if name.endswith("legacy") else NFT


Tool = tuple[str, str, str]


def test_iptables_policy_drop_is_named(host: Netns, tool: Tool) -> None:
    name, family, remark = tool
    host.run(name, "-P", "FORWARD", "DROP")
    assert found(host) == [(family, "filter", "FORWARD", f"has the policy drop{remark}")]


def test_ufw_like_chains_with_policy_drop_are_named(host: Netns, tool: Tool) -> None:
    name, family, remark = tool
    for chain in ("ufw-before-forward", "ufw-after-forward"):
        host.run(name, "-N", chain)
        host.run(name, "-A", "FORWARD", "-j", chain)
    host.run(name, "-A", "ufw-before-forward", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
    host.run(name, "-A", "ufw-after-forward", "-i", "eth9", "-j", "RETURN")
    host.run(name, "-P", "FORWARD", "DROP")
    assert found(host) == [(family, "filter", "FORWARD", f"has the policy drop{remark}")]


@pytest.mark.parametrize("comment", [(), ("-m", "comment", "--comment", "the rest")])
@pytest.mark.parametrize("target", ["DROP", "REJECT"])
def test_iptables_chains_that_end_in_a_verdict_are_named(
    host: Netns, tool: Tool, target: str, comment: tuple[str, ...]
) -> None:
    name, family, remark = tool
    host.run(name, "-A", "FORWARD", "-i", "eth9", "-j", "ACCEPT")
    host.run(name, "-N", "rest")
    host.run(name, "-A", "FORWARD", "-g", "rest")
    host.run(name, "-A", "rest", "-m", "limit", "--limit", "5/minute", "-j", "LOG")
    host.run(name, "-A", "rest", *comment, "-j", target)
    where = f'by a rule without conditions, in chain "rest"{remark}'
    assert found(host) == [(family, "filter", "FORWARD", f"{target.lower()}s what no rule before let pass, {where}")]


@pytest.mark.parametrize(
    "rule",
    [
        ("-i", "eth9", "-j", "DROP"),
        ("-s", "::/1", "-j", "DROP"),
        ("-p", "tcp", "-j", "DROP"),
        ("-m", "mark", "--mark", "1", "-j", "DROP"),
        ("-j", "LOG"),
    ],
)
def test_iptables_rules_with_conditions_are_not_named(host: Netns, tool: Tool, rule: tuple[str, ...]) -> None:
    name, family, _ = tool
    host.run(name, "-A", "FORWARD", *(one.replace("::/1", "::/1" if family == "ip6" else "0.0.0.0/1") for one in rule))
    assert found(host) == []


def test_iptables_drops_on_other_hooks_are_not_named(host: Netns, tool: Tool) -> None:
    host.run(tool[0], "-P", "INPUT", "DROP")
    host.run(tool[0], "-A", "OUTPUT", "-j", "DROP")
    assert found(host) == []


def test_a_legacy_policy_that_stands_behind_our_own_chain_is_not_named(host: Netns, legacy: Tool) -> None:
    host.run(legacy[0], "-N", "conetd-forward")
    host.run(legacy[0], "-A", "FORWARD", "-j", "conetd-forward")
    host.run(legacy[0], "-P", "FORWARD", "DROP")
    assert found(host) == []


def test_a_legacy_drop_before_our_own_chain_is_named(host: Netns, legacy: Tool) -> None:
    name, family, _ = legacy
    host.run(name, "-N", "conetd-forward")
    host.run(name, "-A", "FORWARD", "-j", "DROP")
    host.run(name, "-A", "FORWARD", "-j", "conetd-forward")
    assert [one[0] for one in found(host)] == [family]


def test_everything_that_drops_is_named_at_once(host: Netns) -> None:
    host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    nft(host, FIREWALLD)
    assert sorted(one[1] for one in found(host)) == ["filter", "firewalld"]
