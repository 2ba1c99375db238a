"""What the backend and its worker process say to each other, as plain values."""

from __future__ import annotations

LOCK_SECONDS = 20  # for so long the worker waits for the xtables lock

Tables = dict[tuple[int, str], tuple[dict[str, list[bytes]], dict[str, bytes]]]
"""For each family and table: the rules of each chain of ours, and the rule by which each built-in chain leads there."""

Difference = tuple[int, str, str, list[bytes] | None]
"""Family, table, chain, and what was found there, None for no such chain; of a built-in chain what leads to us."""

Glance = dict[tuple[int, str], bytes]
"""For each family and table something that changes with the number and sizes of its rules."""
