"""How many attaches a second there are with 8 and with 32 in flight, through the API and through the hook."""

from __future__ import annotations

import gc

from bench.api import bring_up, containers, take_down
from bench.client import Failed, Flight, commands_in_flight, requests_in_flight
from bench.hooks import hook
from bench.lab import Daemon, Lab
from bench.scale import Scale
from bench.table import Report, Table, middle, p95

WIDTHS = (8, 32)


def measure(lab: Lab, report: Report, scale: Scale) -> dict[str, float]:
    """Measure with each number of containers attached before; returns attaches a second by way, 32 in flight, at 0."""
    table = report.table("Many in flight", "attached", "way", "in flight", "attaches/s", "p50 ms", "p95", "detaches/s")
    table.note(
        "Those attached before are on one network, those that come up on another: a bridge that has 1000 takes but 23. "
        "Whoever asks shares the processors with the daemon."
    )
    daemon = lab.daemon()
    daemon.network("blue", "10.32.0.0/16")
    daemon.network("green", "10.33.0.0/16")
    found: dict[str, float] = {}
    attached = 0
    for level in scale.levels:
        bring_up(daemon, containers(daemon, lab.namespaces(level - attached), "blue"))
        attached = level
        for width in WIDTHS:
            for way in ("API", "hook"):
                rate = _fly(lab, daemon, table, level, way, width, scale.flight)
                if level == 0 and width == WIDTHS[-1]:
                    found[way] = rate
    return found


def _fly(lab: Lab, daemon: Daemon, table: Table, level: int, way: str, width: int, count: int) -> float:
    some = containers(daemon, lab.namespaces(count), "green")
    errors = daemon.directory / "hook-errors"
    gc.collect()
    gc.disable()
    if way == "API":
        up = requests_in_flight(daemon.private, [one.up() for one in some], width)
        down = requests_in_flight(daemon.private, [one.down() for one in some], width)
    else:
        up = commands_in_flight([hook(daemon, one, "up") for one in some], width, errors)
        down = commands_in_flight([hook(daemon, one, "down") for one in some], width, errors)
    gc.enable()
    for flight in (up, down):
        _refuse(flight)
    take_down(daemon, some)
    table.row(*(str(level), way, str(width)), up.per_second, middle(up.took_ms), p95(up.took_ms), down.per_second)
    return up.per_second


def _refuse(flight: Flight) -> None:
    if flight.refused:
        raise Failed(f"{len(flight.refused)} were refused in flight, the first: {flight.refused[0]}")
