"""A shell in namespaces of its own, to which a page's blocks are typed."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docpages import ROOT, Block

STAGE = ROOT / "tests" / "docs" / "stage.sh"
PATIENCE_S = 30
_MARK = "=-=-="
_STRICTLY = r"""trap 'printf "\nfailed: %s\n" "$BASH_COMMAND"' ERR; set -e"""
_LENIENTLY = "set +e; trap - ERR"
_UNSHARE = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]


@dataclass(frozen=True)
class Step:
    """What is typed, and what the page says is printed then; None where it does not say."""

    text: str
    printed: str | None


def steps(block: Block) -> Iterator[Step]:
    """A `console` block's commands with their output; an `sh` block is one step, of which only success is asked."""
    if block.language == "sh":
        yield Step(block.text, None)
        return
    command: list[str] = []
    output: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield Step("\n".join(command), "\n".join(output) if output else None)
            command, output = [line[2:]], []
        elif not output and not _complete("\n".join(command)):
            command.append(line)
        else:
            output.append(line)
    yield Step("\n".join(command), "\n".join(output) if output else None)


class Shell:
    """Bash as the first process of its own pid, network and mount namespaces; with it everything in them ends."""

    def __init__(self, folder: Path, stage: str) -> None:
        """Enter `folder`, with the tree's `contrib` and the installed commands at hand, and set the stage."""
        (folder / "bin").mkdir()
        conetd = folder / "bin" / "conetd"
        conetd.write_text(f'#!/bin/sh\nexec {sys.executable} -m conetd "$@"\n')
        conetd.chmod(0o755)
        (folder / "bin" / "conet-hook").symlink_to(ROOT / "hook" / "conet-hook")
        (folder / "contrib").symlink_to(ROOT / "contrib")
        self._folder = folder
        self._count = 0
        environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [*_UNSHARE, "bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )
        status, printed = self.type(f'. "{STAGE}" && stage_{stage}')
        assert status == 0, f"the stage could not be set:\n{printed}"

    def type(self, text: str, *, strictly: bool = False) -> tuple[int, str]:
        """The exit status of what is typed, and what it prints. `strictly` ends at the first command that fails."""
        assert self._process.stdin is not None
        self._count += 1
        script = self._folder / f"step{self._count}.sh"
        script.write_text(text + "\n")
        # A shell that the step starts reads what comes next, as it would from a terminal. Nothing else may.
        source = f". {script}" if text.rstrip().endswith("bash") else f". {script} </dev/null"
        typed = f"{_STRICTLY}\n{source}\n{_LENIENTLY}\n" if strictly else f"{source}\n"
        self._process.stdin.write(f"{typed}printf '\\n{_MARK}%s\\n' $?\n".encode())
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End everything in the namespaces."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> tuple[int, str]:
        assert self._process.stdout is not None
        got = b""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            end = re.search(rb"\n?" + _MARK.encode() + rb"(\d+)\n", got)
            if end:
                return int(end[1]), got[: end.start()].decode()
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert part, f"it failed and ended the shell, or did not end in {PATIENCE_S} s:\n{got.decode()}"
            got += part


def _complete(command: str) -> bool:
    if command.endswith("\\"):
        return False
    checked = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True)
    return checked.returncode == 0 and not checked.stderr
