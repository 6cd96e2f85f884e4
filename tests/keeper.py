"""The first process of a host: ``python keeper.py COMMAND...``, started by :mod:`hypervisors`.

Each line on stdin starts the command, whose pid is answered on stdout. What the command leaves behind comes to this
process to be waited for, as to an init: libvirt waits for the end of a QEMU that it killed, and the machine's own
init may be slow or none. At the end of stdin, also by the death of the test, all that was started here is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main(command: list[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGCHLD, reap)
    # Neither is the command to read what is meant for this process, nor to write between its answers.
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    for _ in sys.stdin:
        print(os.posix_spawnp(command[0], command, os.environ, file_actions=files), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        os.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
