"""Whether the reference pages have everything: each field, setting, route, command, flag, error and public name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from aiohttp import web
from conetd_bridge import BridgeDriver
from conetd_vxlan import VxlanDriver
from docpages import ROOT, page, section, table_rows
from marshmallow import Schema, missing

import conetd.driver
import conetd.plan
from conetd import errors
from conetd.api import errors as api_errors
from conetd.api.private import private_application
from conetd.api.public import public_application
from conetd.cluster.keys import Kind
from conetd.garden import answers as garden_answers
from conetd.garden import wire
from conetd.policy.garden import NetIn, NetOut
from conetd.reconcile import answers
from conetd.reconcile.etcd import EtcdCluster
from conetd.reconcile.etcd.outbox import Outbox
from conetd.service import status, views
from conetd.service.documents import ConfigSchema, JoinSchema, NetworkSchema
from conetd.settings import ClusterSettings, Settings

BRIDGE = page("docs/reference/bridge.md").text
VXLAN = page("docs/reference/vxlan.md").text
CLUSTER = page("docs/reference/cluster.md").text
API = page("docs/reference/http-api.md").text
SETTINGS = page("docs/reference/settings.md").text
CONTRACT = page("docs/reference/driver-contract.md").text
GARDEN = page("docs/reference/garden.md").text


@pytest.mark.parametrize(
    ("heading", "schema"), [("Config", BridgeDriver.config_schema), ("Policy", BridgeDriver.policy_schema)]
)
def test_bridge_has_each_field_with_its_default(heading: str, schema: type[Schema]) -> None:
    _has_each_field(table_rows(section(BRIDGE, heading).split("\n### ")[0]), schema)


@pytest.mark.parametrize(
    ("heading", "schema"), [("Config", VxlanDriver.config_schema), ("Policy", VxlanDriver.policy_schema)]
)
def test_vxlan_has_each_field_with_its_default(heading: str, schema: type[Schema]) -> None:
    first_table = section(VXLAN, heading).split("\n\n| ")[1].split("\n\n")[0]
    _has_each_field(table_rows(f"| {first_table}"), schema)


def _has_each_field(rows: dict[str, list[str]], schema: type[Schema]) -> None:
    assert rows.keys() == schema().fields.keys()
    for name, field in schema().fields.items():
        default = rows[name][0].strip("`")
        if field.required:
            assert default == "required", name
        elif field.load_default is not missing:
            value = field.load_default
            assert default == json.dumps(list(value) if isinstance(value, tuple) else value), name


@pytest.mark.parametrize(
    ("heading", "schema", "field"),
    [("Config", VxlanDriver.config_schema, "peers"), ("policies", VxlanDriver.policy_schema, "policies")],
)
def test_vxlan_has_each_field_of_an_entry(heading: str, schema: type[Schema], field: str) -> None:
    text = section(VXLAN, heading)
    rows = table_rows(text[text.index("| field of ") :])
    entry = cast(Any, schema().fields[field]).json_schema["items"]

    assert entry["properties"].keys() <= rows.keys()
    assert {name for name in entry["properties"] if rows[name][0].startswith("required")} == set(entry["required"])
    assert entry["properties"].get("peer", {}).get("properties", {}).keys() <= rows.keys()


@pytest.mark.parametrize(("heading", "field"), [("net_in", NetIn), ("net_out", NetOut)])
def test_bridge_has_each_field_of_an_entry_with_its_default(heading: str, field: type[NetIn | NetOut]) -> None:
    text = section(BRIDGE, heading)
    rows = table_rows(text)
    entry = field.json_schema["items"]

    for name, schema in entry["properties"].items():
        assert name in rows, name
        if name in entry.get("required", ()):
            assert rows[name][0] == "required", name
        elif "default" in schema:
            assert rows[name][0].strip("`") == str(schema["default"]).lower(), name
        for inner in {**schema.get("properties", {}), **schema.get("items", {}).get("properties", {})}:
            assert f"`{inner}`" in text, f"{name}: {inner}"


def test_settings_have_each_key_with_its_default() -> None:
    rows = table_rows(SETTINGS)
    wanted: dict[str, Any] = Settings().document() | {"socket_group": "conetd"}
    pool = wanted.pop("port_pool")
    wanted |= {f"port_pool.{name}": value for name, value in pool.items()}

    for name, default in wanted.items():
        assert name in rows, name
        shown = rows[name][0].strip("`")
        assert shown.strip('"') == default or json.loads(shown) == default, name


def test_settings_have_each_key_of_a_cluster_with_its_default() -> None:
    rows = table_rows(SETTINGS)
    for field in dataclasses.fields(ClusterSettings):
        row = rows[f"cluster.{field.name}"]
        if field.default not in (None, dataclasses.MISSING):
            assert json.loads(row[0].strip("`")) == field.default, field.name


def test_the_clusters_page_has_each_kind_of_key_and_no_other() -> None:
    assert [name.split("/")[0] for name in table_rows(section(CLUSTER, "Keys"))] == [str(kind) for kind in Kind]


@pytest.mark.parametrize("method", ["describe", "_network"])
def test_the_clusters_page_has_each_field_of_the_status(method: str) -> None:
    fields = set(re.findall(r"""[{ ]"([a-z]+)":""", inspect.getsource(getattr(EtcdCluster, method))))
    assert len(fields) > 3
    assert fields <= table_rows(section(CLUSTER, "Status")).keys()


def test_the_clusters_page_has_each_field_of_an_answer() -> None:
    fields = set(re.findall(r"""[{ ]"([a-z]+)":""", inspect.getsource(Outbox._answer)))
    assert table_rows(section(CLUSTER, "The member cluster of answers")).keys() == {*fields, "cluster"}


def test_the_clusters_page_names_only_events_that_there_are() -> None:
    source = "".join(path.read_text() for path in (ROOT / "conetd" / "reconcile").rglob("*.py"))
    events = table_rows(section(CLUSTER, "Log")).keys()
    assert len(events) > 5
    assert [event for event in sorted(events) if f'"{event}' not in source] == []


def test_the_api_has_each_route() -> None:
    assert [route for route in _routes() if f"`{route}`" not in API] == []


def test_gardens_page_has_each_of_its_requests() -> None:
    rows = {name.partition("?")[0] for name in table_rows(section(GARDEN, "The requests"))}
    requests = {route for route in _routes() if " /garden/" in route}
    assert requests
    assert requests <= rows


def _routes() -> list[str]:
    with ThreadPoolExecutor(1) as nobody:
        applications = public_application(cast(Any, None), nobody), private_application(cast(Any, None), nobody)
    return [
        f"{route.method} {_path(cast(web.AbstractResource, route.resource))}"
        for application in applications
        for route in application.router.routes()
        if route.method != "HEAD"
    ]


def _path(resource: web.AbstractResource) -> str:
    return re.sub(r"\{(\w+)\}", r":\1", resource.canonical)


@pytest.mark.parametrize(
    ("heading", "kind"), [("NetIn", wire.NetIn), ("NetOut and BulkNetOut", wire.NetOutRule)], ids=["NetIn", "NetOut"]
)
def test_gardens_page_has_each_field_of_what_is_asked_for(heading: str, kind: Any) -> None:
    wanted = {field.name for field in dataclasses.fields(kind)}
    assert wanted <= table_rows(section(GARDEN, heading)).keys()


def test_gardens_page_has_each_property_and_no_other() -> None:
    addresses = ["10.0.0.2/24", "fd00::2/64"]
    attachment = {"interface": "eth0", "addresses": addresses, "gateway": "10.0.0.1", "gateway6": "fd00::1"}
    wanted = garden_answers.properties([attachment], [], "192.0.2.1")
    assert table_rows(section(GARDEN, "Info and Metrics")).keys() == wanted.keys()


def test_gardens_page_has_each_action_of_the_plugin_and_no_other() -> None:
    [actions] = re.findall(r"--action (\S+)", _hook_usage())
    assert list(table_rows(section(GARDEN, "Guardian's network plugin"))) == actions.split("|")


@pytest.mark.parametrize("schema", [NetworkSchema, ConfigSchema, JoinSchema])
def test_the_api_has_each_field_of_a_document(schema: type[Schema]) -> None:
    assert schema().fields.keys() <= table_rows(API).keys()


@pytest.mark.parametrize("module", [status, views, answers], ids=lambda module: module.__name__)
def test_the_api_has_each_field_of_an_answer(module: Any) -> None:
    fields = set(re.findall(r"""[\[{ ]"([a-z_]+)"(?::|\] =)""", inspect.getsource(module)))
    assert fields
    assert [field for field in sorted(fields) if f"`{field}`" not in API] == []


def test_the_settings_name_only_events_that_there_are() -> None:
    source = "".join(path.read_text() for path in (ROOT / "conetd").rglob("*.py"))
    events = table_rows(section(SETTINGS, "Log")).keys() - {"packet allowed", "packet denied"}
    assert len(events) > 20
    assert [event for event in sorted(events) if f'"{event}"' not in source] == []


def test_the_api_has_each_error() -> None:
    rows = [line for line in section(API, "Errors").splitlines() if line.startswith("| ")]
    for module in (errors, api_errors):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, errors.ConetError):
                assert any(f"| {kind.status} |" in row and f"`{kind.code}`" in row for row in rows), kind


def test_the_commands_are_there_with_their_options() -> None:
    text = page("docs/reference/command-line.md").text
    commands = re.findall(r"^    (\w+) ", _help(), re.MULTILINE)
    assert commands
    for command in commands:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `conetd {command}")]
        for option in set(re.findall(r"--[a-z-]+", _help(command))) - {"--help"}:
            assert option in row, f"{command} {option}"
    for option in re.findall(r"--[a-z-]+", _help().partition("commands:")[0]):
        assert f"conetd {option}" in text
    for variable in re.findall(r"CONETD_\w+", _help()):
        assert variable in SETTINGS


def _help(*command: str) -> str:
    argv = [sys.executable, "-m", "conetd", *command, "--help"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_the_hook_has_each_flag() -> None:
    said = _hook_usage()
    text = page("docs/reference/hook.md").text

    assert f"`{said.strip().removeprefix('usage: ')}`" in text
    assert set(re.findall(r"--[a-z]+", said)) <= table_rows(text).keys()


def _hook_usage() -> str:
    return subprocess.run([ROOT / "hook" / "conet-hook", "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", [conetd.driver, conetd.plan], ids=lambda module: module.__name__)
def test_the_contract_has_each_public_name(module: Any) -> None:
    assert [name for name in module.__all__ if not re.search(rf"`[^`]*\b{name}\b[^`]*`", CONTRACT)] == []


@pytest.mark.parametrize("module", [conetd.driver, conetd.plan], ids=lambda module: module.__name__)
def test_the_contract_has_each_field_and_method_of_a_public_class(module: Any) -> None:
    lacking = []
    for name in module.__all__:
        kind = getattr(module, name)
        if not inspect.isclass(kind) or issubclass(kind, Exception):
            continue
        members = (
            {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(vars(kind))
        )
        members |= set(getattr(kind, "__annotations__", {})) if name == "Driver" else set()
        for member in members:
            if not member.startswith("_") and not re.search(rf"`[^`]*\b{member}\b[^`]*`", CONTRACT):
                lacking.append(f"{name}.{member}")
    assert lacking == []


def test_the_architecture_shows_the_layers_that_are_linted() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers"]
    (shown,) = [one for one in page("docs/explanation/architecture.md").blocks if "layers" in one.options]

    assert shown.text.splitlines() == layers
