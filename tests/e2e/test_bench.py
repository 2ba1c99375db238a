"""The bench measures, tells it as a table, and leaves nothing behind; what it measures is not judged here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_netns import missing
from world import eventually

ROOT = Path(__file__).parents[2]
LABEL = "attach through the API / floor, 100 attached"


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(page: str, title: str) -> list[list[str]]:
    """Heading and rows of the table under that title."""
    _, _, rest = page.partition(f"## {title}\n\n")
    lines = rest.split("\n\n")[0].splitlines()
    assert set("".join(cells(lines[1]))) <= set("-:"), lines
    return [cells(line) for line in (lines[0], *lines[2:])]


def test_one_part_is_told_as_a_table(tmp_path: Path) -> None:
    output = tmp_path / "build" / "bench.md"
    argv = [sys.executable, "-m", "bench", "--quick", "--only", "attach", "--output", str(output)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = output.read_text()
    assert page in done.stdout
    heading, *rows = table(page, "One at a time")
    assert {len(row) for row in rows} == {len(heading)}
    ways = [row[1] for row in rows if row[0] == "100"]
    assert ways == ["floor", "API", "API, keep-alive", "hook", "python3 -I -S -c pass"]
    assert all(float(row[2]) > 0 for row in rows)
    verdicts = {row[0]: row[3] for row in table(page, "What should hold")[1:]}
    assert verdicts[LABEL] in ("PASS", "FAIL")


@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)")
@pytest.mark.parametrize(
    ("part", "title", "figures", "verdict"),
    [
        ("overlay", "Attaching across hosts", 4, "attach on vxlan / on bridge, IPv4, with etcd, 50 attached to each"),
        ("tunnel", "Packets between hosts", 1, "throughput between hosts / a tunnel routed by hand"),
        ("hosts", "One more host", 1, "a host leaves with 100 known / with 2"),
        ("labels", "One identity more", 2, "a policy with a label of 100 identities / with as many addresses"),
    ],
)
def test_a_part_about_many_hosts_is_told_as_a_table(
    tmp_path: Path, part: str, title: str, figures: int, verdict: str
) -> None:
    """`figures` is the first column of what was measured."""
    output = tmp_path / "bench.md"
    argv = [sys.executable, "-m", "bench", "--quick", "--only", part, "--output", str(output)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = output.read_text()
    _, *rows = table(page, title)
    assert rows
    assert all(float(cell) > 0 for row in rows for cell in row[figures:])
    verdicts = {row[0]: row[3] for row in table(page, "What should hold")[1:]}
    assert verdicts[verdict] in ("PASS", "FAIL")


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--only", "attach", "--output", str(tmp_path / "bench.md")]
    bench = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        [inside] = eventually(lambda: children(bench.pid), "the bench has started in its namespaces")
        directory = eventually(lambda: directory_of(inside), "its directory is known")
        eventually(lambda: list(directory.glob("attach/daemon*/log")), "a daemon serves")
        os.killpg(bench.pid, signal.SIGINT)
        assert bench.wait(60) == 130
    finally:
        bench.kill()
        bench.communicate()
    assert not directory.exists()
    assert not Path(f"/proc/{inside}").exists()
    assert not (tmp_path / "bench.md").exists()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def directory_of(pid: int) -> Path | None:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return Path(words[words.index("--inside") + 1]) if "--inside" in words else None
