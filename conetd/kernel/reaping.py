"""How links are closed now and deleted later, several at a time.

Deleting a veth waits 16 ms and more for RCU. Deleting a link group shares the wait, but holds the kernel's one lock for
routing and links meanwhile, and takes every link of the group, whoever put it there.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Collection, Iterator, Sequence

from conetd.errors import KernelError
from conetd.kernel import links, seen
from conetd.kernel.netlink import Netlink
from conetd.kernel.work import Requests

GROUP_SIZE = 8  # links a group delete; keeps an attach that queues behind it under 16 ms


def mark_closed(requests: Requests, owner: int, name: str) -> None:
    """Queue the message that marks a link as one to be deleted."""
    requests.add(owner, "mark", name, links.set_group(links.GROUP_CLOSED, name=name))


def reap(host: Netlink, names: Sequence[str], *, closed_only: bool = True) -> None:
    """Delete those of the links that are marked as closed; one that was made anew since is left alone.

    Without `closed_only` all those that are ours. May run on a thread of its own, beside the `Kernel`'s. Gone already
    is success. Goes on past failures and raises the first one at the end.
    """
    # One by one: to list them all takes the kernel's lock for links for as long as a thousand attaches do.
    found = [label for name in dict.fromkeys(names) if (label := seen.label(host, name)) is not None]
    going = [label for label in found if label.group == links.GROUP_CLOSED or (label.ours and not closed_only)]
    errors: list[KernelError] = []
    for some in _chunks(going):
        errors += delete_links(host, some) if len(some) == 1 else _delete_together(host, some)
    if errors:
        raise errors[0]


def delete_links(host: Netlink, some: Sequence[seen.Label]) -> list[KernelError]:
    """Delete links one by one and return what went wrong; a link that is gone already is no error."""
    requests = Requests(host)
    for label in some:
        requests.add(0, "delete", label.name, links.delete_link(label.index))
    return failures(requests, gone={errno.ENODEV})


def failures(requests: Requests, gone: Collection[int]) -> list[KernelError]:
    """Run the requests and return the errors but those with an errno that means "gone already"."""
    errors: list[KernelError] = []
    requests.run(lambda _, error: errors.append(error))
    return [error for error in errors if error.errno not in gone]


def _delete_together(host: Netlink, some: Sequence[seen.Label]) -> list[KernelError]:
    # A group that was never used before, so that no stranger's link can be in it.
    group = links.GROUP_GOING + secrets.randbelow(links.GROUPS_GOING)
    requests = Requests(host)
    for label in some:
        # By index: under its name another one may have been born since it was looked up.
        requests.add(0, "mark", label.name, links.set_group(group, index=label.index))
    requests.add(0, "delete", f"group {group}", links.delete_group(group))
    return failures(requests, gone={errno.ENODEV})


def _chunks(some: Sequence[seen.Label]) -> Iterator[Sequence[seen.Label]]:
    for start in range(0, len(some), GROUP_SIZE):
        yield some[start : start + GROUP_SIZE]
