"""The demo is what newcomers run first: it must end well, and leave nothing however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from inhabitants import Inhabitants, inhabitants, still_there
from pytest_netns import missing

DEMO = Path(__file__).parents[2] / "demo" / "run"

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return [sys.executable, str(DEMO)]


def test_the_demo_sees_what_it_wants_to_show_and_leaves_nothing(play: list[str], tmp_path: Path) -> None:
    result = subprocess.run(play, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("All of it was as it should be.\n")
    assert not list(tmp_path.iterdir())
    assert not list(Path("/sys/fs/cgroup").glob("**/conetd-demo"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(play: list[str], tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen(play, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        once: Inhabitants = {}
        for line in demo.stdout:
            if "runc run" in line and " app" in line:  # both containers run
                once = inhabitants({inode_of(Path(f"/proc/{pid}/ns/net")) for pid in descendants(demo.pid)})
                demo.send_signal(how) if how == signal.SIGTERM else signal_group(demo.pid, how)
        assert demo.wait(60) != 0
    once.pop(inode_of(Path("/proc/self/ns/net")), None)
    assert len(once) >= 4  # the host's, the world's, web's and app's
    assert not still_there(once)
    assert not list(tmp_path.iterdir())
    assert not list(Path("/sys/fs/cgroup").glob("**/conetd-demo"))


def signal_group(pid: int, how: signal.Signals) -> None:
    """As a terminal does at Ctrl-C."""
    subprocess.run(["kill", f"-{how.name}", "--", f"-{pid}"], check=True)


def inode_of(namespace: Path) -> int:
    return namespace.stat().st_ino


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in descendants(int(child)))]
