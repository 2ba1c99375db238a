"""The service: every request becomes a job in its container's or network's turn, on the thread that may do it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from conetd.errors import ConetError, DriverError
from conetd.garden.wire import NetIn, NetOutRule
from conetd.kernel.process import ProcessId, alive
from conetd.model import JSON, check_handle
from conetd.reconcile.cluster import Turns
from conetd.reconcile.configure import configure, forget
from conetd.reconcile.core import Core, is_planned
from conetd.reconcile.down import DownJob, bring_down, bring_down_mixed
from conetd.reconcile.fast_path import FastPathKeeper
from conetd.reconcile.garden import Edit, Prepared, net_in, net_out, prepare, with_net_in, with_net_out
from conetd.reconcile.lanes import Turnstile
from conetd.reconcile.members import tell_subnets
from conetd.reconcile.networks import create_network, delete_network, parse_network
from conetd.reconcile.policies import check_documents, replace_default, replace_new_defaults, replace_policies
from conetd.reconcile.repair import start_foreign
from conetd.reconcile.tend import Tender, give_identities
from conetd.reconcile.up import UpJob, bring_up, bring_up_mixed, is_mixed
from conetd.reconcile.wishes import Garden
from conetd.service import documents, garden, spanning, views
from conetd.service.assembly import assemble, begin, end, uplink_mtu
from conetd.service.futures import mapped, then
from conetd.service.patrol import Patrol
from conetd.service.status import status
from conetd.settings import Settings
from conetd.store import containers

T = TypeVar("T")
log = logging.getLogger(__name__)
_OFF_LANE_THREADS = 32  # jobs that wait for foreign drivers; more wait in line
_CHECK_THREADS = 4  # that check long documents


class Service:
    """conetd behind its sockets. Documents come as JSON values; every refusal is a ConetError."""

    def __init__(self, settings: Settings, ports: Mapping[str, int] | None = None) -> None:
        """Open the store and load the drivers and the networks of the settings; touches nothing in the kernel.

        `ports` are sockets of host ports that the service manager kept over a restart: name to descriptor. Raises
        ConetError when drivers, store or networks do not fit together.
        """
        self._core: Core = assemble(settings, dict(ports or {}), self._process_ended)
        self._turns: Turnstile[Any] = Turnstile()
        self._off_lane = ThreadPoolExecutor(_OFF_LANE_THREADS, thread_name_prefix="off-lane")
        self._checks = ThreadPoolExecutor(_CHECK_THREADS, thread_name_prefix="check")
        self._patrol = Patrol(self._core, self._submit_repair, self._submit_network)
        turns = Turns(self._in_turn, self._in_network_turn)
        self._tender = Tender(self._core, turns)
        self._core.wake_tender = self._tender.wake
        self._fast_path = FastPathKeeper(self._core)
        self._cluster_turns = turns
        self._ready: Future[None] | None = None
        self._ending = threading.Lock()  # a stop may come before the recovery is through
        self._ended = False

    # Life

    def start(self) -> Future[None]:
        """Begin to work. Returns at once: what is left of the last run is recovered first, in the kernel lane.

        The future is done when that is through; its error says why this host cannot be worked on.
        """
        self._ready = begin(self._core)
        self._ready.add_done_callback(lambda ready: None if ready.exception() else self._go_on())
        return self._ready

    def _go_on(self) -> None:
        with self._ending:
            if not self._ended:
                self._begin_rounds()

    def _begin_rounds(self) -> None:
        core = self._core
        foreign = {live.record.name for live in core.networks.all() if not is_planned(live)}
        for name in sorted(foreign | {live.record.name for live in core.replaced}):
            type_ = core.networks.get(name).record.type
            self._turns.enter(("networks", type_), partial(self._off_lane.submit, start_foreign, core, name))
        self._off_lane.submit(replace_new_defaults, core, foreign=True)
        self._patrol.start()
        if any(spanning.type_spans(core, type_) for type_ in core.drivers):
            core.cluster.start(core, self._cluster_turns)
            self._tender.start()
            if core.busy is not None:
                self._fast_path.start()

    def stop(self) -> None:
        """Finish what was asked for and refuse what comes now. All container networking stays in place."""
        with self._ending:
            self._ended = True
        self._patrol.stop()
        self._tender.stop()
        self._fast_path.stop()
        self._core.cluster.stop()
        self._checks.shutdown(wait=True)
        self._off_lane.shutdown(wait=True)
        end(self._core)

    # Reads

    def networks(self) -> list[JSON]:
        """All networks, by name."""
        return [views.network(live.record) for live in self._core.networks.all()]

    def network(self, name: str) -> JSON:
        """One network. Raises NotFound."""
        return views.network(self._core.networks.get(name).record)

    def containers(self) -> list[JSON]:
        """All containers, by handle."""
        return views.all_containers(self._core)

    def container(self, handle: str) -> JSON:
        """One container with its attachments and the policy in force. Raises NotFound."""
        return views.container(self._core, check_handle(handle))

    def policy(self, handle: str) -> JSON:
        """What is in force for a container, and where each document came from. Raises NotFound."""
        return views.policy(self._core, check_handle(handle))

    def drivers(self) -> list[JSON]:
        """The types enabled, with versions and the JSON Schema of their documents, and those only installed."""
        from conetd.service.schemas import describe_drivers  # imports what nothing else needs

        return describe_drivers(self._core.drivers)

    def status(self) -> tuple[bool, JSON]:
        """Whether all is as wanted, and what is not."""
        return status(self._core, self._ready)

    def info(self, handle: str) -> JSON:
        """Garden's ContainerInfo. Raises UnknownHandle."""
        return garden.info(self._core, handle)

    def bulk_info(self, handles: Sequence[str]) -> JSON:
        """The same of many: handle to `Info` and `Err`."""
        return garden.bulk_info(self._core, handles)

    def metrics(self, handle: str) -> JSON:
        """Garden's Metrics, as far as the network goes. Raises UnknownHandle, and KernelError when it cannot count."""
        return garden.metrics(self._core, handle)

    def bulk_metrics(self, handles: Sequence[str]) -> JSON:
        """The same of many: handle to `Metrics` and `Err`."""
        return garden.bulk_metrics(self._core, handles)

    # Changes

    def create_network(self, document: Any) -> Future[tuple[bool, JSON]]:
        """Define a network; True when it is new. See `reconcile.networks.create_network`."""
        wanted = documents.network(document)
        type_ = wanted["type"]

        def work() -> tuple[bool, JSON]:
            live = parse_network(self._core, wanted, uplink_mtu())
            created, live = create_network(self._core, live)
            self._core.on_lane(tell_subnets, self._core)
            return created, views.network(live.record)

        if not spanning.type_spans(self._core, type_):
            return self._network_turn(type_, work)

        def create() -> tuple[bool, JSON]:
            created, live = spanning.create(self._core, wanted, uplink_mtu())
            return created, views.network(live.record)

        return self._turns.enter(("networks", type_), lambda: self._off_lane.submit(create))

    def replace_default_policy(self, name: str, document: Any) -> Future[JSON]:
        """Replace a network's default policy; answers when the kernel holds it everywhere."""
        type_ = self._core.networks.get(name).record.type

        def work(wanted: Mapping[str, Any]) -> JSON:
            return views.network(replace_default(self._core, self._core.networks.get(name), wanted[name]).record)

        def start() -> Future[JSON]:
            return self._asked_ahead("", {name: document}, type_ in self._core.foreign, work)

        answered = self._turns.enter(("networks", type_), start)
        return then(answered, partial(spanning.default_confirmed, self._core, name))

    def delete_network(self, name: str) -> Future[None]:
        """Remove a network. Raises Conflict naming who holds it."""
        type_ = self._core.networks.get(name).record.type

        def work() -> None:
            delete_network(self._core, name)
            self._core.on_lane(tell_subnets, self._core)

        return self._network_turn(type_, work)

    def configure(self, handle: str, document: Any) -> Future[tuple[bool, JSON]]:
        """Store a container's config; of one that is up, attach and detach live. True when it is the first."""
        check_handle(handle)
        wanted = documents.config(document)
        names = [join.network for join in wanted.attach_to]

        def work() -> tuple[bool, JSON]:
            created = configure(self._core, handle, wanted)
            self._core.on_lane(give_identities, self._core, handle)
            self._core.wake_tender()
            told = views.config(views.known(self._core, handle))
            assert told is not None
            return created, {"handle": handle, **told}

        def start() -> Future[tuple[bool, JSON]]:
            return self._place(self._touches_foreign(handle, names), work)

        shared = spanning.spanning(self._core, names)
        if not shared:
            return self._turn(handle, start)
        ask = partial(spanning.ask_for_config, self._core, handle, wanted.labels, shared)
        return self._turn(handle, lambda: then(self._off_lane.submit(ask), lambda _: start()))

    def forget(self, handle: str) -> Future[None]:
        """Forget a container's config and policy. Raises Conflict while it is up."""
        check_handle(handle)
        return self._turn(handle, lambda: self._core.lane.call(forget, self._core, handle))

    def forget_host(self, host: str) -> Future[None]:
        """Give back what a host that will not return has on networks. Raises NotFound, Conflict while it lives."""
        return self._off_lane.submit(self._core.cluster.forget_host, host)

    def replace_policy(self, handle: str, document: Any) -> Future[JSON]:
        """Replace all of a container's policies; answers when the kernel holds them."""
        check_handle(handle)
        wanted = documents.policies(document)

        def work(normalised: dict[str, JSON]) -> JSON:
            try:
                replace_policies(self._core, handle, normalised)
            except DriverError as err:
                err.details = {"networks": views.policies(self._core, handle)["networks"]}
                raise
            return views.policies(self._core, handle)

        def start() -> Future[JSON]:
            # Checking a long document takes many milliseconds, in which the lane can do something else.
            checked = self._checks.submit(check_documents, self._core, wanted)
            foreign = self._touches_foreign(handle, list(wanted))
            return then(checked, lambda normalised: self._asked_ahead(handle, normalised, foreign, work))

        names = {*wanted, *containers.policies_of(self._core.database.reader(), handle)}
        return then(self._turn(handle, start), partial(spanning.policies_confirmed, self._core, handle, names))

    def up(self, handle: str, body: Any) -> Future[JSON]:
        """Bring a container up; `body` is what the engine says of it."""
        check_handle(handle)
        if documents.is_long(body):
            # read beside the threads that others wait for, and in the container's turn, lest a down goes before
            return self._turn(
                handle,
                lambda: then(self._checks.submit(documents.up_request, body), partial(self._begin_up, handle)),
            )
        asked = documents.up_request(body)
        return self._turn(handle, lambda: self._begin_up(handle, asked))

    def _begin_up(self, handle: str, asked: documents.UpRequest) -> Future[JSON]:
        job = UpJob(handle, asked.pid, asked.properties, Garden(asked.net_in, asked.net_out))
        unknown = spanning.needs_others(self._core, job)
        if unknown is not None:
            return then(self._off_lane.submit(unknown), lambda _: self._bring(job, asked))
        return self._bring(job, asked)

    def _bring(self, job: UpJob, asked: documents.UpRequest) -> Future[JSON]:
        if is_mixed(self._core, job):
            answered = self._off_lane.submit(bring_up_mixed, self._core, job)
        else:
            answered = self._core.lane.group(self._bring_up, job)
        return mapped(answered, partial(garden.plugin_up, self._core)) if asked.plugin else answered

    def net_in(self, handle: str, asked: NetIn, call: str | None = None) -> Future[JSON]:
        """Garden's NetIn; answers its two ports when the kernel holds the mapping. `call` names the request, so that
        asking again answers the same. Raises UnknownHandle, Conflict naming the port's holder, Exhausted.
        """

        def work(prepared: Prepared) -> JSON:
            return net_in(self._core, handle, asked, prepared, call)

        return self._garden(handle, with_net_in(self._core, asked), work)

    def net_out(self, handle: str, rules: Sequence[NetOutRule], *, bulk: bool) -> Future[None]:
        """Garden's NetOut, or with `bulk` its BulkNetOut; answers when the kernel holds the rules, all or none.

        Raises UnknownHandle, Invalid for the first rule that Garden would refuse.
        """

        def work(prepared: Prepared) -> None:
            net_out(self._core, handle, rules, prepared, bulk=bulk)

        return self._garden(handle, with_net_out(rules, bulk=bulk), work)

    def down(self, handle: str) -> Future[JSON]:
        """Take a container down. An unknown handle is down already."""
        check_handle(handle)

        def start() -> Future[JSON]:
            if self._touches_foreign(handle, ()):
                return self._off_lane.submit(bring_down_mixed, self._core, DownJob(handle))
            return self._core.lane.group(self._bring_down, DownJob(handle))

        return self._turn(handle, start)

    # Turns and places

    def _garden(self, handle: str, edit: Edit, work: Callable[[Prepared], T]) -> Future[T]:
        """Change a policy as Garden asks: the long document is checked beside the lane, in the container's turn."""

        def start() -> Future[T]:
            prepared = self._checks.submit(prepare, self._core, handle, edit)
            return then(prepared, lambda ready: self._place(not is_planned(ready.target.live), partial(work, ready)))

        return self._turn(handle, start)

    def _asked_ahead(
        self, handle: str, documents: Mapping[str, Any], foreign: bool, work: Callable[[Any], T]
    ) -> Future[T]:
        """Bring policies into force, once it is known here whom they allow to send to."""
        if not spanning.spanning(self._core, documents):
            return self._place(foreign, partial(work, documents))

        def settled() -> T:
            try:
                return work(documents)
            finally:
                spanning.asked_ahead(self._core, handle, documents)

        asked = self._off_lane.submit(spanning.ask_ahead, self._core, handle, documents)
        return then(asked, lambda _: self._place(foreign, settled))

    def _bring_up(self, jobs: list[UpJob]) -> list[JSON | BaseException]:
        return bring_up(self._core, jobs)

    def _bring_down(self, jobs: list[DownJob]) -> list[JSON | BaseException]:
        return bring_down(self._core, jobs)

    def _turn(self, handle: str, start: Callable[[], Future[T]]) -> Future[T]:
        return self._turns.enter(("container", handle), start)

    def _network_turn(self, type_: str, work: Callable[[], T]) -> Future[T]:
        foreign = type_ in self._core.foreign
        # By type, for those of one are compared with each other and none need wait for another's driver.
        return self._turns.enter(("networks", type_), lambda: self._place(foreign, work))

    def _place(self, foreign: bool, work: Callable[[], T]) -> Future[T]:
        """Work that may wait for a foreign driver must not hold up the lane that driver needs."""
        return self._off_lane.submit(work) if foreign else self._core.lane.call(work)

    def _touches_foreign(self, handle: str, networks: list[str] | tuple[str, ...]) -> bool:
        if not self._core.foreign:
            return False
        records = containers.attachments_of(self._core.database.reader(), handle)
        names = {record.network for record in records} | set(networks)
        return any(name in self._core.networks and not is_planned(self._core.networks.get(name)) for name in names)

    def _in_turn(self, handle: str, work: Callable[[Core], None]) -> Future[None]:
        return self._turn(handle, lambda: self._place(self._touches_foreign(handle, ()), lambda: work(self._core)))

    def _in_network_turn(self, name: str, work: Callable[[Core], None]) -> Future[None]:
        type_ = self._core.networks.get(name).record.type
        return self._network_turn(type_, lambda: work(self._core))

    def _submit_repair(self, handle: str, repair: Callable[[Core, str], None]) -> Future[None]:
        return self._turn(
            handle, lambda: self._place(self._touches_foreign(handle, ()), lambda: repair(self._core, handle))
        )

    def _submit_network(self, name: str, repair: Callable[[Core, str], None]) -> Future[None]:
        type_ = self._core.networks.get(name).record.type
        return self._network_turn(type_, lambda: repair(self._core, name))

    def _process_ended(self, handle: str) -> None:
        """The watch saw a container's process end: take it down, unless it has come up with another meanwhile."""

        def start() -> Future[Any]:
            record = containers.container(self._core.database.reader(), handle)
            if record is None or record.life is None or alive(ProcessId(record.life.pid, record.life.start_time)):
                done: Future[None] = Future()
                done.set_result(None)
                return done
            log.info("process ended", extra={"handle": handle, "pid": record.life.pid})
            if self._touches_foreign(handle, ()):
                return self._off_lane.submit(bring_down_mixed, self._core, DownJob(handle))
            return self._core.lane.group(self._bring_down, DownJob(handle))

        try:
            self._turn(handle, start)
        except ConetError:
            log.debug("stopping; the next start finds that the process has ended", extra={"handle": handle})
