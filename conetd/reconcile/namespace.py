"""Whether a container lives, and how its namespace is opened: by its process, if that is still the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from conetd.errors import ConetError
from conetd.kernel.namespaces import NetNS, open_namespace
from conetd.kernel.process import ProcessId, alive, namespace_inode
from conetd.store import ContainerRecord


def lives(boot_id: str, container: ContainerRecord) -> bool:
    """Whether the process the container came up with is still there, in the same namespace and the same boot."""
    life = container.life
    if life is None or life.boot_id != boot_id:
        return False
    return alive(ProcessId(life.pid, life.start_time)) and namespace_inode(life.pid) == life.netns


@contextmanager
def container_netns(container: ContainerRecord | None) -> Iterator[NetNS | None]:
    """The container's namespace for the length of the block; None when its process is gone, or it is not up."""
    netns: NetNS | None = None
    life = container.life if container is not None else None
    if life is not None and alive(ProcessId(life.pid, life.start_time)):
        try:
            netns = open_namespace(life.pid)
        except ConetError:
            netns = None  # it ended between the question and the opening
        if netns is not None and netns.inode != life.netns:
            netns.close()
            netns = None
    try:
        yield netns
    finally:
        if netns is not None:
            netns.close()
