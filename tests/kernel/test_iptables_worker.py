"""How the process that touches the legacy tables behaves when things go wrong around it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from conetd.errors import DriverError, KernelError
from conetd.kernel.iptables import IptablesBackend, available
from conetd.plan import Endpoint, EndpointPolicy, FilterObject, NetworkFilter

NETWORK = NetworkFilter("blue", (ip_network("10.0.0.0/24"),), "br0")
OBJECTS: list[FilterObject] = [
    NETWORK,
    Endpoint("web", "blue", "web", "br0", (ip_address("10.0.0.5"),), "02:00:00:00:00:05", "veth5"),
    EndpointPolicy("web"),
]


@pytest.fixture
def host(netns: Any) -> Any:
    return netns.make("host")


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    path.touch()
    return path


@pytest.fixture
def backend(lock: Path, host: Any) -> Iterator[IptablesBackend]:
    with contextlib.closing(host.call(IptablesBackend)) as made:
        yield made


@contextlib.contextmanager
def taken(lock: Path) -> Iterator[None]:
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def wait_until_blocked(pid: int) -> None:
    """Return once the process waits for a lock; /proc/locks shows it with an arrow."""
    while f"-> FLOCK  ADVISORY  WRITE {pid} " not in Path("/proc/locks").read_text():
        time.sleep(0.001)


def test_legacy_tables_are_available_here(host: Any) -> None:
    assert host.call(available)


def test_the_worker_works_in_the_namespace_it_was_made_in(backend: IptablesBackend, host: Any) -> None:
    backend.apply(OBJECTS)  # from the test's own thread, which is elsewhere
    assert "conetd-e-web" in host.run("iptables-legacy-save").stdout


def test_a_worker_that_was_killed_is_replaced(backend: IptablesBackend) -> None:
    backend.apply([NETWORK])
    assert backend.worker_pid is not None
    os.kill(backend.worker_pid, signal.SIGKILL)
    backend.apply(OBJECTS)
    assert backend.check(OBJECTS) == []


def test_a_worker_killed_over_its_work_is_replaced_and_the_work_repeated(backend: IptablesBackend, lock: Path) -> None:
    first = backend.worker_pid
    assert first is not None
    with taken(lock):
        applying = threading.Thread(target=backend.apply, args=(OBJECTS,))
        applying.start()
        wait_until_blocked(first)
        os.kill(first, signal.SIGKILL)
    applying.join()
    assert (backend.worker_pid == first, backend.check(OBJECTS)) == (False, [])


def test_a_worker_that_dies_again_and_again_is_an_error(backend: IptablesBackend, lock: Path) -> None:
    errors: list[BaseException] = []

    def apply() -> None:
        try:
            backend.apply(OBJECTS)
        except KernelError as err:
            errors.append(err)

    with taken(lock):
        applying = threading.Thread(target=apply)
        applying.start()
        while applying.is_alive():
            if pid := backend.worker_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            applying.join(0.005)
    assert "the iptables worker" in str(errors[0])


def test_the_next_apply_works_after_any_number_of_deaths(backend: IptablesBackend) -> None:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.4):
            if pid := backend.worker_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    for number in range(100):
        with contextlib.suppress(KernelError):
            backend.apply(OBJECTS if number % 2 else [NETWORK], () if number % 2 else [("Endpoint", "web")])
    over.set()
    killer.join()
    backend.apply(OBJECTS)
    assert backend.check(OBJECTS) == []


def test_nothing_is_changed_while_another_process_holds_the_lock(
    backend: IptablesBackend, lock: Path, host: Any
) -> None:
    with taken(lock):
        applying = threading.Thread(target=backend.apply, args=(OBJECTS,))
        applying.start()
        assert backend.worker_pid is not None
        wait_until_blocked(backend.worker_pid)
        assert "conetd" not in host.run("iptables-legacy-save").stdout
    applying.join()
    assert "conetd" in host.run("iptables-legacy-save").stdout


def test_closing_ends_the_worker_and_leaves_the_rules(backend: IptablesBackend, host: Any) -> None:
    backend.apply(OBJECTS)
    pid = backend.worker_pid
    backend.close()
    assert not Path(f"/proc/{pid}").exists()
    assert "conetd-e-web" in host.run("iptables-legacy-save").stdout


def test_the_worker_outlives_a_signal_to_the_whole_group(backend: IptablesBackend) -> None:
    pid = backend.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    backend.apply(OBJECTS)
    assert backend.worker_pid == pid


@pytest.mark.usefixtures("netns")
def test_a_missing_library_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iptc.py").write_text("raise ImportError('no module named iptc')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DriverError, match=r"pip install conetd\[iptables\]"):
        IptablesBackend()
