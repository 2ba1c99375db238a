"""Who is in a network namespace, and who of them is still there later.

The kernel gives the inode number of a namespace that is gone to the next, which may be that of another test.
"""

from __future__ import annotations

from collections.abc import Iterable

from pytest_netns import processes_in

Inhabitants = dict[int, list[int]]  # the inode numbers of namespaces to process ids


def inhabitants(inodes: Iterable[int]) -> Inhabitants:
    """The processes in each of these namespaces."""
    return {inode: processes_in(inode) for inode in inodes}


def still_there(once: Inhabitants) -> list[int]:
    """Those of these processes that are where they were."""
    return [pid for inode, pids in once.items() for pid in processes_in(inode) if pid in pids]
