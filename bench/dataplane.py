"""How much passes through the policies of many containers, compared with those of one, in turns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.client import Failed
from bench.crowd import Pair, Side
from bench.lab import OUTSIDE, inside
from bench.scale import Scale
from bench.table import Report, Table, middle

_CONNECT = Path(__file__).with_name("connect.py")
_PORT = 7000
_IPERF_PORT = 5201
_LIMIT = 0.9
_LENGTH_S = 1  # of a stream, and of a burst of connections; iperf3 takes whole seconds alone


def measure(pair: Pair, report: Report, scale: Scale) -> None:
    """Measure streams and new connections from the container to the machine at its host's uplink."""
    table = report.table("Packets", "what", "alone", f"{pair.others} others", "ratio")
    table.note("Medians; the ratio is the median of the ratios of neighbours in time.")
    sides = (pair.alone, pair.among)
    with _listening(sides):
        if shutil.which("iperf3") is None:
            table.note("iperf3 is not installed: no throughput.")
        else:
            _compare(table, report, pair, scale, "throughput, Gbit/s, one TCP stream", _throughput)
        _compare(table, report, pair, scale, "new connections a second", _connections)


def _compare(table: Table, report: Report, pair: Pair, scale: Scale, what: str, one: Callable[[Side], float]) -> None:
    found: dict[str, list[float]] = {"alone": [], "among": []}
    sides = {"alone": pair.alone, "among": pair.among}
    for number in range(scale.streams + 1):
        for name in ("alone", "among") if number % 2 else ("among", "alone"):
            value = one(sides[name])
            if number:  # the first warms up
                found[name].append(value)
    ratio = middle([b / a for a, b in zip(found["alone"], found["among"], strict=True)])
    table.row(what, middle(found["alone"]), middle(found["among"]), ratio)
    report.at_least(f"{what.partition(',')[0]} with {pair.others} others / alone", ratio, _LIMIT)


@contextmanager
def _listening(sides: tuple[Side, ...]) -> Iterator[None]:
    servers = []
    try:
        for side in sides:
            with inside(side.daemon.host.outside):
                listen = [sys.executable, "-I", "-S", str(_CONNECT), "listen", str(_PORT)]
                servers.append(subprocess.Popen(listen))
                if shutil.which("iperf3"):
                    serve = ["iperf3", "-s", "-p", str(_IPERF_PORT)]
                    servers.append(subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _client(side: Side, *argv: str) -> str:
    """What the program in the container prints; asked again while nobody listens yet."""
    for _ in range(50):
        with inside(side.pid):
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.1)
    raise Failed(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def _throughput(side: Side) -> float:
    # cubic: bbr, the default of some machines, paces the stream
    argv = ("iperf3", "-c", OUTSIDE, "-p", str(_IPERF_PORT), "-t", str(_LENGTH_S), "-C", "cubic", "-J")
    printed = _client(side, *argv)
    try:
        return float(json.loads(printed)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, LookupError) as err:
        raise Failed(f"{' '.join(argv)}: {printed}") from err


def _connections(side: Side) -> float:
    argv = (sys.executable, "-I", "-S", str(_CONNECT), "connect", str(_PORT), OUTSIDE, str(_LENGTH_S))
    return float(_client(side, *argv))
