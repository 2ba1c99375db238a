"""conetd: a daemon that owns the networking of the containers on a Linux host."""

__version__ = "0.1.0"
