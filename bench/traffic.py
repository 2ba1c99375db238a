"""How much passes from one namespace to another: one long stream, and many short connections."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.client import Failed
from bench.lab import inside

PORT, STREAM_PORT = 7000, 5201  # of short connections, and of streams
_CONNECT = Path(__file__).with_name("connect.py")
_LENGTH_S = 2  # of a stream; iperf3 takes whole seconds alone
_BEGINNING_S = 1  # of a stream, before it is measured: a window has to grow, and conetd to see that it is busy
_BURST_S = 1.0  # of connections
_PATIENCE_S = 60.0
_LISTEN = "0A"  # TCP_LISTEN in linux/tcp_states.h


@contextmanager
def listening(*pids: int) -> Iterator[bool]:
    """Somebody listens in each of the namespaces; whether for streams too, for which iperf3 is needed."""
    streams = shutil.which("iperf3") is not None
    servers = []
    try:
        for pid in pids:
            with inside(pid):
                servers.append(subprocess.Popen([sys.executable, "-I", "-S", str(_CONNECT), "listen", str(PORT)]))
                if streams:
                    serve = ["iperf3", "-s", "-p", str(STREAM_PORT)]
                    servers.append(subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for pid in pids:
            _wait_for(pid, PORT, *([STREAM_PORT] if streams else []))
        yield streams
    finally:
        for server in servers:
            server.kill()
            server.wait()


def throughput(pid: int, address: str) -> float:
    """Gbit/s of one TCP stream from the namespace to the address. Raises Failed."""
    # cubic: bbr, the default of some machines, paces the stream
    length = ("-t", str(_LENGTH_S), "-O", str(_BEGINNING_S))
    argv = ("iperf3", "-c", address, "-p", str(STREAM_PORT), *length, "-C", "cubic", "-J")
    printed = _client(pid, *argv)
    try:
        return float(json.loads(printed)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, LookupError) as err:
        raise Failed(f"{' '.join(argv)}: {printed}") from err


def connections(pid: int, address: str) -> float:
    """New connections a second from the namespace to the address, one after the other. Raises Failed."""
    argv = (sys.executable, "-I", "-S", str(_CONNECT), "connect", str(PORT), address, str(_BURST_S))
    return float(_client(pid, *argv))


def _wait_for(pid: int, *ports: int) -> None:
    """Return when somebody listens on these ports in the namespace. Raises Failed."""
    deadline = time.monotonic() + _PATIENCE_S
    wanted = {f"{port:04X}" for port in ports}
    while True:
        lines = [
            line for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        ]
        # proc_pid_net(5): local address and port, remote ones, state
        found = {words[1].rpartition(":")[2] for line in lines if (words := line.split())[3] == _LISTEN}
        if wanted <= found:
            return
        if time.monotonic() > deadline:
            raise Failed(f"nobody listens on {', '.join(map(str, ports))}")
        time.sleep(0.01)


def _client(pid: int, *argv: str) -> str:
    """What the program in the namespace prints. Raises Failed."""
    with inside(pid):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE_S)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
