"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conetd import __version__

DRIVER = """
from marshmallow import Schema, fields
from conetd.driver import Conflict, Driver, Invalid, Lease


class Config(Schema):
    subnet = fields.String(required=True)


class Policy(Schema):
    allow = fields.List(fields.String(), load_default=list)


class Acme(Driver):
    config_schema = Config
    policy_schema = Policy

    def check_network(self, new, others):
        for other in others:
            if other.config == new.config:
                raise Conflict(f"{new.name} is like {other.name}", fields={"config.subnet": "taken"})

    def check_policy(self, network, policy):
        if "everything" in policy["allow"]:
            raise Invalid("not everything", fields={"allow[0]": "too much"})

    def allocate(self, network, attachment, held):
        return Lease({}, frozenset())

    def ensure_network(self, ctx): ...
    def remove_network(self, ctx): ...
    def attach(self, ctx): return {}
    def detach(self, ctx): ...
    def apply_policy(self, ctx): ...
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory that holds an installed distribution `acme-net` with the network type `acme`."""
    site = tmp_path / "site"
    info = site / "acme_net-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-net\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[conetd.drivers]\nacme = acme_net:Acme\n")
    (site / "acme_net.py").write_text(DRIVER)
    return site


Conetd = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def conetd(site: Path, tmp_path: Path) -> Conetd:
    def run(*arguments: str | Path, settings: str | None = None, **environment: str) -> Any:
        given = list(arguments)
        if settings is not None:
            (tmp_path / "conetd.toml").write_text(settings)
            given += ["--config", tmp_path / "conetd.toml"]
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        return subprocess.run(
            [sys.executable, "-m", "conetd", *given],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": path} | environment,
        )

    return run


ACME = 'drivers = ["acme"]\n'
BLUE = '[[networks]]\nname = "blue"\ntype = "acme"\nconfig = { subnet = "10.0.0.0/8" }\n'


def test_the_version_is_printed(conetd: Conetd) -> None:
    result = conetd("--version")
    assert (result.returncode, result.stdout) == (0, f"conetd {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("dance",), ("run", "--colour"), ("check", "extra")])
def test_a_wrong_command_line_is_status_2_and_explained(conetd: Conetd, arguments: tuple[str, ...]) -> None:
    result = conetd(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: conetd" in result.stderr


@pytest.mark.parametrize("command", [(), ("run",), ("check",), ("drivers",)])
def test_each_command_explains_itself(conetd: Conetd, command: tuple[str, ...]) -> None:
    result = conetd(*command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: conetd")


def test_check_prints_the_settings_in_effect(conetd: Conetd) -> None:
    result = conetd("check", settings=ACME + BLUE, CONETD_PUBLIC_SOCKET="/tmp/elsewhere.sock")
    assert (result.returncode, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert printed["public_socket"] == "/tmp/elsewhere.sock"
    assert printed["drivers"] == ["acme"]
    assert printed["networks"] == [{"name": "blue", "type": "acme", "config": {"subnet": "10.0.0.0/8"}}]


def test_check_takes_the_file_the_environment_names(conetd: Conetd, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(ACME + 'log = "json"')
    result = conetd("check", CONETD_CONFIG=str(tmp_path / "other.toml"))
    assert json.loads(result.stdout)["log"] == "json"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("color = 1", "color: Unknown field."),
        ("color =", "is not TOML"),
        ('drivers = ["acme", "vx"]', 'network type "vx" is not installed'),
        (ACME + BLUE.replace('"acme"', '"bridge"'), 'networks[0].type: "bridge" is not enabled (enabled: acme)'),
        (ACME + BLUE.replace(" }", ", mask = 8 }"), "networks[0].config.mask: Unknown field."),
        (ACME + BLUE + 'default_policy = { permit = ["x"] }', "networks[0].default_policy.permit: Unknown field."),
        (ACME + BLUE + 'default_policy = { allow = ["everything"] }', "networks[0].default_policy: not everything"),
        (ACME + BLUE + BLUE.replace("blue", "green"), "networks[1]: green is like blue"),
        (ACME + BLUE.replace("type", "kind"), "networks[0].type: Missing data for required field."),
    ],
)
def test_what_check_refuses_is_status_2_and_one_sentence(conetd: Conetd, settings: str, complaint: str) -> None:
    result = conetd("check", settings=settings)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("conetd: ")
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr


def test_a_driver_that_does_not_import_is_one_sentence(conetd: Conetd, site: Path) -> None:
    (site / "acme_net.py").write_text("import nothing_of_this_name")
    result = conetd("check", settings=ACME)
    assert result.returncode == 2
    assert result.stderr.startswith('conetd: network type "acme", from distribution acme-net 1.2, cannot be imported')
    assert result.stderr.count("\n") == 1


def test_check_touches_nothing(conetd: Conetd, tmp_path: Path) -> None:
    result = conetd("check", settings=ACME + BLUE + "\n[port_pool]\nstart = 1\n", CONETD_PUBLIC_SOCKET=f"{tmp_path}/s")
    assert result.returncode == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["conetd.toml", "site"]


def test_drivers_lists_the_types_installed_without_importing_them(conetd: Conetd, site: Path) -> None:
    (site / "acme_net.py").write_text("raise SystemExit('imported')")
    result = conetd("drivers")
    assert (result.returncode, result.stderr) == (0, "")
    header, *rows = (line.split() for line in result.stdout.splitlines())
    assert header == ["TYPE", "DISTRIBUTION", "VERSION"]
    assert ["acme", "acme-net", "1.2"] in rows
