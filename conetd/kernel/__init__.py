"""The kernel layer: what plans say is made so here, and nowhere else does conetd speak netlink."""

from conetd.kernel.kernel import BoundKernel, Kernel
from conetd.kernel.work import Work

__all__ = ["BoundKernel", "Kernel", "Work"]
