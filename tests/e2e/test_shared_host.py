"""Whether tests that share a host find it as the first of them did, also after one that failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onehost import Lab, Machine


@pytest.fixture(scope="module")
def built(bare_lab: Lab) -> Lab:
    """a on blue."""
    bare_lab.daemon.network("blue")
    bare_lab.container("a", "blue")
    return bare_lab


class FailedError(Exception):
    """What the block of a test ends with."""


def known(lab: Lab) -> tuple[list[str], list[str]]:
    """The containers and the networks that the daemon knows."""
    containers, networks = (lab.daemon.get(f"/{what}").body for what in ("containers", "networks"))
    return [one["handle"] for one in containers], [one["name"] for one in networks]


def fail_after(lab: Lab, act: Callable[[], object]) -> None:
    """Do that in a block which fails then."""

    def fail() -> None:
        with lab.restored():
            act()
            raise FailedError

    with pytest.raises(FailedError):
        fail()


def test_a_container_and_its_network_are_gone(lab: Lab) -> None:
    def act() -> None:
        lab.daemon.network("green", subnet="10.20.0.0/24")
        lab.policy(lab.container("guest", "green", "blue"), green={"deny_networks": ["192.0.2.0/24"]})

    fail_after(lab, act)
    assert known(lab) == (["a"], ["blue"])
    assert list(lab.containers) == ["a"]
    lab.reset()


def test_a_container_that_is_down_or_was_never_up_is_gone(lab: Lab) -> None:
    def act() -> None:
        lab.container("guest", "blue")
        lab.daemon.down("guest")
        lab.daemon.join("idle", "blue")

    fail_after(lab, act)
    assert known(lab) == (["a"], ["blue"])


def test_a_container_whose_namespace_is_gone_is_gone(lab: Lab) -> None:
    fail_after(lab, lambda: lab.container("guest", "blue").netns.close())
    assert known(lab) == (["a"], ["blue"])


def test_one_of_its_name_can_come_up(lab: Lab) -> None:
    fail_after(lab, lambda: lab.container("guest", "blue"))
    assert lab.container("guest", "blue").name == "guest"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_daemon_runs_with_its_settings(lab: Lab, a: Machine, how: str) -> None:
    settings = lab.daemon.settings

    def act() -> None:
        lab.container("guest", "blue")
        getattr(lab.daemon, how)()
        lab.daemon.settings += "\nport_pool = { start = 61001, size = 5 }\n"

    fail_after(lab, act)
    assert lab.daemon.settings == settings
    assert known(lab) == (["a"], ["blue"])
    assert lab.daemon.get("/containers/a").body["state"] == "up"


def test_settings_that_were_tried_are_taken_back(lab: Lab) -> None:
    def act() -> None:
        lab.daemon.stop()
        lab.daemon.settings += '\n[[networks]]\nname = "late"\ntype = "bridge"\nconfig = { subnet = "10.40.0.0/24" }\n'
        lab.daemon.start()
        assert known(lab)[1] == ["blue", "late"]

    fail_after(lab, act)
    assert known(lab) == (["a"], ["blue"])
