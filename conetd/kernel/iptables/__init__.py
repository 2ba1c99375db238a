"""The packet filter in legacy iptables tables, for hosts that still want them; the extra `conetd[iptables]`."""

from conetd.kernel.iptables.backend import IptablesBackend
from conetd.kernel.iptables.probe import available

__all__ = ["IptablesBackend", "available"]
