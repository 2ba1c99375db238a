"""What is wanted, kept on disk: the one place with SQL."""

from conetd.store.database import Database
from conetd.store.records import (
    AttachmentRecord,
    ContainerRecord,
    HostPortRecord,
    Join,
    Life,
    NetworkRecord,
    encode,
)

__all__ = [
    "AttachmentRecord",
    "ContainerRecord",
    "Database",
    "HostPortRecord",
    "Join",
    "Life",
    "NetworkRecord",
    "encode",
]
