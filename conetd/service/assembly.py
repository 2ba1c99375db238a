"""How the parts of the reconciler are put together, begin to work, and end."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from conetd import registry
from conetd.cluster.etcd import open_etcd
from conetd.driver import PlannedDriver
from conetd.errors import ConetError
from conetd.kernel.busy import Busy
from conetd.kernel.choice import choose_filter, open_filter, other_than
from conetd.kernel.conntrack import Conntrack
from conetd.kernel.host import default_route_mtu, default_route_source, local_addresses
from conetd.kernel.hostports import HostPorts
from conetd.kernel.kernel import Kernel
from conetd.kernel.netlink import NETLINK_ROUTE, Netlink
from conetd.kernel.nflog import LogReader
from conetd.kernel.process import ProcessWatch, boot_id
from conetd.kernel.reaping import reap
from conetd.ports import PortPool
from conetd.reconcile.cluster import Alone, Cluster
from conetd.reconcile.core import Core, our_subnets
from conetd.reconcile.etcd import EtcdCluster
from conetd.reconcile.flows import Flows
from conetd.reconcile.hostports import PortKeeper
from conetd.reconcile.lanes import ForeignLane, Lane
from conetd.reconcile.members import change_own_lease, tell_subnets
from conetd.reconcile.networks import declare, parse_network, undeclare_others
from conetd.reconcile.policies import replace_new_defaults
from conetd.reconcile.reaper import Reaper, Tools
from conetd.reconcile.recover import recover
from conetd.reconcile.state import Claims, Networks, Revisions, is_clustered, with_cluster
from conetd.sdnotify import Notifier
from conetd.service import documents
from conetd.settings import Settings
from conetd.store import Database, containers, networks

log = logging.getLogger(__name__)
STATE_FILE = "conetd.sqlite"
_INSTANCE = "instance"
_LAST_PORTS = "last_ports"  # in the store's single values: protocol number to port, as JSON


def assemble(settings: Settings, sockets: dict[str, int], on_exit: Callable[[str], None]) -> Core:
    """Load drivers, open the store, read and declare networks. Changes nothing in the kernel.

    `sockets` are host ports kept over a restart, `on_exit` is told the handle of a container whose process has ended.
    Raises ConetError when something does not fit together.
    """
    drivers = registry.load(settings.drivers)
    database = Database(settings.state_dir / STATE_FILE)
    reader = database.reader()
    claims = Claims(containers.claims(reader))
    reaper = Reaper(database, claims, _open_tools)
    pool = PortPool(settings.port_pool.start, settings.port_pool.size)
    notifier = Notifier()
    host_ports = HostPorts(sockets, keep=notifier.store_fd, drop=notifier.remove_fd)
    cluster = _open_cluster(settings, database, drivers.values())
    core = Core(
        settings=settings,
        database=database,
        drivers=drivers,
        networks=Networks(drivers),
        claims=claims,
        revisions=Revisions(networks.last_revision(reader)),
        ports=PortKeeper(host_ports, pool, _last_ports(reader)),
        lane=Lane("kernel"),
        foreign={
            name: ForeignLane(name, settings.driver_timeout)
            for name, loaded in drivers.items()
            if not isinstance(loaded.driver, PlannedDriver)
        },
        reaper=reaper,
        watch=ProcessWatch(on_exit),
        boot_id=boot_id(),
        cluster=cluster,
    )
    for record in networks.networks(reader):
        core.networks.put(with_cluster(reader, core.networks.load(record), agreed=cluster.agreed))
    _declare_networks(core)
    return core


def _open_cluster(settings: Settings, database: Database, drivers: Iterable[registry.Loaded]) -> Cluster:
    if settings.cluster is None:
        return Alone(socket.gethostname())
    if not any("cluster" in one.driver.capabilities for one in drivers):
        log.warning("the setting cluster has no use: no enabled driver has networks that span hosts")
        return Alone(settings.cluster.host)
    return EtcdCluster(settings.cluster, open_etcd(settings.cluster), database, _instance(database))


def _instance(database: Database) -> str:
    """What tells this host, as long as it keeps its state, from another that calls itself the same."""
    known = networks.meta(database.reader(), _INSTANCE)
    if known is None:
        known = uuid.uuid4().hex
        database.write(lambda db: networks.put_meta(db, _INSTANCE, known))
    return known


def _declare_networks(core: Core) -> None:
    declared = [
        documents.network(document, f"networks[{number}]") for number, document in enumerate(core.settings.networks)
    ]
    for number, document in enumerate(declared):
        try:
            declare(core, parse_network(core, document, uplink_mtu()))
        except ConetError as err:
            fields = {
                f"networks[{number}].{path}" if path else f"networks[{number}]": text
                for path, text in err.fields.items()
            }
            raise type(err)(f"settings: networks[{number}]: {err.message}", fields=fields) from err
    undeclare_others(core, {document["name"] for document in declared})


def begin(core: Core) -> Future[None]:
    """Start the threads; the future is done when the last run is recovered. What is asked for meanwhile queues up."""
    core.lane.start()
    core.reaper.start()
    return core.lane.call(_first, core)


def _first(core: Core) -> None:
    """What the kernel lane does before anything else."""
    chosen = choose_filter(core.settings.filter)
    core.kernel = Kernel(chosen)
    core.flows = Flows(Conntrack(), local_addresses, lambda: our_subnets(core))
    if core.settings.fast_path and chosen.fast_path is not None:
        core.busy = Busy(chosen.fast_path, Netlink(NETLINK_ROUTE), Conntrack())
    find_external_ip(core)
    log.info("filter", extra={"backend": chosen.name})
    _read_packet_log(core)
    _join_alone(core)
    recover(core)
    tell_subnets(core)
    replace_new_defaults(core, foreign=False)
    core.ports.release_unclaimed()
    _leave_old_filter(core, chosen.name)


def _join_alone(core: Core) -> None:
    """Without a cluster that has to be asked, a network of the settings gets this host's part of it at once."""
    if not isinstance(core.cluster, Alone):
        return
    for live in core.networks.all():
        if is_clustered(live) and live.network.lease is None:
            try:
                lease = core.cluster.join(core, live)
                if lease is not None:
                    change_own_lease(core, live.record.name, lease)
            except ConetError as err:
                log.error("network failed", extra={"network": live.record.name, "error": err.message})


def find_external_ip(core: Core) -> None:
    """Note the address that is reported for published ports: the setting's, else the one the host speaks from now."""
    address = core.settings.external_ip
    if address is None:
        with Netlink(NETLINK_ROUTE) as netlink:
            address = default_route_source(netlink)
    core.external_ip = str(address) if address is not None else None


def _read_packet_log(core: Core) -> None:
    """Have a thread write a line for each packet that a rule logs; without it everything else works."""
    try:
        core.packet_log = LogReader()
    except ConetError as err:
        log.error("logged packets cannot be read", extra={"error": err.message})
        return
    threading.Thread(target=core.packet_log.run, name="packet-log", daemon=True).start()


def _leave_old_filter(core: Core, name: str) -> None:
    """After the new rules stand, remove those of the backend that was in use before."""
    before = networks.meta(core.database.reader(), "filter")
    if before == other_than(name):
        old = open_filter(before)
        old.remove_all()
        old.close()
        log.warning("filter changed", extra={"from": before, "to": name})
    if before != name:
        core.database.write(lambda db: networks.put_meta(db, "filter", name))


def end(core: Core) -> None:
    """Finish what was submitted, then stop the threads and close what is open. The kernel keeps everything."""
    for lane in core.foreign.values():
        lane.stop()
    core.lane.call(_last, core)
    core.lane.stop()
    core.reaper.stop()
    core.watch.close()
    last = json.dumps(core.ports.last)
    try:
        core.database.write(lambda db: networks.put_meta(db, _LAST_PORTS, last), durable=False)
    except ConetError as err:
        log.error("where the port pool stood could not be kept", extra={"error": err.message})
    core.database.close()


def _last_ports(db: sqlite3.Connection) -> dict[int, int]:
    """Where the port pool stood when the last run ended in good order."""
    kept = json.loads(networks.meta(db, _LAST_PORTS) or "{}")
    return {int(protocol): port for protocol, port in kept.items()}


def _last(core: Core) -> None:
    core.flows.close()
    if core.busy is not None:
        core.busy.close()
    core.kernel.close()
    if core.packet_log is not None:
        core.packet_log.close()


def _open_tools() -> Tools:
    flows = Flows(Conntrack(), lambda: (), lambda: ())
    links = Netlink(NETLINK_ROUTE)

    def close() -> None:
        flows.close()
        links.close()

    return Tools(partial(reap, links), flows.forget, close)


def uplink_mtu() -> int:
    """The MTU of the host's interface with the default route, in bytes; 1500 without one."""
    with Netlink(NETLINK_ROUTE) as netlink:
        return default_route_mtu(netlink)
