"""The player of Guardian says to a plugin what Guardian says, and makes of its answers what Guardian makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guardian import Guardian, GuardianError

# Notes argv, stdin, process group and working directory of each of its runs, and does as the files beside it say.
PLUGIN = """#!/bin/sh
cd "$(dirname "$0")"
n=$(ls | grep -c argv)
for word; do printf '%s\\n' "$word" >> "$n.argv"; done
cat > "$n.stdin"
cut -d ' ' -f 5 "/proc/$$/stat" > "$n.group"
echo "$OLDPWD $PLAYED" > "$n.around"
echo noise >&2
cat answer
exit "$(cat code)"
"""
EXTRA = ["--socket", "/run/some where/guardian.sock"]
ADDRESS = {"garden.network.container-ip": "10.10.0.2"}
ADDRESSES = ADDRESS | {"garden.network.container-ipv6": "fd00::2"}
ANSWER = {"properties": ADDRESS}


class Plugin:
    """A plugin that answers what it is told to, and whose runs can be looked at."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "plugin"
        self.path.write_text(PLUGIN)
        self.path.chmod(0o755)
        self.answers(ANSWER)

    def answers(self, answer: Any, code: int = 0) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.folder / "answer").write_text(text + "\n" if text else "")
        (self.folder / "code").write_text(str(code))

    @property
    def runs(self) -> list[tuple[list[str], str]]:
        """Arguments and stdin of each."""
        numbers = range(len(list(self.folder.glob("*.argv"))))
        return [(self.noted(n, "argv").splitlines(), self.noted(n, "stdin")) for n in numbers]

    @property
    def actions(self) -> list[str]:
        return [argv[argv.index("--action") + 1] for argv, _ in self.runs]

    def noted(self, number: int, what: str) -> str:
        return (self.folder / f"{number}.{what}").read_text()


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "plugin")


@pytest.fixture
def guardian(plugin: Plugin, tmp_path: Path) -> Guardian:
    return Guardian(plugin.path, tmp_path / "depot", EXTRA, properties_path=tmp_path / "properties.json")


RULE = {"log": True, "ports": [{"end": 80, "start": 80}], "networks": [{"start": "192.0.2.2"}], "protocol": 1}
RULE_SAID = '{"protocol":1,"networks":[{"start":"192.0.2.2"}],"ports":[{"start":80,"end":80}],"log":true}'
NET_IN = '{"HostIP":"192.0.2.1","HostPort":%d,"ContainerIP":"10.10.0.2","ContainerPort":%d}'
NET_OUT = '{"container_ip":"10.10.0.2","netout_rule":%s}'
BULK = '{"container_ip":"10.10.0.2","netout_rules":%s}'


@pytest.mark.parametrize(
    ("action", "act", "stdin"),
    [
        ("up", lambda g: g.create("other", 4242), '{"Pid":4242,"Properties":{}}'),
        ("down", lambda g: g.destroy("web"), "null"),
        ("net-in", lambda g: g.net_in("web", 7000, 8080), NET_IN % (7000, 8080)),
        ("net-in", lambda g: g.net_in("web", 0, 0), NET_IN % (0, 0)),
        ("net-out", lambda g: g.net_out("web", {}), NET_OUT % "{}"),
        ("net-out", lambda g: g.net_out("web", RULE), NET_OUT % RULE_SAID),
        ("bulk-net-out", lambda g: g.bulk_net_out("web", None), BULK % "null"),
        ("bulk-net-out", lambda g: g.bulk_net_out("web", []), BULK % "[]"),
        ("bulk-net-out", lambda g: g.bulk_net_out("web", [RULE, {}]), BULK % f"[{RULE_SAID},{{}}]"),
    ],
)
def test_each_action_has_its_words(
    guardian: Guardian, plugin: Plugin, action: str, act: Callable[[Guardian], object], stdin: str
) -> None:
    guardian.create("web", 1)
    act(guardian)
    argv, said = plugin.runs[-1]
    assert argv == [*EXTRA, "--action", action, "--handle", "other" if action == "up" else "web"]
    assert said == stdin


def test_an_up_carries_what_was_given_at_creation(guardian: Guardian, plugin: Plugin) -> None:
    given = {"network.zone": "a&b", "network.": "x", "log_config": "{}", "mine": "1", "garden.network.y": "2"}
    guardian.create("web", 7, netin=[{"container_port": 80}, {}], netout_rules=[RULE], properties=given)
    [(_, stdin)] = plugin.runs
    properties = r'{"log_config":"{}","":"x","zone":"a\u0026b"}'
    netin = '[{"host_port":0,"container_port":80},{"host_port":0,"container_port":0}]'
    assert stdin == f'{{"Pid":7,"Properties":{properties},"netout_rules":[{RULE_SAID}],"netin":{netin}}}'


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"protocol": 0, "log": False, "networks": [], "ports": [], "icmps": None}, {}),
        ({"ports": [{"start": 80, "end": 0}, {}]}, {"ports": [{"start": 80}, {}]}),
        ({"networks": [{"end": "::1", "start": None}]}, {"networks": [{"end": "::1"}]}),
        ({"icmps": {"type": 0, "code": None}, "protocol": 3}, {"protocol": 3, "icmps": {}}),
        ({"icmps": {"code": 0, "type": 3}}, {"icmps": {"type": 3, "code": 0}}),
    ],
)
def test_a_rule_is_written_without_what_is_zero(
    guardian: Guardian, plugin: Plugin, rule: dict[str, Any], said: dict[str, Any]
) -> None:
    guardian.create("web", 1)
    guardian.net_out("web", rule)
    assert plugin.runs[-1][1] == NET_OUT % json.dumps(said, separators=(",", ":"))


def test_the_plugin_runs_in_a_process_group_of_its_own_where_guardian_runs(
    guardian: Guardian, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLAYED", "inherited")
    monkeypatch.chdir(tmp_path)
    guardian.create("web", 1)
    assert plugin.noted(0, "around") == f"{tmp_path} inherited\n"
    assert int(plugin.noted(0, "group")) != os.getpgrp()


# Which calls there are


def test_what_is_given_at_creation_is_one_call(guardian: Guardian, plugin: Plugin) -> None:
    guardian.create("web", 1, netin=[{}], netout_rules=[{}])
    assert plugin.actions == ["up"]


def test_a_creation_that_fails_is_cleaned_up(guardian: Guardian, plugin: Plugin, tmp_path: Path) -> None:
    plugin.answers("no json")
    with pytest.raises(GuardianError, match=r"^unmarshaling result from external networker: "):
        guardian.create("web", 1)
    assert plugin.actions == ["up", "down"]
    assert (guardian.handles, guardian.properties, list((tmp_path / "depot").iterdir())) == (set(), {}, [])


def test_without_a_process_there_is_no_up_but_a_down(guardian: Guardian, plugin: Plugin) -> None:
    with pytest.raises(GuardianError, match=r"^container init PID was 0$"):
        guardian.create("web", 0)
    assert plugin.actions == ["down"]


def test_a_container_whose_clean_up_failed_stays_to_be_destroyed(guardian: Guardian, plugin: Plugin) -> None:
    plugin.answers(ANSWER, code=1)
    with pytest.raises(GuardianError, match="'up' action"):
        guardian.create("web", 1)
    with pytest.raises(GuardianError, match="'down' action"):
        guardian.destroy("web")
    plugin.answers("ignored")
    guardian.destroy("web")
    assert plugin.actions == ["up", "down", "down", "down"]
    with pytest.raises(GuardianError, match=r"^unknown handle: web$"):
        guardian.destroy("web")


@pytest.mark.parametrize("crashed", [False, True], ids=["stopped", "crashed"])
def test_a_restart_calls_nothing_and_keeps_what_a_stop_wrote(guardian: Guardian, plugin: Plugin, crashed: bool) -> None:
    guardian.create("web", 1, properties={"mine": "1"})
    before = guardian.info("web")
    guardian.restart(crashed=crashed)
    nothing = {"HostIP": "", "ContainerIP": "", "ContainerIPv6": "", "ExternalIP": "", "MappedPorts": []}
    assert guardian.info("web") == (nothing | {"Properties": {}} if crashed else before)
    assert plugin.actions == ["up"]
    guardian.destroy("web")
    assert plugin.actions == ["up", "down"]


# What becomes of its answers


def test_properties_are_kept_as_they_are_told_beside_the_clients(guardian: Guardian, plugin: Plugin) -> None:
    ports = '[{"HostPort":1,"ContainerPort":2}]'
    told = ADDRESSES | {"garden.network.host-ip": "10.10.0.1", "garden.network.mapped-ports": ports, "mine": "theirs"}
    plugin.answers({"properties": told, "handle": "not read", "attachments": [1]})
    guardian.create("web", 1, properties={"mine": "1", "other": "2"})
    kept = {"other": "2", "garden.network.external-ip": "192.0.2.1", "garden.state": "created"}
    assert guardian.info("web") == {
        "HostIP": "10.10.0.1",
        "ContainerIP": "10.10.0.2",
        "ContainerIPv6": "fd00::2",
        "ExternalIP": "192.0.2.1",
        "MappedPorts": [{"HostPort": 1, "ContainerPort": 2}],
        "Properties": kept | told,
    }


def test_an_external_ip_of_the_plugin_goes_before_guardians(guardian: Guardian, plugin: Plugin) -> None:
    plugin.answers({"properties": ADDRESS | {"garden.network.external-ip": "198.51.100.1"}})
    guardian.create("web", 1)
    assert guardian.info("web")["ExternalIP"] == "198.51.100.1"


def test_ports_of_net_in_are_appended(guardian: Guardian, plugin: Plugin) -> None:
    plugin.answers({"properties": ADDRESS | {"garden.network.mapped-ports": '[{"HostPort":1,"ContainerPort":2}]'}})
    guardian.create("web", 1)
    plugin.answers({"host_port": 61001, "container_port": 8080})
    assert guardian.net_in("web", 0, 8080) == (61001, 8080)
    plugin.answers("")
    assert guardian.net_in("web", 0, 0) == (0, 0)
    kept = guardian.properties["web"]["garden.network.mapped-ports"]
    assert kept == (
        '[{"HostPort":1,"ContainerPort":2},{"HostPort":61001,"ContainerPort":8080},{"HostPort":0,"ContainerPort":0}]'
    )


def test_ports_that_cannot_be_read_are_shown_as_none(guardian: Guardian, plugin: Plugin) -> None:
    plugin.answers({"properties": {"garden.network.mapped-ports": "many"}})
    guardian.create("web", 1)
    assert guardian.info("web")["MappedPorts"] == []


@pytest.mark.parametrize("answer", ["", "null", "{}", {"properties": None}, {"properties": {"mine": "1"}}], ids=str)
def test_without_an_address_there_is_no_identity_and_no_file_is_written(
    guardian: Guardian, plugin: Plugin, answer: Any
) -> None:
    plugin.answers(answer)
    guardian.create("web", 1)
    assert (guardian.hosts("web"), guardian.resolv_conf("web"), guardian.info("web")["ContainerIP"]) == ("", "", "")
    calls: list[Callable[[], object]] = [
        lambda: guardian.net_in("web", 0, 0),
        lambda: guardian.net_out("web", {}),
        lambda: guardian.bulk_net_out("web", []),
        lambda: guardian.net_in("unheard of", 0, 0),
    ]
    for call, handle in zip(calls, ["web", "web", "web", "unheard of"], strict=True):
        with pytest.raises(GuardianError) as told:
            call()
        assert str(told.value) == f"cannot find container [{handle}]\n"
    assert plugin.actions == ["up"]


@pytest.mark.parametrize("action", ["up", "down", "net-in", "net-out", "bulk-net-out"])
def test_a_failure_is_told_without_the_plugins_words(guardian: Guardian, plugin: Plugin, action: str) -> None:
    guardian.create("web", 1)
    plugin.answers('{"error": "why"}', code=3)
    acts: dict[str, Callable[[], object]] = {
        "up": lambda: guardian.create("other", 1),
        "down": lambda: guardian.destroy("web"),
        "net-in": lambda: guardian.net_in("web", 0, 0),
        "net-out": lambda: guardian.net_out("web", {}),
        "bulk-net-out": lambda: guardian.bulk_net_out("web", []),
    }
    before = guardian.info("web")
    with pytest.raises(GuardianError) as told:
        acts[action]()
    assert str(told.value) == f"external networker encountered an error running '{action}' action: exit status 3"
    assert guardian.info("web") == before


@pytest.mark.parametrize(
    "answer",
    [
        "{",
        "{} trailing",
        "[]",
        {"properties": {"garden.network.mapped-ports": [{"HostPort": 1, "ContainerPort": 2}]}},
        {"properties": ["a"]},
        {"dns_servers": "8.8.8.8"},
        {"dns_servers": [8]},
        {"search_domains": {"a": "b"}},
    ],
    ids=str,
)
def test_an_answer_that_go_could_not_read_is_an_error(guardian: Guardian, plugin: Plugin, answer: Any) -> None:
    plugin.answers(answer)
    with pytest.raises(GuardianError, match=r"^unmarshaling result from external networker: "):
        guardian.create("web", 1)


def test_ports_that_are_no_numbers_are_an_error(guardian: Guardian, plugin: Plugin) -> None:
    guardian.create("web", 1)
    plugin.answers({"host_port": "7000"})
    with pytest.raises(GuardianError, match=r"^unmarshaling result from external networker: "):
        guardian.net_in("web", 0, 0)
    assert guardian.info("web")["MappedPorts"] == []


def test_a_handle_in_use_is_refused(guardian: Guardian, plugin: Plugin) -> None:
    guardian.create("web", 1)
    with pytest.raises(GuardianError, match=r"^Handle 'web' already in use$"):
        guardian.create("web", 1)
    assert plugin.actions == ["up"]


@pytest.mark.parametrize("properties", [{}, {"garden.network.interface": ""}, {"network.healthcheck": "true"}], ids=str)
def test_nothing_is_counted_without_an_interface_or_for_a_health_check(
    guardian: Guardian, plugin: Plugin, properties: dict[str, str]
) -> None:
    plugin.answers({"properties": {"garden.network.interface": "lo"} | properties})
    if not properties:
        plugin.answers({})
    guardian.create("web", 1)
    assert guardian.metrics("web", os.getpid()) is None


# /etc/hosts and /etc/resolv.conf

LONG = "a-handle-of-more-than-49-bytes-" + "x" * 30


@pytest.mark.parametrize(
    ("handle", "properties", "text"),
    [
        ("web", ADDRESS, "127.0.0.1 localhost\n10.10.0.2 web\n"),
        ("web", ADDRESSES, "127.0.0.1 localhost\n::1 localhost\n10.10.0.2 web\nfd00::2 web\n"),
        (LONG, ADDRESS, f"127.0.0.1 localhost\n10.10.0.2 {LONG[-49:]}\n"),
    ],
)
def test_hosts(guardian: Guardian, plugin: Plugin, handle: str, properties: dict[str, str], text: str) -> None:
    plugin.answers({"properties": properties})
    guardian.create(handle, 1)
    assert guardian.hosts(handle) == text


OPERATOR, MORE = ["192.0.2.53"], ["192.0.2.54"]
HOST = "# kept\nsearch host.example\n\nnameserver 198.51.100.53\noptions ndots:2\n"
RESOLVED = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"


@pytest.mark.parametrize(
    ("told", "operator", "more", "host", "text"),
    [
        ({"dns_servers": ["10.0.0.1"]}, OPERATOR, MORE, HOST, "nameserver 10.0.0.1\n"),
        ({"dns_servers": []}, OPERATOR, MORE, HOST, ""),
        ({"dns_servers": ["::ffff:10.0.0.1", "nowhere"]}, [], [], "", "nameserver 10.0.0.1\nnameserver <nil>\n"),
        ({"dns_servers": ["10.0.0.1"], "search_domains": ["a", "b"]}, [], [], "", "nameserver 10.0.0.1\nsearch a b\n"),
        ({"search_domains": []}, OPERATOR, [], HOST, "nameserver 192.0.2.53\nsearch\n"),
        ({}, OPERATOR, MORE, HOST, "nameserver 192.0.2.53\nnameserver 192.0.2.54\n"),
        ({"dns_servers": None}, OPERATOR, [], HOST, "nameserver 192.0.2.53\n"),
        (
            {},
            [],
            MORE,
            HOST,
            "# kept\nsearch host.example\nnameserver 198.51.100.53\noptions ndots:2\nnameserver 192.0.2.54\n",
        ),
        (
            {"search_domains": ["a"]},
            [],
            [],
            HOST,
            "# kept\nnameserver 198.51.100.53\noptions ndots:2\nsearch a\n",
        ),
        ({}, [], [], "nameserver 127.0.0.1\n", "nameserver 10.10.0.2\n"),
        ({}, [], MORE, "  nameserver   127.0.0.53 \n\n", "nameserver 10.10.0.2\nnameserver 192.0.2.54\n"),
        ({}, [], [], RESOLVED, "options edns0 trust-ad\nsearch .\n"),
        ({}, [], [], "nameserver 127.0.0.1\nnameserver 127.1.2.3\n", ""),
        ({}, [], [], "nameserver\nnameserver 192.0.2.1 192.0.2.2\nnameserver 192.0.2.3", "nameserver 192.0.2.3\n"),
        ({}, [], [], "", ""),
    ],
)
def test_resolv_conf(
    guardian: Guardian, plugin: Plugin, told: dict[str, Any], operator: list[str], more: list[str], host: str, text: str
) -> None:
    guardian.dns_servers, guardian.additional_dns_servers, guardian.host_resolv_conf = operator, more, host
    plugin.answers(ANSWER | told)
    guardian.create("web", 1)
    assert guardian.resolv_conf("web") == text


def test_the_files_are_gone_after_a_good_down_alone(guardian: Guardian, plugin: Plugin, tmp_path: Path) -> None:
    guardian.create("web", 1)
    plugin.answers("", code=1)
    with pytest.raises(GuardianError):
        guardian.destroy("web")
    assert guardian.hosts("web") != ""
    plugin.answers("")
    guardian.destroy("web")
    assert list((tmp_path / "depot").iterdir()) == []


def test_true_is_a_plugin(tmp_path: Path) -> None:
    guardian = Guardian(Path("/bin/true"), tmp_path / "depot")
    guardian.create("web", 1)
    guardian.destroy("web")
    assert [call.code for call in guardian.calls] == [0, 0]
