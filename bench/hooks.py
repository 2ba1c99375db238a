"""How the hook is started as a container engine does it, and the bare interpreter beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.api import Container
from bench.client import Command
from bench.lab import Daemon

_HOOK = Path(__file__).parents[1] / "hook" / "conet-hook"
INTERPRETER = "/usr/bin/python3"

BARE = Command((INTERPRETER, "-I", "-S", "-c", "pass"))
"""What any program in Python costs before its first line, the hook too."""


def hook(daemon: Daemon, container: Container, action: str) -> Command:
    """The hook, run for one container; its stdin, a file, is written now."""
    stdin = daemon.directory / f"{container.handle}.json"
    stdin.write_bytes(container.body)
    argv = (str(_HOOK), "--handle", container.handle, "--action", action, "--socket", daemon.private)
    return Command(argv, stdin)


def plugin(daemon: Daemon, handle: str, action: str, inputs: Any) -> Command:
    """The hook, run as Guardian runs its network plugin; its stdin, a file, is written now."""
    stdin = daemon.directory / f"{handle}-{action}.json"
    stdin.write_bytes(encode(inputs))
    argv = (str(_HOOK), "--socket", daemon.private, "--action", action, "--handle", handle)
    return Command(argv, stdin)


def encode(document: Any) -> bytes:
    """As Go writes JSON: compact."""
    return json.dumps(document, separators=(",", ":")).encode()
