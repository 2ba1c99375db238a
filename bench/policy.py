"""What it takes to replace a container's policy, alone and with many others beside it, in turns."""

from __future__ import annotations

import gc

from bench.client import timed_ask
from bench.crowd import RULES, Pair
from bench.scale import Scale
from bench.table import Report, middle, p95

_SIZES = (1, 10, 100, 1000)
_LIMIT = 1.5


def measure(pair: Pair, report: Report, scale: Scale) -> None:
    """Replace policies of each size, each time by one that has no rule in common with the last."""
    table = report.table(
        "Replacing a policy", "rules", "alone p50 ms", "p95", f"{pair.others} others p50 ms", "p95", "ratio"
    )
    table.note(
        f"From `PUT` on a new connection to its answer, when the kernel holds the policy. Each of the others has "
        f"{RULES} rules."
    )
    variant = 0
    for size in _SIZES:
        took: dict[str, list[float]] = {"alone": [], "among": []}
        sides = {"alone": pair.alone, "among": pair.among}
        gc.collect()
        gc.disable()
        for number in range(scale.policies + 1):
            variant += 1
            for name in ("alone", "among") if number % 2 else ("among", "alone"):
                side = sides[name]
                milliseconds = timed_ask(side.daemon.public, side.replace(size, variant))
                if number:  # the first replaces one of another size
                    took[name].append(milliseconds)
        gc.enable()
        alone, among = took["alone"], took["among"]
        ratio = middle(among) / middle(alone)
        table.row(str(size), middle(alone), p95(alone), middle(among), p95(among), ratio)
        if size == RULES:
            report.at_most(f"replacing {size} rules with {pair.others} others / alone", ratio, _LIMIT)
