"""What `GET /drivers` tells of each network type: versions, and the JSON Schema of its documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from conetd import registry
from conetd.driver import PlannedDriver
from conetd.model import JSON

_COMPONENTS = "#/components/schemas/"


def describe_drivers(enabled: Mapping[str, registry.Loaded]) -> list[JSON]:
    """The types enabled, then those that are only installed."""
    told = [_describe(one) for one in enabled.values()]
    told += [
        {"type": one.type, "enabled": False, "distribution": one.distribution, "version": one.version}
        for one in registry.installed()
        if one.type not in enabled
    ]
    return told


def _describe(one: registry.Loaded) -> JSON:
    return {
        "type": one.type,
        "enabled": True,
        "distribution": one.distribution,
        "version": one.version,
        "api_version": one.driver.api_version,
        "capabilities": sorted(one.driver.capabilities),
        "planned": isinstance(one.driver, PlannedDriver),
        "config_schema": json_schema(one.driver.config_schema),
        "policy_schema": json_schema(one.driver.policy_schema),
    }


def json_schema(schema: type[Schema]) -> JSON:
    """The JSON Schema (2020-12) of a marshmallow schema; nested ones stand under `$defs`."""
    plugin = MarshmallowPlugin()
    spec = APISpec("conetd", "1", "3.1.0", plugins=[plugin])
    converter: Any = plugin.converter  # its methods are untyped
    told: JSON = dict(converter.schema2jsonschema(schema()))
    definitions = spec.to_dict().get("components", {}).get("schemas", {})
    if definitions:
        told["$defs"] = definitions
    rewritten: JSON = _rewrite(told)
    return rewritten


def _rewrite(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "#/$defs/" + inner.removeprefix(_COMPONENTS) if key == "$ref" else _rewrite(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_rewrite(one) for one in value]
    return value
