"""Whom the two sockets let in, whose place they take, and what is left of them."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_netns import NetnsFactory
from world import World, eventually, open_world

NOBODY = 65534
# Talks as another user: what it prints is the answer, or the error that kept it from asking.
ASK_AS = """
import os, socket, sys
path, uid, method, target = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.setgroups([int(one) for one in sys.argv[5:]])
os.setgid(uid)
os.setuid(uid)
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(path)
    except OSError as err:
        print(err.strerror)
        sys.exit()
    head = f"{method} {target} HTTP/1.1\\r\\nHost: c\\r\\nConnection: close\\r\\nContent-Length: 2\\r\\n\\r\\n"
    sock.sendall(head.encode() + b"{}")
    print(b"".join(iter(lambda: sock.recv(65536), b"")).decode())
"""


@pytest.fixture
def world(netns: NetnsFactory, tmp_path: Path) -> Iterator[World]:
    for one in (tmp_path, *tmp_path.parents):  # pytest lets nobody else in
        if one == Path(tempfile.gettempdir()):
            break
        one.chmod(0o755)
    with open_world(netns, tmp_path) as world:
        yield world


def ask_as(uid: int, path: Path, method: str, target: str, *groups: int) -> str:
    asking = [sys.executable, "-c", ASK_AS, str(path), str(uid), method, target, *map(str, groups)]
    said: str = subprocess.run(asking, capture_output=True, text=True, check=True).stdout
    return said.strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def second_daemon(world: World) -> subprocess.CompletedProcess[str]:
    """Another daemon with the same settings, to its end."""
    return world.host.run(sys.executable, "-m", "conetd", "run", "--config", world.daemon.config, check=False)


def test_the_public_socket_is_for_its_group_and_the_private_one_for_root(world: World) -> None:
    daemon = world.daemon
    group = grp.getgrnam("daemon")
    daemon.group = group.gr_name
    daemon.start()
    public, private = daemon.public_socket, daemon.private_socket
    assert (mode(public), public.stat().st_gid) == (0o660, group.gr_gid)
    assert (mode(private), private.stat().st_gid) == (0o600, os.getegid())
    assert ask_as(NOBODY, public, "GET", "/networks", group.gr_gid).startswith("HTTP/1.1 200")
    assert ask_as(NOBODY, public, "GET", "/networks") == "Permission denied"
    assert ask_as(NOBODY, private, "POST", "/containers/web/down", group.gr_gid) == "Permission denied"


def test_a_private_socket_whose_mode_was_widened_still_answers_root_alone(world: World) -> None:
    daemon, web = world.daemon, world.container("web")
    daemon.start()
    daemon.network()
    daemon.bring_up("web", web)
    daemon.private_socket.chmod(0o666)
    head, _, body = ask_as(NOBODY, daemon.private_socket, "POST", "/containers/web/down").partition("\n\n")
    assert head.startswith("HTTP/1.1 403")
    error = json.loads(body)["error"]
    assert (error["code"], error["message"]) == ("forbidden", f"the private socket is for root, not for uid {NOBODY}")
    assert daemon.get("/containers/web").body["state"] == "up"


def test_the_files_a_killed_daemon_left_are_replaced(world: World) -> None:
    daemon = world.daemon
    daemon.start()
    daemon.kill()
    assert daemon.public_socket.is_socket()
    assert daemon.private_socket.is_socket()
    daemon.start()
    assert daemon.get("/status").status == 200
    assert daemon.down("nobody").status == 200


def test_a_stop_leaves_no_socket_behind(world: World) -> None:
    daemon = world.daemon
    daemon.start()
    assert daemon.stop() == 0
    assert not daemon.public_socket.exists()
    assert not daemon.private_socket.exists()


def test_a_second_daemon_ends_with_a_sentence_and_the_first_goes_on(world: World) -> None:
    daemon = world.daemon
    daemon.start()
    second = second_daemon(world)
    assert second.returncode == 1
    last = second.stderr.splitlines()[-1]
    assert last == f"conetd: could not listen at {daemon.public_socket}: another process answers there"
    assert "Traceback" not in second.stderr
    assert daemon.get("/status").status == 200
    assert daemon.down("nobody").status == 200


@pytest.mark.parametrize("which", ["public_socket", "private_socket"])
def test_a_path_where_something_else_is_stops_the_start_and_keeps_it(world: World, which: str) -> None:
    path: Path = getattr(world.daemon, which)
    path.write_text("precious")
    world.daemon.start(wait=False)
    assert world.daemon.process is not None
    assert world.daemon.process.wait(30) == 1
    assert world.daemon.log.splitlines()[-1] == (
        f"conetd: could not listen at {path}: something that is not a socket is there"
    )
    assert path.read_text() == "precious"
    assert not [one for one in world.daemon.folder.iterdir() if one.is_socket()]


def test_a_strangers_socket_that_answers_is_refused_and_kept(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(world.daemon.private_socket))
        stranger.listen()
        world.daemon.start(wait=False)
        assert world.daemon.process is not None
        assert world.daemon.process.wait(30) == 1
        assert f"{world.daemon.private_socket}: another process answers there" in world.daemon.log
        assert world.daemon.private_socket.exists()
    assert not world.daemon.public_socket.exists()


def test_what_is_no_http_is_refused_in_the_same_words_as_everything_else(world: World) -> None:
    world.daemon.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(world.daemon.public_socket))
        sock.sendall(b"hello there\r\n\r\n")
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
    assert b" 400 " in head
    assert json.loads(body)["error"]["code"] == "bad_request"
    assert world.daemon.get("/status").status == 200


def test_a_client_that_goes_away_does_not_cancel_what_it_asked_for(world: World) -> None:
    daemon = world.daemon
    daemon.start()
    body = json.dumps({"name": "blue", "type": "bridge", "config": {"subnet": "10.10.0.0/24"}})
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.public_socket))
        sock.sendall(f"POST /networks HTTP/1.1\r\nHost: c\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        sock.shutdown(socket.SHUT_WR)
    eventually(lambda: [one["name"] for one in daemon.get("/networks").body] == ["blue"], "the network is there")
