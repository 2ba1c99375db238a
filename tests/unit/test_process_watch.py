"""The end of each watched process is reported once, on the watch's own thread. Needs no root."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Iterator

import pytest

from conetd.errors import KernelError
from conetd.kernel.process import ProcessId, ProcessWatch, identify, raise_file_limit

SOON = 10  # seconds


class Watcher:
    """A watch and the reports it gave."""

    def __init__(self) -> None:
        self.reports: queue.Queue[str] = queue.Queue()
        self.watch = ProcessWatch(self.reports.put)
        self.children: list[subprocess.Popen[bytes]] = []

    def child(self) -> subprocess.Popen[bytes]:
        self.children.append(subprocess.Popen(["sleep", "100"]))
        return self.children[-1]

    def next(self) -> str:
        return self.reports.get(timeout=SOON)


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    one = Watcher()
    yield one
    one.watch.close()
    for child in one.children:
        child.kill()
        child.wait()


def test_the_end_of_a_process_is_reported_before_anyone_has_waited_for_it(watcher: Watcher) -> None:
    child = watcher.child()
    watcher.watch.watch("web", identify(child.pid))
    child.kill()
    assert watcher.next() == "web"


def test_a_process_that_had_ended_before_is_reported(watcher: Watcher) -> None:
    child = watcher.child()
    process = identify(child.pid)
    child.kill()
    child.wait()
    watcher.watch.watch("web", process)
    assert watcher.next() == "web"


def test_a_process_whose_pid_belongs_to_another_now_is_reported(watcher: Watcher) -> None:
    me = identify(os.getpid())
    watcher.watch.watch("web", ProcessId(me.pid, me.start_time - 1))
    assert watcher.next() == "web"


def test_only_the_one_that_ended_is_reported(watcher: Watcher) -> None:
    children = {key: watcher.child() for key in ("a", "b", "c")}
    for key, child in children.items():
        watcher.watch.watch(key, identify(child.pid))
    children["b"].kill()
    assert watcher.next() == "b"
    children["a"].kill()
    assert watcher.next() == "a"


def test_a_forgotten_process_is_not_reported(watcher: Watcher) -> None:
    forgotten, other = watcher.child(), watcher.child()
    watcher.watch.watch("forgotten", identify(forgotten.pid))
    watcher.watch.watch("other", identify(other.pid))
    watcher.watch.forget("forgotten")
    forgotten.kill()
    forgotten.wait()
    other.kill()
    assert watcher.next() == "other"
    assert watcher.reports.empty()


def test_forgetting_what_is_not_watched_is_fine(watcher: Watcher) -> None:
    watcher.watch.forget("nobody")


def test_watching_under_a_key_again_takes_the_place_of_the_first(watcher: Watcher) -> None:
    first, second = watcher.child(), watcher.child()
    watcher.watch.watch("web", identify(first.pid))
    watcher.watch.watch("web", identify(second.pid))
    first.kill()
    first.wait()
    second.kill()
    assert watcher.next() == "web"
    assert watcher.reports.empty()


def test_a_report_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def on_exit(key: str) -> None:
        if key == "bad":
            raise RuntimeError("no")
        heard.set()

    me = identify(os.getpid())
    gone = ProcessId(me.pid, me.start_time - 1)
    with ProcessWatch(on_exit) as watch:
        watch.watch("bad", gone)
        watch.watch("good", gone)
        assert heard.wait(SOON)
    assert "the end of a process could not be dealt with" in caplog.text


def test_a_thread_cannot_be_watched_and_the_error_names_it(watcher: Watcher) -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with pytest.raises(KernelError, match=f"could not watch process {thread.native_id}: "):
            watcher.watch.watch("web", identify(thread.native_id))
    finally:
        release.set()
        thread.join()


def test_a_thousand_processes_can_be_watched_and_no_descriptor_stays(watcher: Watcher) -> None:
    if raise_file_limit(2000) < 2000:
        pytest.skip("needs a limit of 2000 open files")
    child = watcher.child()
    process = identify(child.pid)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(1200):
        watcher.watch.watch(f"c{number}", process)
    child.kill()
    assert {watcher.next() for _ in range(1200)} == {f"c{number}" for number in range(1200)}
    watcher.watch.close()
    assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208


def test_closing_twice_and_watching_afterwards_is_fine(watcher: Watcher) -> None:
    watcher.watch.close()
    watcher.watch.close()
    watcher.watch.watch("late", identify(os.getpid()))
    assert watcher.reports.empty()


def test_the_watch_can_be_closed_from_within_a_report() -> None:
    closed = threading.Event()

    def on_exit(key: str) -> None:
        watch.close()
        closed.set()

    me = identify(os.getpid())
    watch = ProcessWatch(on_exit)
    watch.watch("web", ProcessId(me.pid, me.start_time - 1))
    assert closed.wait(SOON)
    watch.close()
