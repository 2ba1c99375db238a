"""How the filter's objects get into the kernel and stay there: one batch a change, drift found by reading back."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable, Sequence

from conetd.errors import KernelError
from conetd.kernel.netlink import NETLINK_NETFILTER, Netlink
from conetd.kernel.nft import listing as listings
from conetd.kernel.nft import skeleton
from conetd.kernel.nft.batch import Batch
from conetd.kernel.nft.change import Change, Place
from conetd.kernel.nft.compare import compare, repair
from conetd.kernel.nft.fast_path import FastPath
from conetd.kernel.nft.inet_table import WHILE_CLOSED
from conetd.kernel.nft.listing import Listing
from conetd.kernel.nft.mirror import Mirror
from conetd.kernel.nft.sets import CLOSED, CLOSED_FOR_S
from conetd.plan import Drift, FilterObject

_WHOLE = "nftables transaction"


class NftablesBackend:
    """The packet filter in two tables named conetd, `inet` and `bridge`, of the opening thread's namespace."""

    name = "nftables"

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)
        self._mirror = Mirror()
        self._known = False  # whether the tables are known to be there
        self._whole = False  # whether the mirror is all there should be, so that the rest may be removed
        self._closed: dict[Place, float] = {}  # links that are shut, since when
        self._generation = listings.generation(self._netlink)
        self._suspect = False  # whether the tables may not be what they should be, though nobody changes them any more
        self._listed: tuple[int, Listing] | None = None
        self.fast_path = FastPath(self._netlink, self._send_alone)
        """See FilterBackend. Cleared with every change to what is in force already."""

    def apply(self, put: Sequence[FilterObject] = (), drop: Sequence[tuple[str, str]] = ()) -> None:
        """See FilterBackend."""
        self._change(self._mirror.change(put, drop))

    def held(self, kind: str, key: str) -> FilterObject | None:
        """See FilterBackend."""
        return self._mirror.objects.get((kind, key))

    def sync(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """See FilterBackend."""
        mirror = Mirror(wanted, self._mirror.uplinks)
        drift = self._settle(mirror, (), prune=True)
        self._whole = True
        return drift

    def check(self, wanted: Sequence[FilterObject]) -> Sequence[Drift]:
        """See FilterBackend."""
        whole = self._mirror.after(self._mirror.change(wanted, ()))
        return compare(self._listing(), whole, whole.units_of(wanted))

    def disturbed(self) -> bool:
        """See FilterBackend. A call also removes what kept the links of endpoints shut that are gone."""
        self._tidy()
        now = listings.generation(self._netlink)
        self._suspect |= now != self._generation
        self._generation = now
        return self._suspect

    def set_opened(self, version: int, uplinks: Sequence[str]) -> None:
        """See FilterBackend."""
        others = {one for one in self._mirror.uplinks if one[0] != version}
        wanted = frozenset({*others, *((version, name) for name in uplinks)})
        if not self._known:
            self._mirror = Mirror(self._mirror.objects.values(), wanted)
        elif wanted != self._mirror.uplinks:
            self._change(self._mirror.change((), (), wanted))
            self._mirror.uplinks = wanted

    def remove_all(self) -> None:
        """See FilterBackend."""
        listing = listings.read(self._netlink)
        self.fast_path.look()
        batch = Batch()
        batch.before_all(self.fast_path.removal(), "fast path")
        batch.before_all(skeleton.remove(listing.present), _WHOLE)
        refused = self._send(batch)
        if refused is not None:
            raise refused
        self.fast_path.removed()
        self._mirror = Mirror()
        self._known = self._whole = False
        self._closed.clear()

    def close(self) -> None:
        """See FilterBackend."""
        self._netlink.close()

    def _change(self, change: Change) -> None:
        if not change and self._known:
            self._mirror.commit(change)
            return
        if self._known:
            prepare, switch = Batch(), Batch()
            for unit in change.units:
                (prepare if unit.live else switch).prepare(unit)
                switch.switch(unit)
            if change.closed or any(unit.live for unit in change.units):
                switch.before_all(self.fast_path.removal(), "fast path")
            self._write_links(switch, change.closed, [place for place in change.reopened if place in self._closed])
            switch.add_optional(sorted(change.needed))
            switch.remove_optional(sorted(change.unneeded))
            if self._send_both(prepare, switch) is None:
                if change.closed or any(unit.live for unit in change.units):
                    self.fast_path.removed()
                self._mirror.commit(change)
                self._note_links(change.closed, change.reopened)
                return
        # The tables are not as remembered, or never were looked at: read them, and make them what they should be.
        after = self._mirror.after(change)
        self._settle(after, change.closed, prune=self._whole)

    def _settle(self, mirror: Mirror, closed: Sequence[Place], *, prune: bool) -> Sequence[Drift]:
        """Make the kernel hold what the mirror says; with `prune`, nothing else. Tells what was not so."""
        before = listings.generation(self._netlink)
        listing = listings.read(self._netlink)
        drift = compare(listing, mirror, mirror.units, prune=prune)
        work = repair(listing, mirror, prune=prune)
        shut = [*work.shut, *(self._closed if listing.unsound else ())]
        links = mirror.links
        found = {(name, key) for name in CLOSED for key in listing.elements.get(name, ())}
        closing = {*shut, *closed}.difference(links)
        work.switch.close(closing)
        work.switch.reopen([place for place in links if place in self._closed or place in found])
        if _asked_of_packets({*found, *closing}.difference(links)):
            work.switch.add_optional(name for name in WHILE_CLOSED if name not in listing.optional)
        else:
            work.switch.remove_optional(name for name in WHILE_CLOSED if name in listing.optional)
        self._generation = before
        self.fast_path.look()
        work.switch.before_all(self.fast_path.removal(), "fast path")
        refused = self._send_both(work.prepare, work.switch)
        if refused is not None:
            self._suspect = True
            raise refused
        self.fast_path.removed()
        self._mirror = mirror
        self._known = True
        self._suspect = False
        # Those of an earlier run, too: whoever kept a link shut then does not remember it now.
        self._note_links(found, ())
        self._note_links([*shut, *closed], links)
        return drift

    def _listing(self) -> Listing:
        """Both tables as they are; read again only when somebody has changed anything since."""
        now = listings.generation(self._netlink)
        if self._listed is None or self._listed[0] != now:
            self._listed = (now, listings.read(self._netlink))
        return self._listed[1]

    def _send_both(self, prepare: Batch, switch: Batch) -> KernelError | None:
        """Send what no packet comes to yet, then what lets them come; take the first back if the second is refused."""
        refused = self._send(prepare)
        if refused is not None:
            return refused
        refused = self._send(switch)
        if refused is not None and prepare.created:
            undo = Batch()
            for name in prepare.created:
                undo.delete_chain(name, f"chain {name}")
            left = self._send(undo)
            if left is not None:
                refused.add_note(f"and what was prepared is still there: {left}")
        return refused

    def _send_alone(self, messages: Iterable[tuple[bytes, str]]) -> KernelError | None:
        batch = Batch()
        for one, label in messages:
            batch.before_all((one,), label)
        return self._send(batch)

    def _send(self, batch: Batch) -> KernelError | None:
        """Send one batch, which the kernel takes as a whole or not at all. Returns why it did not."""
        if not batch:
            return None
        messages, labels = batch.written()
        answers = self._netlink.exchange(messages)
        for answer, label in zip(answers, labels, strict=True):
            if answer.errno:
                return KernelError("change", label or _WHOLE, answer.errno, answer.detail)
        # The kernel counts a batch that changes something, and not one that does not. If more was counted since, the
        # rest is somebody else's, and what we remember stays behind for `disturbed` to see it.
        ours = self._generation + 1 & 0xFFFFFFFF or 1  # the kernel skips 0
        if listings.generation(self._netlink) == ours:
            self._generation = ours
        return None

    def _tidy(self) -> None:
        gone = [place for place in self._closed if not _exists(place[1])]
        if gone:
            batch = Batch()
            self._write_links(batch, (), gone)
            if self._send(batch) is None:
                self._note_links((), gone)

    def _write_links(self, batch: Batch, closed: Collection[Place], reopened: Collection[Place]) -> None:
        """Shut and reopen links."""
        batch.close(closed)
        batch.reopen(reopened)
        before = _asked_of_packets(self._closed)
        after = _asked_of_packets({*self._closed, *closed}.difference(reopened))
        if after and not before:
            batch.add_optional(WHILE_CLOSED)
        elif before and not after:
            batch.remove_optional(WHILE_CLOSED)

    def _note_links(self, closed: Iterable[Place], opened: Iterable[Place]) -> None:
        now = time.monotonic()
        for place in closed:
            self._closed[place] = now
        for place in opened:
            self._closed.pop(place, None)
        while self._closed:
            place, since = next(iter(self._closed.items()))
            if now - since < CLOSED_FOR_S:
                return
            del self._closed[place]


def _asked_of_packets(closed: Iterable[Place]) -> bool:
    """Whether links are among them for which packets are asked, and not frames."""
    return any(name == CLOSED[0] for name, _ in closed)


def _exists(link: bytes) -> bool:
    try:
        socket.if_nametoindex(link.rstrip(b"\0").decode())
    except OSError:
        return False
    return True


def available() -> bool:
    """Whether the kernel answers nf_tables requests here and lets us make them."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            listings.generation(netlink)
    except (OSError, KernelError):
        return False
    return True
