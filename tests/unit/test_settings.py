"""Settings: defaults, file, environment, and what is refused with which words."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conetd import settings
from conetd.errors import Invalid
from conetd.settings import ClusterSettings, PortPool, Settings


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "conetd.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_an_empty_file_gives_the_defaults(written: Any) -> None:
    assert settings.load(written(""), {}) == Settings()


def test_the_defaults_are_those_documented() -> None:
    assert Settings().document() == {
        "state_dir": "/var/lib/conetd",
        "public_socket": "/run/conetd/conetd.sock",
        "private_socket": "/run/conetd/guardian.sock",
        "filter": "auto",
        "drivers": ["bridge"],
        "default_attach_to": [],
        "networks": [],
        "external_ip": "auto",
        "port_pool": {"start": 61001, "size": 4534},
        "driver_timeout": 30.0,
        "log": "text",
        "fast_path": True,
    }


EVERYTHING = """
state_dir = "/srv/conetd"
public_socket = "/srv/run/public.sock"
private_socket = "/srv/run/private.sock"
socket_group = "operators"
filter = "iptables"
drivers = ["bridge", "acme"]
default_attach_to = ["blue"]
external_ip = "2001:db8::1"
driver_timeout = 2
log = "json"
fast_path = false

[port_pool]
start = 50000
size = 100

[cluster]
etcd = ["https://192.0.2.1:2379", "https://[2001:db8::2]:2379"]
prefix = "/lab/one"
host = "h1"
ttl = 30
ca = "/etc/conetd/ca.pem"
cert = "/etc/conetd/cert.pem"
key = "/etc/conetd/key.pem"
user = "conetd"
password_file = "/etc/conetd/password"

[[networks]]
name = "blue"
type = "bridge"
config = { subnet = "10.1.0.0/24" }
"""


def test_every_key_of_the_file_arrives(written: Any) -> None:
    assert settings.load(written(EVERYTHING), {}) == Settings(
        state_dir=Path("/srv/conetd"),
        public_socket=Path("/srv/run/public.sock"),
        private_socket=Path("/srv/run/private.sock"),
        socket_group="operators",
        filter="iptables",
        drivers=("bridge", "acme"),
        default_attach_to=("blue",),
        networks=({"name": "blue", "type": "bridge", "config": {"subnet": "10.1.0.0/24"}},),
        external_ip=ip_address("2001:db8::1"),
        port_pool=PortPool(50000, 100),
        driver_timeout=2.0,
        log="json",
        fast_path=False,
        cluster=ClusterSettings(
            etcd=("https://192.0.2.1:2379", "https://[2001:db8::2]:2379"),
            prefix="/lab/one",
            host="h1",
            ttl=30,
            ca=Path("/etc/conetd/ca.pem"),
            cert=Path("/etc/conetd/cert.pem"),
            key=Path("/etc/conetd/key.pem"),
            user="conetd",
            password_file=Path("/etc/conetd/password"),
        ),
    )


def test_settings_printed_and_loaded_again_are_the_same(written: Any) -> None:
    loaded = settings.load(written(EVERYTHING), {})
    assert settings.parse(loaded.document()) == loaded


def test_the_shipped_example_says_the_defaults() -> None:
    example = Path(__file__).parents[2] / "contrib" / "conetd.toml"
    assert settings.load(example, {}) == Settings()


def test_the_shipped_example_names_every_setting_and_each_can_be_uncommented(written: Any) -> None:
    example = (Path(__file__).parents[2] / "contrib" / "conetd.toml").read_text()
    # a setting has "#" right before it, prose has a space between
    lines = [
        line[1:] if line.startswith("#") and line[1:2] not in ("", " ", "#") else line for line in example.split("\n")
    ]
    loaded = settings.load(written("\n".join(lines)), {})
    assert set(loaded.document()) == set(Settings.__slots__)
    assert loaded.networks


def test_a_cluster_needs_no_more_than_its_etcd(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _name_the_system(monkeypatch, "node-7")
    assert settings.load(written(_cluster()), {}).cluster == ClusterSettings(
        etcd=("http://192.0.2.1:2379",), host="node-7", prefix="/conetd", ttl=15
    )


def test_a_hostname_that_cannot_be_a_name_has_to_be_replaced(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _name_the_system(monkeypatch, "node 7")
    with pytest.raises(Invalid, match=r"cluster\.host: Needed: the system's hostname 'node 7' is not a possible name"):
        settings.load(written(_cluster()), {})


def test_a_slash_at_the_end_of_the_prefix_is_no_part_of_it(written: Any) -> None:
    loaded = settings.load(written(_cluster('prefix = "/lab/one/"')), {}).cluster
    assert loaded is not None
    assert loaded.prefix == "/lab/one"


def _cluster(*lines: str, etcd: str = "http://192.0.2.1:2379") -> str:
    return "\n".join(["[cluster]", f'etcd = ["{etcd}"]', *lines])


def _name_the_system(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    said = SimpleNamespace(nodename=name)
    monkeypatch.setattr(os, "uname", lambda: said)


_NO_URL = "Must be http://host:port or https://host:port."


@pytest.mark.parametrize(
    ("text", "path", "complaint"),
    [
        ('sockets = "/x"', "sockets", "Unknown field."),
        ("[port_pool]\nbegin = 1", "port_pool.begin", "Unknown field."),
        ('state_dir = "var/lib"', "state_dir", "Must be an absolute path."),
        ("state_dir = 7", "state_dir", "Not a valid string."),
        (f'public_socket = "/{"x" * 107}"', "public_socket", "Longer than the 107 bytes"),
        ('private_socket = "/run/conetd/conetd.sock"', "private_socket", "The two sockets need two paths."),
        ('socket_group = ""', "socket_group", "Shorter than minimum length 1."),
        ('filter = "nft"', "filter", "Must be one of: auto, nftables, iptables."),
        ("drivers = []", "drivers", "Shorter than minimum length 1."),
        ('drivers = ["bridge", "bridge"]', "drivers[1]", "Named twice."),
        ('drivers = ["bri dge"]', "drivers[0]", "Not a possible name."),
        ('default_attach_to = ["a", "b", "a"]', "default_attach_to[2]", "Named twice."),
        ('default_attach_to = ["a\\n"]', "default_attach_to[0]", "Not a possible name."),
        ('external_ip = "localhost"', "external_ip", 'Must be "auto" or an IP address.'),
        ("external_ip = 1", "external_ip", 'Must be "auto" or an IP address.'),
        ('external_ip = "127.0.0.1"', "external_ip", "Nobody can reach a published port at this address."),
        (
            "[port_pool]\nstart = 61001\nsize = 4535",
            "port_pool.size",
            "start 61001 and size 4535 together exceed 65535",
        ),
        ("[port_pool]\nstart = 0", "port_pool.start", "Must be greater than or equal to 1"),
        ("[port_pool]\nsize = 1.5", "port_pool.size", "Not a valid integer."),
        ("driver_timeout = 0", "driver_timeout", "Must be a number of seconds above 0."),
        ("driver_timeout = inf", "driver_timeout", "Must be a number of seconds above 0."),
        ("driver_timeout = nan", "driver_timeout", "Must be a number of seconds above 0."),
        ("driver_timeout = true", "driver_timeout", "Must be a number of seconds above 0."),
        ('driver_timeout = "30"', "driver_timeout", "Must be a number of seconds above 0."),
        ('log = "xml"', "log", "Must be one of: text, json."),
        ('fast_path = "yes"', "fast_path", 'must be true or false. (got "yes")'),
        ("fast_path = 1", "fast_path", "must be true or false. (got 1)"),
        ("fast_path = [true]", "fast_path", "must be true or false. (got [true])"),
        ('networks = ["blue"]', "networks[0]", "Not an object."),
        ('[[networks]]\ntype = "bridge"', "networks[0].name", "Missing, or not a string."),
        ('[[networks]]\nname = "a"\n[[networks]]\nname = "a"', "networks[1].name", "Declared twice."),
        ('[cluster]\nhost = "h1"', "cluster.etcd", "Missing data for required field."),
        ("[cluster]\netcd = []", "cluster.etcd", "Shorter than minimum length 1."),
        (_cluster(etcd="192.0.2.1:2379"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://192.0.2.1"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://192.0.2.1:0"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://192.0.2.1:99999"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://192.0.2.1:2379/"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://:2379"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://me:secret@192.0.2.1:2379"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="http://[2001:db8::1:2379"), "cluster.etcd[0]", _NO_URL),
        (_cluster(etcd="ftp://192.0.2.1:2379"), "cluster.etcd[0]", _NO_URL),
        ('cluster.etcd = ["http://a:1", "http://b:1", "http://a:1"]', "cluster.etcd[2]", "Named twice."),
        (_cluster('prefix = "conetd"'), "cluster.prefix", "with a slash before each"),
        (_cluster('prefix = "/"'), "cluster.prefix", "with a slash before each"),
        (_cluster('prefix = "/a//b"'), "cluster.prefix", "with a slash before each"),
        (_cluster('host = "a/b"'), "cluster.host", "Not a possible name."),
        (_cluster("ttl = 1"), "cluster.ttl", "Must be greater than or equal to 2"),
        (_cluster("ttl = 3601"), "cluster.ttl", "less than or equal to 3600"),
        (_cluster("ttl = 2.5"), "cluster.ttl", "Not a valid integer."),
        (_cluster('ca = "ca.pem"'), "cluster.ca", "Must be an absolute path."),
        (_cluster('ca = "/ca.pem"'), "cluster.ca", "Of no use for http://192.0.2.1:2379, which is not https."),
        (_cluster('cert = "/c.pem"', etcd="https://a:1"), "cluster.cert", "Needs key beside it."),
        (_cluster('key = "/k.pem"', etcd="https://a:1"), "cluster.key", "Needs cert beside it."),
        (_cluster('user = "conetd"'), "cluster.user", "Needs password_file beside it."),
        (_cluster('password_file = "/p"'), "cluster.password_file", "Needs user beside it."),
        (_cluster('password = "x"'), "cluster.password", "Unknown field."),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path_and_the_file(
    written: Any, text: str, path: str, complaint: str
) -> None:
    file = written(text)
    with pytest.raises(Invalid) as caught:
        settings.load(file, {})
    assert complaint in caught.value.fields[path]
    assert str(caught.value).startswith(f"settings file {file}: {path}: ")


def test_a_pool_may_reach_up_to_65534_as_the_default_does(written: Any) -> None:
    assert settings.load(written("[port_pool]\nstart = 65534\nsize = 1"), {}).port_pool == PortPool(65534, 1)


def test_a_syntax_error_names_file_and_line(written: Any) -> None:
    path = written('log = "text"\nfilter nftables\n')
    with pytest.raises(Invalid, match=rf"settings file {path} is not TOML: .*line 2"):
        settings.load(path, {})


def test_a_file_that_is_not_utf8_is_refused(written: Any) -> None:
    with pytest.raises(Invalid, match=r"is not UTF-8: .* at byte 7"):
        settings.load(written(b'log = "\xff"'), {})


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cannot be read: Is a directory"):
        settings.load(tmp_path, {})


def test_a_missing_file_is_refused_when_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"settings file .*/none.toml does not exist"):
        settings.load(tmp_path / "none.toml", {})
    with pytest.raises(Invalid, match=r"settings file .*/none.toml does not exist"):
        settings.load(None, {"CONETD_CONFIG": str(tmp_path / "none.toml")})


def test_a_missing_default_file_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULT_PATH", tmp_path / "none.toml")
    assert settings.load(None, {}) == Settings()


def test_the_flag_goes_before_the_environment_for_the_path(written: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('log = "json"')
    assert settings.load(written(""), {"CONETD_CONFIG": str(other)}).log == "text"
    assert settings.load(None, {"CONETD_CONFIG": str(other)}).log == "json"


def test_the_environment_goes_before_the_file_for_the_sockets(written: Any) -> None:
    environment = {"CONETD_PUBLIC_SOCKET": "/tmp/a", "CONETD_PRIVATE_SOCKET": "/tmp/b"}
    loaded = settings.load(written(EVERYTHING), environment)
    assert (loaded.public_socket, loaded.private_socket) == (Path("/tmp/a"), Path("/tmp/b"))


def test_an_empty_variable_counts_as_unset(written: Any) -> None:
    assert settings.load(written(""), {"CONETD_PUBLIC_SOCKET": ""}) == Settings()


def test_a_variable_is_checked_like_the_file(written: Any) -> None:
    with pytest.raises(Invalid, match=r"public_socket: Must be an absolute path"):
        settings.load(written(""), {"CONETD_PUBLIC_SOCKET": "here.sock"})
