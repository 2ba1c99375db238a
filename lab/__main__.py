"""How `python -m lab` is called: it builds the lab, says what there is, takes commands, and leaves nothing behind."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pytest_netns import missing as missing_for_namespaces

from lab.cluster import Lab
from lab.errors import LabError
from lab.etcd import missing as missing_for_etcd
from lab.prompt import Prompt


def main(argv: Sequence[str] | None = None) -> int:
    """Run a lab; the exit status is 0 unless it could not be built, or a command from a pipe could not be done."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        description="A cluster on this machine: hosts as network namespaces, each with a daemon of its own, on one "
        "underlay, an etcd, and commands to start containers and to set faults. Needs root; leaves nothing behind.",
    )
    parser.add_argument("hosts", nargs="?", type=int, default=3, help="how many (3)")
    parser.add_argument("--underlay", type=int, choices=(4, 6), default=4, help="the IP version between hosts (4)")
    parser.add_argument("--etcd", type=int, default=3, metavar="MEMBERS", help="how many members etcd has (3)")
    parser.add_argument("--ttl", type=int, default=5, help="seconds after which a silent host is taken for gone (5)")
    given = parser.parse_args(argv)
    reason = missing_for_namespaces() or (missing_for_etcd() if given.etcd else None)
    if reason is not None:
        return _complain(f"the lab {reason}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with Lab(given.hosts, etcd_members=given.etcd, ttl=given.ttl, underlay=given.underlay) as lab:
            lab.network()
            lab.wait_until_joined()
            return _take_commands(lab)
    except (LabError, AssertionError, TimeoutError) as err:
        return _complain(f"the lab could not be built: {err}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _take_commands(lab: Lab) -> int:
    terminal = sys.stdin.isatty()
    prompt = Prompt(lab, None if terminal else sys.stdin)
    with contextlib.closing(prompt):
        prompt.cmdloop(_banner(lab))
    return int(prompt.failed and not terminal)


def _banner(lab: Lab) -> str:
    lines = [
        f"{len(lab.hosts)} hosts on the network overlay, each with a daemon of its own. To speak to one from outside:"
    ]
    lines += [
        f"  {host.name}: curl --unix-socket {host.daemon.public_socket} http://conetd/status" for host in lab.hosts
    ]
    return "\n".join([*lines, "help lists the commands; quit or Ctrl-D ends the lab, and nothing is left of it."])


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _complain(text: str) -> int:
    print(text, file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
