"""How the hook is started as a container engine does it, and the bare interpreter beside it."""

from __future__ import annotations

from pathlib import Path

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
