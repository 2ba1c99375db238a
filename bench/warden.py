"""How a thousand network namespaces are kept: this tiny program forks one process for each that does nothing.

It reads how many are wanted, a number a line, and answers with the pids. They end with it.
"""

import ctypes
import os
import signal
import sys

CLONE_NEWNET = 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for line in sys.stdin:
        pids = []
        for _ in range(int(line)):
            if libc.unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            pid = os.fork()
            if pid == 0:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                while True:
                    signal.pause()
            pids.append(str(pid))
        sys.stdout.write(" ".join(pids) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
