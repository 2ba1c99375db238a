"""Whether the settings would let the daemon start, found out without touching the state, the kernel or a socket."""

from __future__ import annotations

from typing import Any

from conetd import registry
from conetd.documents import load
from conetd.errors import ConetError, Invalid
from conetd.model import Network
from conetd.service import documents
from conetd.settings import Settings


def check(settings: Settings) -> None:
    """Load the enabled drivers and have each check its declared networks, alone and beside the others.

    Raises ConetError; the path of an offending field begins with `networks[N]`. What the store already holds is not
    looked at: a network that meets one of these there is found at start only.
    """
    drivers = registry.load(settings.drivers)
    checked: dict[str, list[Network[Any]]] = {type_: [] for type_ in drivers}
    for number, document in enumerate(settings.networks):
        path = f"networks[{number}]"
        network = _network(drivers, document, path)
        try:
            drivers[network.type].driver.check_network(network, checked[network.type])
        except ConetError as err:
            raise type(err)(f"{path}: {err.message}", fields=_below(path, err)) from err
        checked[network.type].append(network)


def _network(drivers: Any, document: Any, path: str) -> Network[Any]:
    wanted = documents.network(document, path)
    loaded = drivers.get(wanted["type"])
    if loaded is None:
        enabled = ", ".join(sorted(drivers))
        complaint = f'"{wanted["type"]}" is not enabled (enabled: {enabled})'
        raise Invalid(f"{path}.type: {complaint}", fields={f"{path}.type": complaint})
    driver = loaded.driver
    config = load(driver.config_schema(), wanted["config"], f"{path}.config", what="settings")
    policy = load(driver.policy_schema(), wanted["default_policy"], f"{path}.default_policy", what="settings")
    network = Network(wanted["name"], wanted["type"], config)
    try:
        driver.check_policy(network, policy)
    except ConetError as err:
        raise type(err)(f"{path}.default_policy: {err.message}", fields=_below(f"{path}.default_policy", err)) from err
    return network


def _below(path: str, err: ConetError) -> dict[str, str]:
    return {f"{path}.{field}" if field else path: complaint for field, complaint in err.fields.items()}
