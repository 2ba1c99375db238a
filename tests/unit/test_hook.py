"""The hook as an engine runs it: a process, its stdin and flags, against a real UNIX socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

HOOK = Path(__file__).parents[2] / "hook" / "conet-hook"
STATE = b'{"ociVersion": "1.0.2", "id": "x", "pid": 4242, "unread": [1,'  # not even JSON: it is sent as it is

Answer = Callable[[socket.socket], None]


def whole_request(connection: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(1 << 20)
    return head + b"\r\n\r\n" + body


def says(status: str, body: bytes, *fields: str) -> Answer:
    """Read the request, then answer so."""

    def answer(connection: socket.socket) -> None:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return answer


def says_exactly(raw: bytes) -> Answer:
    return lambda connection: connection.sendall(raw)


def hangs_up(connection: socket.socket) -> None:
    """Read the request, then close without a word, as a daemon that is killed does."""


STOPPING = says("503 Service Unavailable", b'{"error": {"code": "unavailable", "message": "conetd is stopping"}}')


class Daemon:
    """Answers one connection after the other, each as the next entry of `answers` says."""

    def __init__(self, path: Path, answers: list[Answer]) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed meanwhile
                return
            with connection, suppress(ConnectionError):
                self.requests.append(whole_request(connection))
                answer(connection)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hook") as directory:  # tmp_path may be too long for a socket
        yield Path(directory, "guardian.sock")


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[..., Daemon]]:
    running: list[Daemon] = []

    def start(*answers: Answer) -> Daemon:
        running.append(Daemon(path, list(answers)))
        return running[-1]

    yield start
    for one in running:
        one.close()


def command(path: Path, *more: str, handle: str = "web-1", action: str = "up") -> list[str]:
    return [str(HOOK), "--handle", handle, "--action", action, "--socket", str(path), *more]


def run(argv: list[str], stdin: bytes = STATE, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, input=stdin, capture_output=True, timeout=30, env=os.environ | env)


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    text = result.stderr.decode()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert text.startswith("conet-hook: ")
    return text


@pytest.mark.parametrize("action", ["up", "down", "net-in", "net-out", "bulk-net-out"])
def test_one_post_carries_stdin_unread(path: Path, serve: Callable[..., Daemon], action: str) -> None:
    daemon = serve(says("200 OK", b"{}"))
    assert run(command(path, action=action)).returncode == 0
    head, _, body = daemon.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == f"POST /containers/web-1/{action} HTTP/1.1".encode()
    assert b"Connection: close" in head
    assert body == STATE


def test_what_the_daemon_answers_is_printed_as_it_is(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says("200 OK", b'{"address": "10.0.0.2"}\n'))
    result = run(command(path))
    assert (result.returncode, result.stdout, result.stderr) == (0, b'{"address": "10.0.0.2"}\n', b"")


def test_an_answer_without_a_body_is_success(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says_exactly(b"HTTP/1.1 204 No Content\r\n\r\n"))
    result = run(command(path, action="down"))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_chunked_answer_is_put_together(path: Path, serve: Callable[..., Daemon]) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    serve(says_exactly(head + b'3\r\n{"a\r\nA;x=y\r\n": "\r\n0\r\n"\r\n1\r\n}\r\n0\r\n\r\n'))
    assert run(command(path)).stdout == b'{"a": "\r\n0\r\n"}'


def test_the_hook_ends_without_waiting_for_the_connection_to_close(path: Path, serve: Callable[..., Daemon]) -> None:
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        says("200 OK", b"here")(connection)
        assert done.wait(20)

    serve(answer)
    result = run(command(path, "--timeout", "10"))
    done.set()
    assert (result.returncode, result.stdout) == (0, b"here")


def test_a_handle_is_percent_encoded(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(says("200 OK", b""))
    run(command(path, handle="a/b @ü:1"))
    assert daemon.requests[0].startswith(b"POST /containers/a%2Fb%20%40%C3%BC%3A1/up HTTP/1.1\r\n")


def test_a_large_stdin_arrives_whole(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(says("200 OK", b""))
    large = os.urandom(5_000_000)
    assert run(command(path), large).returncode == 0
    assert daemon.requests[0].endswith(large)


def test_a_closed_stdin_is_an_empty_body(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(says("200 OK", b""))
    result = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command(path)], capture_output=True, timeout=30)
    assert (result.returncode, result.stderr) == (0, b"")
    assert daemon.requests[0].endswith(b"\r\n\r\n")


def test_a_terminal_is_not_read(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(says("200 OK", b""))
    ours, theirs = os.openpty()
    result = subprocess.run(command(path), stdin=theirs, capture_output=True, timeout=30)
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 0
    assert daemon.requests[0].endswith(b"\r\n\r\n")


def test_a_closed_stdout_is_no_failure(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says("200 OK", b"{}"))
    result = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command(path)], input=b"", stderr=-1, timeout=30)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_refusal_is_told_in_the_daemons_words(path: Path, serve: Callable[..., Daemon]) -> None:
    said = {"error": {"code": "not_found", "message": 'there is no network "blue"\nat all', "fields": {}}}
    serve(says("422 Unprocessable Entity", json.dumps(said).encode()))
    result = run(command(path))
    assert (result.returncode, result.stdout) == (1, b"")
    assert one_line(result) == 'conet-hook: up web-1: there is no network "blue" at all\n'


def test_a_handle_that_no_container_can_have_is_down(path: Path, serve: Callable[..., Daemon]) -> None:
    said = {"error": {"code": "invalid", "message": "handle 'a b' is not allowed"}}
    serve(says("422 Unprocessable Entity", json.dumps(said).encode()))
    result = run(command(path, handle="a b", action="down"), b"null")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_refusal_in_other_words_is_shown_with_its_status(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says("500 Internal Server Error", b"<h1>oh</h1>\nno"))
    result = run(command(path))
    assert result.returncode == 1
    assert one_line(result) == "conet-hook: up web-1: conetd answered 500: <h1>oh</h1> no\n"


def test_a_refusal_before_the_body_was_read_is_told(path: Path, serve: Callable[..., Daemon]) -> None:
    body = b'{"error": {"code": "too_large", "message": "too much"}}'

    def refuse() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            says("413 Content Too Large", body)(connection)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=refuse)
        thread.start()
        result = run(command(path, "--timeout", "10"), b"x" * 5_000_000)
        thread.join()
    assert result.returncode == 1
    assert one_line(result) == "conet-hook: up web-1: too much\n"


@pytest.mark.parametrize(
    "interrupted",
    [hangs_up, says_exactly(b"HTTP/1.1 20"), says_exactly(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")],
    ids=["before its answer", "in the head", "in the body"],
)
def test_a_daemon_that_goes_away_is_asked_again(path: Path, serve: Callable[..., Daemon], interrupted: Answer) -> None:
    daemon = serve(interrupted, interrupted, says("200 OK", b"at last"))
    result = run(command(path))
    assert (result.returncode, result.stdout) == (0, b"at last")
    assert len(daemon.requests) == 3
    assert len(set(daemon.requests)) == 1


def key(request: bytes) -> bytes:
    """The name the hook gave its request."""
    [found] = [line for line in request.split(b"\r\n") if line.startswith(b"Idempotency-Key: ")]
    return found.partition(b" ")[2]


def test_every_attempt_of_a_process_has_one_key_and_every_process_another(
    path: Path, serve: Callable[..., Daemon]
) -> None:
    daemon = serve(hangs_up, STOPPING, says("200 OK", b"{}"), says("200 OK", b"{}"))
    for _ in range(2):
        assert run(command(path, action="net-in")).returncode == 0
    first, again, once_more, another = map(key, daemon.requests)
    assert first == again == once_more
    assert another != first
    assert 1 <= len(first) <= 255


def test_a_daemon_that_is_stopping_is_asked_again(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(STOPPING, STOPPING, says("200 OK", b"at last"))
    result = run(command(path))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"at last", b"")
    assert len(set(daemon.requests)) == 1


def test_a_daemon_that_goes_on_stopping_is_given_up_in_its_own_words(path: Path, serve: Callable[..., Daemon]) -> None:
    daemon = serve(*[STOPPING] * 100)
    result = run(command(path, "--timeout", "0.3", action="net-out"))
    assert (result.returncode, result.stdout) == (1, b"")
    assert one_line(result) == "conet-hook: net-out web-1: conetd is stopping\n"
    assert 1 < len(daemon.requests) < 100


def test_flags_may_come_before_the_engines_own(path: Path, serve: Callable[..., Daemon]) -> None:
    """As Guardian calls its plugin: whatever --network-plugin-extra-arg says, then the action."""
    daemon = serve(says("200 OK", b"{}"))
    argv = [str(HOOK), "--socket", str(path), "--timeout=5", "--action", "bulk-net-out", "--handle", "web-1"]
    assert run(argv).returncode == 0
    assert daemon.requests[0].startswith(b"POST /containers/web-1/bulk-net-out HTTP/1.1\r\n")


@pytest.mark.parametrize("stale", [False, True], ids=["no socket file", "a stale socket file"])
def test_a_daemon_that_is_not_there_yet_is_waited_for(path: Path, serve: Callable[..., Daemon], stale: bool) -> None:
    if stale:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    with subprocess.Popen(command(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        path.unlink(missing_ok=True)
        serve(says("200 OK", b"here now"))
        assert process.communicate(STATE, timeout=20)[0] == b"here now"
    assert process.returncode == 0


def test_a_daemon_that_never_comes_is_given_up_with_the_reason(path: Path) -> None:
    result = run(command(path, "--timeout", "0.2"))
    assert result.returncode == 1
    expected = f"conet-hook: could not reach conetd within 0.2 s at {path}: No such file or directory\n"
    assert one_line(result) == expected


def test_a_daemon_that_never_answers_is_given_up(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        result = run(command(path, "--timeout=0.2"))
    assert result.returncode == 1
    assert one_line(result) == f"conet-hook: conetd did not answer within 0.2 s at {path}\n"


def test_a_stranger_on_the_socket_is_told_apart(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says_exactly(b"220 smtp\r\n\r\n"), hangs_up)
    result = run(command(path, "--timeout", "1"))
    assert result.returncode == 1
    assert "does not speak HTTP" in one_line(result)


def test_the_environment_names_the_socket_where_no_flag_does(path: Path, serve: Callable[..., Daemon]) -> None:
    serve(says("200 OK", b"found"))
    result = run([str(HOOK), "--handle", "h", "--action", "up"], CONETD_PRIVATE_SOCKET=str(path))
    assert (result.returncode, result.stdout) == (0, b"found")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--action", "up"], "--handle and --action are needed"),
        (["--handle", "h"], "--handle and --action are needed"),
        (["--handle", "h", "--action"], "--action needs a value"),
        (["--handle=", "--action", "up"], "--handle needs a value"),
        (
            ["--handle", "h", "--action", "sideways"],
            "--action is up, down, net-in, net-out or bulk-net-out, not 'sideways'",
        ),
        (["--handle", "h", "--action", "up", "--colour", "red"], "'--colour' is not known"),
        (["--handle", "h", "--action", "up", "--timeout", "soon"], "--timeout takes seconds, more than 0, not 'soon'"),
        (["--handle", "h", "--action", "up", "--timeout", "0"], "--timeout takes seconds, more than 0, not '0'"),
        (["--handle", "h", "--action", "up", "--socket", "/" + "x" * 107], "longer than 107 bytes"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments: list[str], reason: str) -> None:
    result = run([str(HOOK), *arguments])
    assert (result.returncode, result.stdout) == (2, b"")
    assert reason in one_line(result)


def test_help_is_printed() -> None:
    result = run([str(HOOK), "--help"])
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"usage: conet-hook --handle")


def test_the_hook_imports_next_to_nothing(path: Path, serve: Callable[..., Daemon]) -> None:
    """Its start is on the path of every container: what a bare interpreter loads, and two built-in modules."""
    program = (
        "import sys, posix; bare = set(sys.modules); posix._exit = lambda code: print(*set(sys.modules) - bare)\n"
        "sys.argv = sys.argv[1:]; exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"
    )
    serve(says("200 OK", b""))
    result = run([sys.executable, "-IS", "-c", program, *command(path)])
    assert result.stderr == b""
    assert set(result.stdout.split()) <= {b"_socket", b"time"}
