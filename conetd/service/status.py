"""How everything stands: what is not as wanted and why, the filter, and who else drops our packets."""

from __future__ import annotations

from concurrent.futures import Future

from conetd import __version__
from conetd.errors import ConetError
from conetd.kernel.foreign import foreign_drops
from conetd.model import JSON
from conetd.reconcile.core import Core
from conetd.store import networks


def status(core: Core, ready: Future[None] | None) -> tuple[bool, JSON]:
    """Whether all is as wanted, and the whole answer of `GET /status`."""
    db = core.database.reader()
    recovered = ready is not None and ready.done() and ready.exception() is None
    problems = [
        {"handle": handle, "network": network, "problem": error or "not yet in the kernel"}
        for handle, network, error in db.execute(
            "SELECT handle, network, error FROM attachments"
            " WHERE leaving = 0 AND (error IS NOT NULL OR rev != applied_rev) ORDER BY handle, network"
        )
    ]
    known = {(one["handle"], one["network"]) for one in problems}
    problems += [
        {"handle": handle, "network": network, "problem": text}
        for (handle, network), text in sorted(core.problems.items())
        if handle and (handle, network) not in known
    ]
    broken = [
        {"network": one.name, "problem": one.error or "not yet in the kernel"}
        for one in networks.networks(db)
        if one.error is not None or one.rev != one.applied_rev
    ]
    cluster = core.cluster.describe(core)
    failed = ready.exception() if ready is not None and ready.done() else None
    healthy = recovered and not problems and not broken and core.filter_problem is None
    healthy = healthy and "problem" not in (cluster or {})
    told: JSON = {
        "status": "ok" if healthy else "degraded" if recovered else "failed" if failed else "starting",
        "version": __version__,
        "filter": _filter(core) if recovered else None,
        "attachments_not_as_wanted": problems,
        "networks_not_as_wanted": broken,
        "foreign_drops": _foreign_drops(),
        "rounds": core.rounds,
        "removals_pending": core.reaper.pending,
        "sysctls_changed": {
            path: {"old": old, "new": new} for path, (old, new) in sorted(networks.sysctls(db).items())
        },
    }
    if cluster is not None:
        told["cluster"] = cluster
    if failed is not None:
        told["problem"] = str(failed)
    return healthy, told


def _filter(core: Core) -> JSON:
    told: JSON = {"backend": core.kernel.filter.name}
    if core.filter_problem is not None:
        told["problem"] = core.filter_problem
    return told


def _foreign_drops() -> list[JSON]:
    try:
        return [
            {"family": one.family, "table": one.table, "chain": one.chain, "reason": one.reason}
            for one in foreign_drops()
        ]
    except ConetError as err:
        return [{"family": None, "table": None, "chain": None, "reason": f"could not be read: {err}"}]
