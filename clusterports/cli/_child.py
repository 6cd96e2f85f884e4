"""A command that starts once its port is known, and does not outlive this process.

The fork comes first, before the library starts a thread: what the copy of a process with threads may safely
do before it execs is next to nothing. The child then waits for its port, and becomes the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING

from clusterports._listenfd import SD_LISTEN_FDS_START, hand_over

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Child", "NotStartedError"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h

MOST_SOCKETS = 2
"""A port for both protocols has two."""


class NotStartedError(Exception):
    """The command could not be executed."""

    def __init__(self, command: str, errno: int) -> None:
        super().__init__(f"{command}: {os.strerror(errno)}")
        self.errno = errno


class Child:
    """A process that waits for :meth:`start`; without it, it ends when this process does.

    To be made in the main thread: where the kernel can (Linux), it sends the child a SIGTERM when the thread
    that forked it ends, for whatever reason.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._exit_code: int | None = None
        # loaded before the fork, so that the child has nothing left to look up
        prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
        gate, self._gate = socket.socketpair()
        self._failure, failure = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                self._gate.close()
                if prctl is not None:
                    prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
                if os.getppid() == parent:
                    _become(command, gate, failure)
            finally:
                os._exit(0)
        gate.close()
        os.close(failure)

    def start(self, port: int, host: str, fence: int, sockets: Sequence[socket.socket] = ()) -> None:
        """Let it become the command, which inherits the sockets as LISTEN_FDS. Ours are still to be closed.

        :raises NotStartedError: when there is no such command, or it cannot be executed.
        """
        told = f"{port}\n{fence}\n{len(sockets)}\n{host}".encode()
        with contextlib.suppress(ConnectionError):  # a signal ended it already: its exit code tells
            socket.send_fds(self._gate, [told], [sock.fileno() for sock in sockets])
        self.abandon()
        with os.fdopen(self._failure, "rb") as failure:
            code = failure.read()  # exec closes the other end
        if code:
            raise NotStartedError(self._command[0], int(code))

    def abandon(self) -> None:
        """Let it go. Without a port it ends at once."""
        self._gate.close()

    def send(self, signum: int) -> None:
        """Pass a signal on. It cannot hit a stranger: the pid is the child's own until it was waited for."""
        if self._exit_code is None:
            os.kill(self.pid, signum)

    def shares_terminal_signals(self) -> bool:
        """Whether what a terminal sends to this process's group reaches the child too."""
        with contextlib.suppress(OSError):
            return os.getpgid(self.pid) == os.getpgrp()
        return False

    def exit_code(self) -> int | None:
        """As a shell puts it, 128 + n for signal n; None while it runs."""
        if self._exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._exit_code = code if code >= 0 else 128 - code
        return self._exit_code


def _become(command: Sequence[str], gate: socket.socket, failure: int) -> None:
    told, descriptors, _, _ = socket.recv_fds(gate, 4096, MOST_SOCKETS)
    while chunk := gate.recv(4096):
        told += chunk
    gate.close()
    if not told:
        return
    port, fence, sockets, host = told.split(b"\n", 3)
    words = {b"{port}": port, b"{host}": host}
    # in one pass: a host name may well contain "{port}"
    argv = [re.sub(rb"\{(?:port|host)\}", lambda match: words[match[0]], os.fsencode(part)) for part in command]
    environment = {
        **os.environb,
        b"CLUSTERPORTS_PORT": port,
        b"CLUSTERPORTS_HOST": host,
        b"CLUSTERPORTS_FENCE": fence,
    }
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        if len(descriptors) != int(sockets):  # the kernel keeps back those that are over the limit
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if descriptors:
            # It may lie where a socket has to go: without stdin and stdout the numbers begin at 0.
            failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START + MOST_SOCKETS)
            hand_over(descriptors, environment)
        os.execvpe(argv[0], argv, environment)  # noqa: S606
    except OSError as error:
        os.write(failure, str(error.errno).encode())
