"""Which process a pid means: start times, strange names, zombies, limits. Needs no root."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conetd.errors import NotFound
from conetd.kernel.process import ProcessId, alive, boot_id, identify, namespace_inode, raise_file_limit


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


Spawn = Callable[..., "subprocess.Popen[bytes]"]


def test_a_process_is_the_same_each_time_it_is_asked() -> None:
    assert identify(os.getpid()) == identify(os.getpid())


def test_a_process_is_identified_by_when_it_started(spawn: Spawn) -> None:
    # starttime is the 22nd word where the name has no blanks in it
    process = spawn("sleep", "100")
    words = Path(f"/proc/{process.pid}/stat").read_text().split()
    assert identify(process.pid).start_time == int(words[21])


@pytest.mark.parametrize("name", ["a b", "x) R 1 2 (y", "))"])
def test_a_name_with_blanks_and_parentheses_does_not_confuse(tmp_path: Path, spawn: Spawn, name: str) -> None:
    program = tmp_path / name
    shutil.copy("/bin/sleep", program)
    plain, odd = spawn("sleep", "100"), spawn(str(program), "100")
    assert 0 <= identify(odd.pid).start_time - identify(plain.pid).start_time < 60 * os.sysconf("SC_CLK_TCK")


def test_a_process_that_does_not_exist_is_not_found() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(NotFound, match=f"process {process.pid} does not exist"):
        identify(process.pid)


def test_a_zombie_counts_as_gone(spawn: Spawn) -> None:
    process = spawn("sleep", "100")
    before = identify(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NotFound, match="has ended"):
        identify(process.pid)
    assert not alive(before)
    assert namespace_inode(process.pid) is None


def test_another_process_of_the_same_pid_is_not_the_one_meant() -> None:
    me = identify(os.getpid())
    assert alive(me)
    assert not alive(ProcessId(me.pid, me.start_time - 1))


def test_the_namespace_of_a_process_is_the_one_its_link_names() -> None:
    (inode,) = re.findall(r"net:\[(\d+)\]", str(Path("/proc/self/ns/net").readlink()))
    assert namespace_inode(os.getpid()) == int(inode)


def test_the_namespace_of_a_process_that_is_gone_is_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    assert namespace_inode(process.pid) is None


def test_the_boot_has_a_name() -> None:
    assert re.fullmatch(r"[0-9a-f-]{36}", boot_id())


def test_the_file_limit_is_raised_as_far_as_allowed_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_file_limit(300) == 300
        assert raise_file_limit(100) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
