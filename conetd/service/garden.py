"""What Garden's Info and Metrics, and Guardian's network plugin, are told of a container: from store and kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conetd.errors import ConetError, DriverError
from conetd.garden import answers
from conetd.kernel.counters import received_and_sent
from conetd.model import JSON
from conetd.reconcile.answers import attachment
from conetd.reconcile.core import Core
from conetd.reconcile.garden import living
from conetd.reconcile.namespace import container_netns
from conetd.store import containers

_HEALTHCHECK = ("healthcheck", "network.healthcheck")  # Guardian strips `network.`


def info(core: Core, handle: str) -> JSON:
    """ContainerInfo of a container that is up. Raises UnknownHandle."""
    container = living(core, handle)
    standing = _attachments(core, handle)
    ports = [port for one in standing for port in one["mapped_ports"]]
    return answers.info(standing, ports, core.external_ip, container.properties)


def metrics(core: Core, handle: str) -> JSON:
    """Metrics of a container that is up: bytes through the interface it is known by, null without one.

    Also null for what the engine called a health check. Raises UnknownHandle, and DriverError when the interface
    cannot be read.
    """
    container = living(core, handle)
    interface = answers.identity(_attachments(core, handle)).interface
    if not interface or any(container.properties.get(name) == "true" for name in _HEALTHCHECK):
        return answers.metrics(None)
    try:
        with container_netns(container) as netns:
            if netns is None:
                raise DriverError(f"the process of container {handle!r} has ended")
            return answers.metrics(received_and_sent(netns, interface))
    except DriverError as err:
        raise DriverError(f"could not read container network statistics, {err.message}") from err


def bulk_info(core: Core, handles: Sequence[str]) -> JSON:
    """Handle to its ContainerInfo, or the error there is instead."""
    return {handle: answers.info_entry(_attempt(info, core, handle)) for handle in sorted(handles)}


def bulk_metrics(core: Core, handles: Sequence[str]) -> JSON:
    """Handle to its Metrics, or the error there is instead."""
    return {handle: answers.metrics_entry(_attempt(metrics, core, handle)) for handle in sorted(handles)}


def plugin_up(core: Core, answer: JSON) -> JSON:
    """The answer to an `up` that Guardian asked for: the external IP is said only where the settings say it."""
    external_ip = core.settings.external_ip
    return answers.plugin_up(answer, None if external_ip is None else str(external_ip))


def _attempt(read: Callable[[Core, str], JSON], core: Core, handle: str) -> JSON | ConetError:
    try:
        return read(core, handle)
    except ConetError as err:
        return err


def _attachments(core: Core, handle: str) -> list[JSON]:
    db = core.database.reader()
    return [
        attachment(one, containers.host_ports(db, handle, one.network))
        for one in containers.attachments_of(db, handle)
        if not one.leaving
    ]
