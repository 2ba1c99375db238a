"""Which network types are installed here, and the drivers of those the operator enabled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from marshmallow import Schema

from conetd.driver import API_VERSION, Driver
from conetd.errors import DriverError, Invalid

GROUP = "conetd.drivers"


@dataclass(frozen=True, slots=True)
class Installed:
    """An entry point in the group `conetd.drivers`. `target` is what it names, as `module:attribute`."""

    type: str
    distribution: str
    version: str
    target: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """An enabled network type with its one driver instance, and the distribution it came from."""

    type: str
    driver: Driver[Any, Any]
    distribution: str
    version: str


def installed() -> list[Installed]:
    """Return what is installed, sorted by type, without importing any of it. A type may be there twice."""
    found = [Installed(one.name, *_origin(one), one.value) for one in entry_points(group=GROUP)]
    return sorted(found, key=lambda one: (one.type, one.distribution))


def load(enabled: Sequence[str]) -> Mapping[str, Loaded]:
    """Import and instantiate the drivers of the enabled types, in that order, by type.

    Raises Invalid for a type that is listed twice or not installed, DriverError for one that is installed twice, fails
    to import, is no driver, has another `api_version` or lacks a schema. The message names the distribution.
    """
    # stevedore groups an unsorted list to find duplicates, so that a stranger's `bridge` can win without a word:
    # names are counted first, and stevedore gets exactly the entry points that were counted.
    available: dict[str, list[EntryPoint]] = {}
    for one in entry_points(group=GROUP):
        available.setdefault(one.name, []).append(one)
    chosen: list[EntryPoint] = []
    for index, type_ in enumerate(enabled):
        if type_ in enabled[:index]:
            raise Invalid(f'drivers: "{type_}" is listed twice', fields={f"drivers[{index}]": f'"{type_}" again'})
        chosen.append(_only(type_, available, index))
    return MappingProxyType({one.name: _checked(one) for one in chosen})


def _only(type_: str, available: Mapping[str, Sequence[EntryPoint]], index: int) -> EntryPoint:
    candidates = available.get(type_, ())
    if not candidates:
        known = ", ".join(sorted(available)) or "none"
        raise Invalid(
            f'drivers: network type "{type_}" is not installed (installed: {known})',
            fields={f"drivers[{index}]": f'not installed: "{type_}"'},
        )
    if len(candidates) > 1:
        owners = " and ".join(sorted(_named(one) for one in candidates))
        raise DriverError(f'network type "{type_}" is installed twice, by {owners}: uninstall one of them')
    return candidates[0]


def _import(one: EntryPoint) -> Any:
    # Here and not above: importing stevedore takes 10 ms, which only whoever loads drivers should pay.
    from stevedore.extension import ExtensionManager

    class Manager(ExtensionManager[Any]):
        def list_entry_points(self) -> list[EntryPoint]:
            return [one]

    def failed(_manager: Any, _entry_point: EntryPoint, err: BaseException) -> None:
        raise _failed(one, "cannot be imported", err) from err

    try:
        (extension,) = Manager(GROUP, on_load_failure_callback=failed).extensions
    except (AssertionError, SystemExit) as err:  # which stevedore does not hand to its callback
        raise _failed(one, "cannot be imported", err) from err
    return extension.plugin


def _checked(one: EntryPoint) -> Loaded:
    kind = _import(one)
    if not (inspect.isclass(kind) and issubclass(kind, Driver)):
        raise _unusable(one, f"is no driver: {one.value} is not a subclass of conetd.driver.Driver")
    if kind.api_version != API_VERSION:
        raise _unusable(one, f"has api_version {kind.api_version!r}, and this conetd needs {API_VERSION}")
    for name in ("config_schema", "policy_schema"):
        schema = getattr(kind, name, None)
        if not (inspect.isclass(schema) and issubclass(schema, Schema)):
            raise _unusable(one, f"lacks {name}, a marshmallow Schema class")
    try:
        driver = kind()
    except Exception as err:
        raise _failed(one, "cannot be instantiated", err) from err
    return Loaded(one.name, driver, *_origin(one))


def _unusable(one: EntryPoint, reason: str) -> DriverError:
    return DriverError(f'network type "{one.name}", from {_named(one)}, {reason}')


def _failed(one: EntryPoint, what: str, err: BaseException) -> DriverError:
    return _unusable(one, f"{what}: {type(err).__name__}: {' '.join(str(err).split())}")


def _origin(one: EntryPoint) -> tuple[str, str]:
    return (one.dist.name, one.dist.version) if one.dist is not None else ("unknown", "unknown")


def _named(one: EntryPoint) -> str:
    name, version = _origin(one)
    return f"distribution {name} {version}"
