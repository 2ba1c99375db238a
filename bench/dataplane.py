"""How much passes through the policies of many containers, compared with those of one, in turns."""

from __future__ import annotations

from collections.abc import Callable

from bench.crowd import Pair
from bench.lab import OUTSIDE
from bench.scale import Scale
from bench.table import Report, Table, middle
from bench.traffic import connections, listening, throughput

_LIMIT = 0.9


def measure(pair: Pair, report: Report, scale: Scale) -> None:
    """Measure streams and new connections from the container to the machine at its host's uplink."""
    table = report.table("Packets", "what", "alone", f"{pair.others} others", "ratio")
    table.note("Medians; the ratio is the median of the ratios of neighbours in time.")
    with listening(*(side.daemon.host.outside for side in (pair.alone, pair.among))) as streams:
        if not streams:
            table.note("iperf3 is not installed: no throughput.")
        else:
            _compare(table, report, pair, scale, "throughput, Gbit/s, one TCP stream", throughput)
        _compare(table, report, pair, scale, "new connections a second", connections)


def _compare(
    table: Table, report: Report, pair: Pair, scale: Scale, what: str, one: Callable[[int, str], float]
) -> None:
    found: dict[str, list[float]] = {"alone": [], "among": []}
    sides = {"alone": pair.alone, "among": pair.among}
    for number in range(scale.streams + 1):
        for name in ("alone", "among") if number % 2 else ("among", "alone"):
            value = one(sides[name].pid, OUTSIDE)
            if number:  # the first warms up
                found[name].append(value)
    ratio = middle([b / a for a, b in zip(found["alone"], found["among"], strict=True)])
    table.row(what, middle(found["alone"]), middle(found["among"]), ratio)
    report.at_least(f"{what.partition(',')[0]} with {pair.others} others / alone", ratio, _LIMIT)
