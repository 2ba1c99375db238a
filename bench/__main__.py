"""How `python -m bench` is called, and how all it makes is gone afterwards, however it ends."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import attach, crowd, dataplane, flight, garden, hosts, labels, overlay, peers, policy, start, tunnel
from bench.client import Failed
from bench.lab import Lab
from bench.scale import FULL, QUICK, Scale
from bench.table import Report

_ROOT = Path(__file__).parents[1]
_PROGRAMS = ("ip", "nft", "setpriv", "unshare", "mount")
PARTS = ("attach", "flight", "policy", "dataplane", "garden", "start", "overlay", "tunnel", "hosts", "labels")


def main(argv: list[str] | None = None) -> int:
    """Measure what the arguments say; the exit code is 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure what conetd costs, beside the floor of the same work and the peers that are installed, in "
        "network namespaces of its own, and write the figures as a table. Needs root.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples and containers: about a minute")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="one part alone; may be given again (flight includes the peers)"
    )
    parser.add_argument("--output", type=Path, default=_ROOT / "build" / "bench.md", help="where the table is written")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.inside is not None:
        return _inside(given.inside, given.output, QUICK if given.quick else FULL, given.only or [*PARTS])
    return _outside(sys.argv[1:] if argv is None else argv)


def _outside(arguments: list[str]) -> int:
    """Run this program again in namespaces that end with it, and clear its directory away."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        print("the bench needs root" + "".join(f" and {one}" for one in missing), file=sys.stderr)  # noqa: T201
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one inside hears it too, and ends
    # not below /tmp, which may be in memory: there a durable commit costs nothing
    with tempfile.TemporaryDirectory(prefix="conetd-bench-", dir="/var/tmp") as directory:
        unshare = ["unshare", "--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*unshare, sys.executable, "-m", "bench", "--inside", directory, *arguments]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        signal.signal(signal.SIGTERM, lambda *_: _end(process.pid))
        code = process.wait()
    return code if code >= 0 else 1


def _end(unshare: int) -> None:
    """Kill the first process inside; unshare, which waits for it, ends when all others are gone with it."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        first = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        os.kill(int(first[0]) if first else unshare, signal.SIGKILL)


def _inside(directory: Path, output: Path, scale: Scale, parts: list[str]) -> int:
    # netavark, the CNI plugins and iptables keep state and locks below /run
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for name in [name for name in os.environ if name.startswith("CONETD_")]:
        del os.environ[name]
    report = Report(heading=_heading())
    failed = False
    try:
        for title, part in _chosen(directory, report, scale, parts):
            started = time.monotonic()
            _say(f"{title} ...")
            try:
                part()
            except Exception as err:  # what has been measured by then is told all the same
                failed = True
                report.holds(title, False, "not measured")
                _say(f"{title} could not be measured: {err}")
                if not isinstance(err, Failed):
                    traceback.print_exc()
            _say(f"{title}: {time.monotonic() - started:.0f} s")
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    page = report.markdown()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)
    print(page)  # noqa: T201
    _say(f"written to {output}")
    return 1 if failed else 0


def _chosen(directory: Path, report: Report, scale: Scale, parts: list[str]) -> list[tuple[str, Callable[[], None]]]:
    def in_lab(name: str, work: Callable[[Lab], None]) -> Callable[[], None]:
        def part() -> None:
            place = directory / name
            place.mkdir()
            with Lab(place) as lab:
                work(lab)

        return part

    def with_crowd(lab: Lab) -> None:
        pair = crowd.make(lab, scale.others)
        if "policy" in parts:
            policy.measure(pair, report, scale)
        if "dataplane" in parts:
            dataplane.measure(pair, report, scale)

    rates: dict[str, float] = {}
    chosen = []
    if "attach" in parts:
        chosen.append(("one at a time", in_lab("attach", lambda lab: attach.measure(lab, report, scale))))
    if "flight" in parts:
        chosen.append(("in flight", in_lab("flight", lambda lab: rates.update(flight.measure(lab, report, scale)))))
        chosen.append(("peers", in_lab("peers", lambda lab: peers.measure(lab, report, scale, rates))))
    if "policy" in parts or "dataplane" in parts:
        chosen.append(("policies and packets", in_lab("crowd", with_crowd)))
    if "garden" in parts:
        chosen.append(("Garden's calls", in_lab("garden", lambda lab: garden.measure(lab, report, scale))))
    if "start" in parts:
        chosen.append(("start", in_lab("start", lambda lab: start.measure(lab, report, scale))))
    across: dict[str, tuple[str, Callable[..., None]]] = {
        "overlay": ("attaching across hosts", overlay.measure),
        "tunnel": ("packets between hosts", tunnel.measure),
        "hosts": ("hosts that come and go", hosts.measure),
        "labels": ("policies with labels", labels.measure),
    }
    for name, (title, work) in across.items():
        if name in parts:
            chosen.append((title, in_lab(name, partial(work, report=report, scale=scale))))
    return chosen


def _heading() -> list[str]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    return [
        f"{os.cpu_count()} x {cpu}, {versions}; load before: {load}.",
        "Figures of one run on one machine. Compare them with each other, not with those of another run.",
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
