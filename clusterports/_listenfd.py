"""Sockets for a command that is started with them: the starter's side of systemd's LISTEN_FDS protocol.

The command finds its sockets as the descriptors 3, 4, ... and LISTEN_FDS tells how many (sd_listen_fds(3)).
LISTEN_PID must be its own pid, so that a grandchild which inherits the variables does not take them for its
own. The pid is known only after the fork, hence by the one who calls exec in the end: :func:`hand_over` is
for code that does so itself. For ``subprocess``, :func:`wrapped` puts a process in front that calls it, which
needs neither ``preexec_fn`` nor a shell; POSIX shells can redirect the descriptors 0 to 9 only::

    process = subprocess.Popen(wrapped(command, [sock.fileno()]), pass_fds=[sock.fileno()])
    sock.close()

That process runs this file by its path: it must not import anything of its package.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

TYPE_CHECKING = False  # importing typing would double the time that a wrapped command takes to start
if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["hand_over", "wrapped"]

SD_LISTEN_FDS_START = 3  # sd-daemon.h


def hand_over(descriptors: Sequence[int], environment: MutableMapping[bytes, bytes], names: str = "") -> None:
    """Prepare this process and the environment of the command that it execs next.

    The descriptors become 3, 4, ... in their order; whatever was open there before is closed, and so are
    the originals. ``names`` is the value of LISTEN_FDNAMES, if any: one name per socket, separated by colons.
    """
    count = len(descriptors)
    # out of the way first: one of them may lie where another one has to go
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START + count) for fd in descriptors]
    for fd in set(descriptors):
        os.close(fd)
    for target, fd in enumerate(copies, SD_LISTEN_FDS_START):
        os.dup2(fd, target)
        os.close(fd)
    for stale in (b"LISTEN_FDNAMES", b"LISTEN_PIDFDID"):  # of this process's own activation
        environment.pop(stale, None)
    environment[b"LISTEN_FDS"] = b"%d" % count
    environment[b"LISTEN_PID"] = b"%d" % os.getpid()
    if names:
        environment[b"LISTEN_FDNAMES"] = os.fsencode(names)


def wrapped(command: Sequence[str], descriptors: Sequence[int], names: str = "") -> list[str]:
    """The command line that becomes ``command`` with these descriptors as its sockets, in the same process.

    The descriptors must be inherited under their numbers (``pass_fds``). A command that cannot be executed
    ends as in a shell: a line on stderr, exit code 127 when there is none of that name, else 126.
    """
    numbers = ",".join(map(str, descriptors))
    return [sys.executable, "-I", "-S", __file__, numbers, names, *command]


def _main(numbers: str, names: str, *command: str) -> int:
    environment = os.environb.copy()
    hand_over([int(number) for number in numbers.split(",")], environment, names)
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_main(*sys.argv[1:]))
