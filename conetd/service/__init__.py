"""What the API can ask for: reads that answer at once, changes that are queued in their turn."""

from conetd.service.service import Service

__all__ = ["Service"]
