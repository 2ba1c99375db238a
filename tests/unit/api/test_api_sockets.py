"""Opening the daemon's sockets: whose place may be taken, with which mode and group, and what is left behind."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from conetd.api.sockets import ListeningSocket, group_id, peer_uid
from conetd.errors import ConetError, Conflict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conetd.sock"


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_socket_has_the_mode_asked_for_and_answers(path: Path, mode: int) -> None:
    opened = ListeningSocket(path, mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    connect(path).close()
    opened.close()


def test_a_wide_umask_makes_no_wider_socket_and_is_put_back(path: Path) -> None:
    before = os.umask(0)
    try:
        opened = ListeningSocket(path, mode=0o600)
        opened.close()
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_before_its_mode_is_set_the_socket_is_its_owners_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.chown

    def watch(target: Path, uid: int, gid: int, **kwargs: bool) -> None:
        seen.append(stat.S_IMODE(target.stat().st_mode))
        real(target, uid, gid, **kwargs)

    monkeypatch.setattr(os, "chown", watch)
    before = os.umask(0)
    try:
        ListeningSocket(path, mode=0o660, gid=os.getegid()).close()
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_the_socket_gets_the_group_asked_for(path: Path) -> None:
    others = [gid for gid in os.getgroups() if gid != os.getegid()] or ([4242] if os.geteuid() == 0 else [])
    if not others:
        pytest.skip("this user is in one group only and may not give a file to another")
    opened = ListeningSocket(path, mode=0o660, gid=others[0])
    assert path.stat().st_gid == others[0]
    opened.close()


def test_missing_directories_are_made_and_everyone_may_look_in(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        opened = ListeningSocket(tmp_path / "run" / "conetd" / "s", mode=0o600)
    finally:
        os.umask(before)
    for made in (tmp_path / "run", tmp_path / "run" / "conetd"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o755
    opened.close()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    leave_stale(path)
    opened = ListeningSocket(path, mode=0o600)
    connect(path).close()
    opened.close()


def test_a_live_socket_is_refused_and_keeps_answering(path: Path) -> None:
    first = ListeningSocket(path, mode=0o600)
    with pytest.raises(Conflict, match=rf"could not listen at {path}: another process answers there"):
        ListeningSocket(path, mode=0o600)
    connect(path).close()
    first.close()


def test_a_live_socket_too_busy_to_accept_is_refused_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = connect(path)
        with pytest.raises(Conflict, match="another process answers there"):
            ListeningSocket(path, mode=0o600)
        waiting.close()


def test_what_is_no_socket_is_refused_and_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Conflict, match=rf"could not listen at {path}: something that is not a socket is there"):
        ListeningSocket(path, mode=0o600)
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    leave_stale(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="not a socket"):
        ListeningSocket(path, mode=0o600)


def test_a_path_too_long_for_the_kernel_is_refused_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    with pytest.raises(ConetError, match=rf"could not listen at {path}: AF_UNIX path too long"):
        ListeningSocket(path, mode=0o600)


def test_closing_removes_the_path(path: Path) -> None:
    ListeningSocket(path, mode=0o600).close()
    assert not path.exists()


def test_closing_leaves_a_path_that_another_has_taken(path: Path) -> None:
    first = ListeningSocket(path, mode=0o600)
    path.rename(path.with_suffix(".old"))
    second = ListeningSocket(path, mode=0o600)
    first.close()
    connect(path).close()
    second.close()


def test_closing_does_not_mind_a_path_that_is_gone(path: Path) -> None:
    opened = ListeningSocket(path, mode=0o600)
    path.unlink()
    opened.close()
    assert not path.exists()


def test_the_peers_user_is_told(path: Path) -> None:
    opened = ListeningSocket(path, mode=0o600)
    with connect(path):
        accepted, _ = opened.socket.accept()
        with accepted:
            assert peer_uid(accepted) == os.geteuid()
    opened.close()


def test_a_group_is_found_by_name() -> None:
    ours = grp.getgrgid(os.getegid())
    assert group_id(ours.gr_name, "no-such-group") == ours.gr_gid


def test_a_group_asked_for_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConetError, match=r"socket_group: there is no group 'no-such-group' on this system"):
        group_id("no-such-group", "root")


def test_a_default_group_that_does_not_exist_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert group_id(None, "no-such-group") is None
    assert [record.message for record in caplog.records] == ["no group for the public socket: only root can use it"]
