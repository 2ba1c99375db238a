"""What each filter backend logs, without changing a verdict."""

from __future__ import annotations

import socket
from dataclasses import replace

from conetd.kernel.filter import NFLOG_ALLOWED, NFLOG_DENIED
from conetd.model import Rule, Verdict, log_prefix
from tests.kernel.filter_lab import DENIED, OUTSIDE, UP, FilterLab, accept, reject
from tests.kernel.traffic import REFUSED, SILENT, UDP, Flow, Log, ask, connect


def test_an_accepted_connection_is_logged_once(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, accept(flow, DENIED[flow.family], (8080, 8080), log=True))
    with Log(lab.host, NFLOG_ALLOWED) as log:
        sock, said = connect(lab.a.netns, flow, DENIED[flow.family], 8080, 5)
        with sock:
            assert said == str(UP[flow.family])
            assert ask(sock, 5) == str(UP[flow.family])
        assert log.prefixes(1) == [log_prefix("handle-a")]


def test_datagrams_nobody_answers_are_one_connection_in_the_log(lab: FilterLab) -> None:
    lab.policy(lab.a, accept(Flow(UDP, 4), OUTSIDE[4], log=True))
    with Log(lab.host, NFLOG_ALLOWED) as log:
        with lab.a.netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 4444))
            for _ in range(5):
                sock.sendto(b"x", (str(OUTSIDE[4]), 9999))
        assert log.prefixes(1) == [log_prefix("handle-a")]


def test_with_log_denied_what_the_network_denies_is_logged_and_refused_as_before(lab: FilterLab, flow: Flow) -> None:
    lab.policy(lab.a, log_denied=True)
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == REFUSED
        assert lab.reach(lab.b.netns, flow, DENIED[flow.family]) == REFUSED
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_log_denied_follows_a_change_of_the_networks_rules(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, log_denied=True)
    lab.network(lab.blue, rules=(reject(str(OUTSIDE[flow.family])),))
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == REFUSED
        assert lab.reach(lab.a.netns, flow, DENIED[flow.family]) == str(UP[flow.family])
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_a_rule_that_logs_does_not_change_the_verdict(lab: FilterLab, flow: Flow) -> None:
    lab.serve(lab.outside.netns, flow)
    lab.policy(lab.a, replace(reject(str(OUTSIDE[flow.family])), log=True))
    with Log(lab.host, NFLOG_DENIED) as log:
        assert lab.reach(lab.a.netns, flow, OUTSIDE[flow.family]) == REFUSED
        assert set(log.prefixes(1)) == {log_prefix("handle-a")}


def test_with_log_denied_what_ingress_does_not_accept_is_logged_for_the_receiver(lab: FilterLab, flow: Flow) -> None:
    there = lab.c.addresses[flow.family]
    for ingress in ((), (Rule(Verdict.DROP, flow.protocol, origin="policies[0]"),)):
        lab.policy(lab.c, ingress=ingress, log_denied=True)
        with Log(lab.host, NFLOG_DENIED) as log:
            assert lab.miss(lab.a.netns, flow, there) == SILENT
            assert set(log.prefixes(1)) == {log_prefix("handle-c")}
