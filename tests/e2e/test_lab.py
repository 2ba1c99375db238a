"""Whether the lab builds what it says, its faults do what they say and are undone, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from inhabitants import Inhabitants, inhabitants, still_there
from pytest_netns import missing
from world import eventually

from lab import etcd
from lab.cluster import Lab
from lab.errors import LabError
from lab.hosts import Container, Host
from lab.talk import ask, echoes, serving
from lab.underlay import WORLD

pytestmark = pytest.mark.skipif(bool(missing() or etcd.missing()), reason=str(missing() or etcd.missing()))
ROOT = Path(__file__).parents[2]
TTL_S = 5
FROM_WEB = [{"direction": "ingress", "peer": {"labels": {"app": "web"}}}]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: a socket's path has at most 107 bytes, and a lab makes folders below it."""
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(3, tmp_path_factory.mktemp("lab"), ttl=TTL_S) as lab:
        lab.network()
        yield lab


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """The module's lab at rest, without containers."""
    built.wait_until_joined()
    with built.restored():
        yield built
    for container in built.containers.values():
        container.remove()


@pytest.fixture
def web(lab: Lab) -> Container:
    return lab.hosts[0].container("web", {"app": "web"})


@pytest.fixture
def db(lab: Lab) -> Container:
    """On the other half of the underlay, and open to `web`."""
    made = lab.hosts[2].container("db", {"app": "db"})
    made.policy(policies=FROM_WEB)
    return made


def reaches(one: Container, other: Container) -> bool:
    return all(echoes(one.netns, version, address) for version, address in other.addresses.items())


def cluster_state(host: Host) -> str:
    return str(host.daemon.get("/status").body["cluster"]["state"])


def test_every_machine_reaches_every_other_and_the_world(lab: Lab) -> None:
    for host in lab.hosts:
        for addresses in (WORLD, *(other.addresses for other in lab.hosts if other is not host)):
            assert all(echoes(host.netns, *one) for one in addresses.items()), f"{host.name}: {addresses}"


def test_a_router_stands_between_the_halves(lab: Lab) -> None:
    def hop_limit_left(source: Host, target: Host) -> bool:
        """Whether one hop is enough."""
        source.netns.sysctl("net.ipv4.ip_default_ttl", 1)
        try:
            return echoes(source.netns, 4, target.addresses[4])
        finally:
            source.netns.sysctl("net.ipv4.ip_default_ttl", 64)

    first, second, third = lab.hosts
    assert hop_limit_left(first, second)
    assert not hop_limit_left(first, third)


def test_containers_talk_across_hosts_as_a_policy_by_label_says(lab: Lab, web: Container, db: Container) -> None:
    stranger = lab.hosts[1].container("stranger", {"app": "other"})
    with serving(db.netns, 5432):
        for version, address in db.addresses.items():
            assert ask(web.netns, address, 5432) == f"hello {web.addresses[version]}"
            assert ask(stranger.netns, address, 5432, seconds=0.5) == "timeout"


def test_a_container_can_be_taken_down_and_another_be_of_its_name(lab: Lab, web: Container) -> None:
    once = inhabitants([web.netns.inode])
    web.remove()

    assert any(once.values())
    assert not still_there(once)
    assert lab.containers == {}
    assert lab.hosts[1].container("web").host is lab.hosts[1]


def test_what_a_daemon_refuses_is_said(lab: Lab) -> None:
    with pytest.raises(LabError, match="daemon answered 422"):
        lab.hosts[0].container("web", networks=["nowhere"])


# Faults


def test_a_host_that_is_cut_off_reaches_nobody_while_it_lives_on(lab: Lab, web: Container, db: Container) -> None:
    near = lab.hosts[2].container("near", {"app": "web"})
    lab.cut(lab.hosts[2])

    assert not reaches(web, db)
    assert not echoes(lab.hosts[0].netns, 4, lab.hosts[2].addresses[4])
    assert reaches(near, db)
    assert lab.hosts[2].runs
    lab.heal(lab.hosts[2])
    eventually(lambda: reaches(web, db), "the host is back")


def test_a_host_without_etcd_says_so_and_is_reached_by_the_others(lab: Lab, web: Container, db: Container) -> None:
    lab.cut_etcd(lab.hosts[2])

    eventually(lambda: cluster_state(lab.hosts[2]) == "away", "the host misses etcd")
    assert cluster_state(lab.hosts[0]) == "connected"
    assert echoes(lab.hosts[0].netns, 4, lab.hosts[2].addresses[4])
    lab.heal()
    eventually(lambda: cluster_state(lab.hosts[2]) == "connected", "the host has etcd again")


def test_etcd_can_be_cut_off_from_all_hosts(lab: Lab) -> None:
    lab.cut_etcd()
    eventually(lambda: {cluster_state(host) for host in lab.hosts} == {"away"}, "all hosts miss etcd")
    lab.heal()
    eventually(lambda: {cluster_state(host) for host in lab.hosts} == {"connected"}, "all hosts have etcd again")


def test_some_packets_of_a_host_are_lost(lab: Lab) -> None:
    source, target = lab.hosts[0].netns, lab.hosts[1].addresses[4]
    lab.lose(lab.hosts[0], 40)
    answered = sum(echoes(source, 4, target, 0.05) for _ in range(60))  # about 0.6 * 0.6 of them
    assert 0 < answered < 60

    lab.heal(lab.hosts[0])
    assert all(echoes(source, 4, target) for _ in range(20))


def test_packets_of_a_host_are_late(lab: Lab) -> None:
    try:
        lab.lose(lab.hosts[0], 0, delay_ms=100)
    except LabError as err:
        pytest.skip(str(err))
    source, target = lab.hosts[0].netns, lab.hosts[1].addresses[4]
    assert not echoes(source, 4, target, 0.15)
    assert echoes(source, 4, target, 2.0)
    lab.heal()
    assert echoes(source, 4, target, 0.15)


def test_a_share_that_is_none_is_refused(lab: Lab) -> None:
    with pytest.raises(LabError, match="100 percent"):
        lab.lose(lab.hosts[0], 101)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_containers_outlive_their_daemon(lab: Lab, web: Container, db: Container, how: str) -> None:
    host = lab.hosts[2]
    assert host.daemon.process is not None
    before = host.daemon.process.pid
    if how == "kill":
        lab.kill(host)
        assert not host.runs
        assert reaches(web, db)
        lab.start(host)
    else:
        lab.restart(host)

    assert host.daemon.process.pid != before
    assert reaches(web, db)
    assert host.daemon.get("/containers/db").body["state"] == "up"


def test_a_reboot_takes_all_but_the_state_directory(lab: Lab, db: Container) -> None:
    host = lab.hosts[2]
    booted, part = boot_id(host), lease(host)
    once = inhabitants([host.netns.inode, db.netns.inode])
    assert all(once.values())
    links = [one["ifname"] for one in host.netns.json("ip", "-j", "link")]
    lab.cut(lab.hosts[0])
    lab.reboot(host)

    eventually(lambda: not still_there(once), "its processes are gone")
    assert host.containers == {}
    assert boot_id(host) != booted
    assert lease(host) == part
    eventually(lambda: host.daemon.get("/containers/db").body["state"] == "down", "the daemon sees it is gone")
    gone = {one for one in links if one.startswith("cv")}
    assert gone
    assert not gone & {one["ifname"] for one in host.netns.json("ip", "-j", "link")}


def test_a_rebooted_host_takes_part_again(lab: Lab, web: Container, db: Container) -> None:
    lab.reboot(lab.hosts[2])
    again = lab.hosts[2].container("again", {"app": "web"})
    again.policy(policies=FROM_WEB)

    eventually(lambda: reaches(web, again), "the others reach its new container")


def test_packets_stay_as_bad_over_a_reboot(lab: Lab) -> None:
    lab.cut(lab.hosts[1])
    lab.reboot(lab.hosts[1])
    assert not echoes(lab.hosts[0].netns, 4, lab.hosts[1].addresses[4])


def test_one_member_of_etcd_may_die_and_a_cluster_without_any_is_away(lab: Lab) -> None:
    lab.etcd.kill(1)
    lab.etcd.stop(0, 2)
    assert set(lab.members().values()) == {False}
    eventually(lambda: {cluster_state(host) for host in lab.hosts} == {"away"}, "all hosts miss etcd")

    lab.etcd.start()
    eventually(lambda: {cluster_state(host) for host in lab.hosts} == {"connected"}, "all hosts have etcd again")


def test_faults_of_a_block_are_undone_also_after_a_failure(lab: Lab, web: Container, db: Container) -> None:
    def set_faults() -> None:
        with lab.restored():
            lab.cut(lab.hosts[0])
            lab.cut_etcd(lab.hosts[1])
            lab.kill(lab.hosts[2])
            lab.etcd.kill(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        set_faults()
    assert [host.runs for host in lab.hosts] == [True] * 3
    assert set(lab.members().values()) == {True}
    lab.wait_until_joined()
    eventually(lambda: reaches(web, db), "packets pass")


def boot_id(host: Host) -> str:
    """As the daemon sees it."""
    assert host.daemon.process is not None
    seen = ["nsenter", "--target", str(host.daemon.process.pid), "--mount", "cat", "/proc/sys/kernel/random/boot_id"]
    return subprocess.run(seen, check=True, capture_output=True, text=True).stdout


def lease(host: Host) -> str:
    return str(host.daemon.get("/status").body["cluster"]["networks"]["overlay"]["lease"]["subnet"])


# What is left


def test_an_ipv6_underlay_carries_both_versions_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Lab(2, etcd_members=1, underlay=6) as lab:
        lab.network()
        lab.wait_until_joined()
        one, other = (host.container(f"c{host.name}", {"app": "web"}) for host in lab.hosts)
        other.policy(policies=FROM_WEB)
        eventually(lambda: reaches(one, other), "the containers reach each other")
        assert ":" in lab.hosts[0].daemon.get("/status").body["cluster"]["networks"]["overlay"]["lease"]["underlay"]
        once = inhabitants(one.inode for one in lab.namespaces)
        assert len(once) == 7
        assert all(once.values())
    assert not still_there(once)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    once: Inhabitants = {}

    def fail() -> None:
        with Lab(2, tmp_path, etcd_members=1) as lab:
            lab.cut(lab.hosts[0])
            once.update(inhabitants(one.inode for one in lab.namespaces))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(once) == 5
    assert all(once.values())
    assert not still_there(once)


def test_nothing_is_left_of_a_lab_that_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the daemon ended"), Lab(1, tmp_path, settings='color = "red"'):
        pass
    assert not running_below(tmp_path)


def running_below(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended since
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if f"{folder}/" in line]


# The prompt

LAB = [sys.executable, "-m", "lab", "2", "--etcd", "1"]


def play(tmp_path: Path, commands: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    return subprocess.run(
        LAB, input=commands, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment, check=False
    )


def test_commands_come_by_a_pipe(tmp_path: Path) -> None:
    done = play(
        tmp_path,
        "up h1 web app=web\nup h2 db\nserve db 5432\nask web db 5432 udp\nallow app=web db udp 5432\n"
        "ask web db 5432 udp\ncut h2\nask web db 5432 udp\nheal\nask web db 5432 udp\nexec web echo hello\ndown web\n"
        "containers\nquit\n",
    )

    assert done.returncode == 0, done.stdout + done.stderr
    said = [answer.strip().splitlines() for answer in done.stdout.split("lab> ")]
    answers = [lines[1].partition(": ")[2] for lines in said if lines[0].startswith("ask")]
    assert answers[0] == answers[2] == "timeout"
    assert answers[1] == answers[3]
    assert answers[1].startswith("hello 10.1.")
    assert ["exec web echo hello", "hello"] in said
    assert next(lines for lines in said if lines[0] == "containers")[1].startswith("db ")
    assert not list(tmp_path.iterdir())


def test_a_command_that_cannot_be_done_is_said_and_makes_the_lab_fail(tmp_path: Path) -> None:
    done = play(tmp_path, "up h9 web\nallow web db tcp\nfly\nshell h1\nhosts\n")

    assert done.returncode == 1
    assert "error: there is no host h9, only h1 to h2" in done.stdout
    assert "error: tcp cannot be allowed: say tcp PORT, udp PORT, icmp or all" in done.stdout
    assert "error: there is no command fly; try help" in done.stdout
    assert "error: a shell needs a terminal" in done.stdout
    assert "h2   192.0.2" not in done.stdout.partition("shell h1")[0]  # it went on after each
    assert "198.51.100.2" in done.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_lab_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen(
        ["env", "--default-signal=INT", *LAB],  # whoever runs the tests in the background has it ignored
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as lab:
        assert lab.stdout is not None
        while not lab.stdout.readline().startswith("help lists"):
            assert lab.poll() is None
        assert running_below(tmp_path)
        lab.send_signal(how)
        assert lab.wait(30) != 0
    eventually(lambda: not running_below(tmp_path), "all its processes have ended")
    if how != signal.SIGKILL:  # which leaves files
        assert not list(tmp_path.iterdir())


def test_who_is_not_root_is_told_in_one_sentence() -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    done = subprocess.run([*nobody, *LAB], capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("the lab needs root")
    assert done.stderr.count("\n") == 1
