"""What the short forms of the lab's prompt stand for."""

from __future__ import annotations

from typing import Any

import pytest
from conetd_vxlan.policy import PolicySchema

from lab.errors import LabError
from lab.policies import allowing, labels

WEB = {"direction": "ingress", "peer": {"labels": {"app": "web"}}}


@pytest.mark.parametrize(
    ("source", "what", "entries"),
    [
        ("app=web", ["tcp", "80"], [WEB | {"protocol": "tcp", "ports": {"start": 80, "end": 80}}]),
        ("app=web", ["icmp"], [WEB | {"protocol": "icmp"}, WEB | {"protocol": "icmpv6"}]),
        ("web", ["all"], [{"direction": "ingress", "peer": {"handle": "web"}, "protocol": "all"}]),
    ],
)
def test_an_entry_is_added(source: str, what: list[str], entries: list[dict[str, Any]]) -> None:
    before: dict[str, Any] = {"policies": [WEB], "default_ingress": "deny"}
    made = allowing(before, source, what)

    assert made == {"policies": [WEB, *entries], "default_ingress": "deny"}
    PolicySchema().load(made)
    assert before["policies"] == [WEB]


@pytest.mark.parametrize(
    "what", [[], ["tcp"], ["icmp", "8"], ["sctp", "80"], ["tcp", "web"], ["tcp", "0"], ["tcp", "65536"]]
)
def test_what_cannot_be_allowed_is_refused(what: list[str]) -> None:
    with pytest.raises(LabError, match=r"cannot be allowed|is no port"):
        allowing({}, "web", what)


def test_labels_are_pairs() -> None:
    assert labels(["app=web", "tier=", "url=a=b"]) == {"app": "web", "tier": "", "url": "a=b"}
    with pytest.raises(LabError, match="web is no label"):
        labels(["web"])
