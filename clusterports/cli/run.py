"""``clusterports run``: a command with a port of its own.

Signals. The main thread does nothing but wait for signals and for news of the other threads, and passes on to
the command what was meant for it. The command stays in this process group, so that job control works as ever;
what a terminal sends (Ctrl-C, Ctrl-\\, a new size) reaches it directly, and is told by the kernel's mark from
what somebody sent to this process alone. Ctrl-Z stops both, the heartbeat too: for longer than the TTL, that
is the end of the lease.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterports._lease import MARGIN
from clusterports._names import check_text, default_host
from clusterports._text import show
from clusterports.errors import ClusterPortsError, ConfigurationError, LeaseLost
from clusterports.probe import HeldSockets, is_local
from clusterports.ranges import PORT_BOUND

from ._child import Child, NotStartedError
from ._common import DEFAULT_RANGE, Common, Ttl, complete_range, say
from ._taking import (
    Labels,
    Owner,
    Protocol,
    Wait,
    check_number,
    check_pairs,
    check_seconds,
    in_words,
    say_json,
    to_dict,
    warn_ephemeral,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from clusterports import Allocation, PortAllocator

    Hold = Callable[[Callable[[LeaseLost], None], Callable[[object], None]], AbstractContextManager[Allocation]]

__all__ = ["run"]

PASSED_ON = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
}
SENT_TO_GROUP = {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}
"""What a terminal sends to a whole process group. A hangup may be told to the session's leader alone."""

HARMLESS = {signal.SIGWINCH, signal.SIGCONT}
NEWS = signal.SIGRTMIN
"""Another thread has something to say."""

WAITED_FOR = {*PASSED_ON, signal.SIGCHLD, NEWS}

SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel, not by a process

KILL_AFTER = 10.0
"""Seconds that a command has to end once its lease is lost."""

LEAVE_AFTER = 0.8
"""Seconds to wait for what may never come: the end of a killed process, the reply to an acquire nobody wants."""

LEASE_LOST = 4


class OnLost(StrEnum):
    """What happens to the command when its lease is lost."""

    terminate = "terminate"
    warn = "warn"


def run(
    common: Common,
    command: Annotated[
        list[str], typer.Argument(metavar="CMD", help="After --. In its words {port} and {host} are filled in.")
    ],
    range: Annotated[
        str, typer.Option(help="The range to take a port from.", autocompletion=complete_range)
    ] = DEFAULT_RANGE,
    port: Annotated[str | None, typer.Option(metavar="N", help="This port of the range, or an error.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="tcp, udp, or both.")] = Protocol.tcp,
    owner: Owner = "",
    label: Labels = None,
    wait: Wait = "0",
    listen_fd: Annotated[
        bool, typer.Option("--listen-fd", help="The command inherits the port's socket, listening: LISTEN_FDS.")
    ] = False,
    on_lost: Annotated[
        OnLost, typer.Option(help="When the lease is lost: end the command and exit with 4, or only say so.")
    ] = OnLost.terminate,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="A lease not renewed in time is lost at once.")
    ] = None,
    ttl: Ttl = None,
) -> None:
    """Take a port, run a command with it, and give the port back when the command ends.

    The command finds CLUSTERPORTS_PORT, CLUSTERPORTS_HOST and CLUSTERPORTS_FENCE in its environment; its exit
    code is this one's. It does not outlive this process. With --json, a line of JSON on stderr says what it got.

    \b
    Examples:
      clusterports run -- python3 -m http.server {port}
      clusterports run --range backup --owner vm-42 --listen-fd -- qemu-nbd --persistent disk.qcow2
      clusterports run --wait 60 --label build=81 -- ./serve --port {port}
    """
    wanted = None if port is None else check_number("port", port, PORT_BOUND)
    labels, patience = check_pairs(label), check_seconds(wait)
    check_text("owner", owner)
    settings = common.settings(ttl=ttl, strict=strict)
    if listen_fd:
        _check_local(settings.host)
    if wanted is None:
        warn_ephemeral(common, settings, range)
    backend = common.backend(settings)
    held = HeldSockets()
    arguments: dict[str, Any] = {"probe": held} if listen_fd else {}
    waiting: list[PortAllocator] = []  # taken out by whoever comes first: the port, or a signal that ends the wait

    @contextmanager
    def hold(on_lost: Callable[[LeaseLost], None], on_jeopardy: Callable[[object], None]) -> Iterator[Allocation]:
        from clusterports import PortAllocator

        with (
            backend,
            PortAllocator(
                settings=settings, backend=backend, on_lost=on_lost, on_jeopardy=on_jeopardy, **arguments
            ) as ports,
            held,  # closed before the port is given back
        ):
            waiting.append(ports)
            allocation = ports.acquire(
                range, port=wanted, protocol=protocol.value, owner=owner, labels=labels, wait=patience
            )
            if not _pop(waiting):
                raise ClusterPortsError("given up")
            _tell(common, allocation, ports.instance, settings.ttl)
            yield allocation
            held.close()
            ports.release(allocation)

    def give_up() -> bool:
        ports = _pop(waiting)
        if ports is not None:
            ports.close()
        return ports is not None

    supervisor = Supervisor(
        command,
        hold,
        sockets=lambda allocation: held.take(allocation.number, allocation.protocol),
        give_up=give_up,
        terminate=on_lost is OnLost.terminate,
        warn=common.warn,
    )
    raise typer.Exit(supervisor.run())


def _tell(common: Common, allocation: Allocation, instance: str, ttl: float) -> None:
    expires_in = allocation.expires_in + ttl * MARGIN  # in the store, as `status` shows it
    if common.json:
        say_json(to_dict([allocation], instance, expires_in))
    if common.verbose:
        say(in_words([allocation], instance, expires_in))


def _pop(waiting: list[PortAllocator]) -> PortAllocator | None:
    with suppress(IndexError):
        return waiting.pop()
    return None


def _check_local(host: str | None) -> None:
    if host is not None and not is_local(host):
        raise ConfigurationError(
            f"host: must be this machine, {show(default_host())}, with --listen-fd, which binds the port here; "
            f"got {show(host)}"
        )


class Supervisor:
    """The command in its process, the port in its thread, and the main thread between them.

    ``hold`` is a context manager: the port is held inside. It runs in a thread of its own, so that a store which
    does not answer cannot keep a signal from being seen. ``sockets``: what the command inherits. ``give_up`` ends
    the waiting for a port; it answers False while there is nothing yet to end. ``warn``: to say what is no error.
    """

    def __init__(
        self,
        command: Sequence[str],
        hold: Hold,
        *,
        sockets: Callable[[Allocation], Sequence[socket.socket]],
        give_up: Callable[[], bool],
        terminate: bool,
        warn: Callable[[object], None],
    ) -> None:
        self._command = command
        self._hold = hold
        self._sockets = sockets
        self._give_up = give_up
        self._terminate = terminate
        self._say_warning = warn
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._finish = threading.Event()
        self._allocation: Allocation | None = None
        self._lost: LeaseLost | None = None
        self._kill_at: float | None = None
        self._ended = False
        self._error: Exception | None = None

    def run(self) -> int:
        """Until the command has ended and its port is back: the exit code."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was inherited as ignored, exit codes would be lost
        self._child = Child(self._command)
        # Blocked for good and in every thread to come; the child got the mask as it was.
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
        threading.Thread(target=self._keep, name="clusterports-run", daemon=True).start()
        code = self._supervise()
        self._child.abandon()
        self._finish.set()
        if self._allocation is None and not self._ended:  # it may be waiting for longer than we will
            threading.Thread(target=self._stop_waiting, name="clusterports-stop", daemon=True).start()
        self._wait_for_release(code)
        if self._allocation is not None and isinstance(self._error, LeaseLost) and self._lost is None:
            self._lose(self._error)
        elif self._allocation is not None and self._error is not None and self._lost is None:
            self._say_warning(
                f"warning: port {self._allocation.number} was not given back, its lease will run out: {self._error}"
            )
        return LEASE_LOST if self._lost is not None and self._terminate else code

    # ---------------------------------------------------------------- in the thread that holds the port

    def _keep(self) -> None:
        error: Exception | None = None
        try:
            with self._hold(self._tell(self._lose), self._tell(self._warn)) as allocation:
                self._post(lambda: self._start(allocation))
                self._finish.wait()
        except Exception as caught:  # noqa: BLE001 (for the main thread to judge)
            error = caught
        self._post(lambda: self._end(error))

    def _stop_waiting(self) -> None:
        with suppress(ClusterPortsError):
            if self._give_up():
                self._post(lambda: self._end(None))

    def _tell(self, hear: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda said: self._post(lambda: hear(said))

    def _post(self, news: Callable[[], None]) -> None:
        self._news.put(news)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, NEWS)

    # ---------------------------------------------------------------- in the main thread: news

    def _start(self, allocation: Allocation) -> None:
        self._allocation = allocation
        wanted = not self._finish.is_set() and not (self._lost is not None and self._terminate)
        if wanted:
            with ExitStack() as ours:  # closed when the command has its own
                sockets = [ours.enter_context(sock) for sock in self._sockets(allocation)]
                self._child.start(allocation.number, allocation.host, allocation.fence, sockets)

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        self._error = error

    def _lose(self, error: LeaseLost) -> None:
        self._lost = error
        if self._terminate and self._child.exit_code() is None:
            say(f"{error}; ending the command")
            self._child.send(signal.SIGTERM)
            self._child.send(signal.SIGCONT)  # a stopped one would not notice
            self._kill_at = time.monotonic() + KILL_AFTER
        else:
            say(error)

    def _warn(self, _: object) -> None:
        if self._allocation is not None:
            self._say_warning(
                f"warning: the lease of port {self._allocation.number} was not renewed in time, and may be lost"
            )

    # ---------------------------------------------------------------- in the main thread: signals

    def _supervise(self) -> int:
        """Until the command has ended, or there will be none: the exit code."""
        killed = False
        while True:
            heard = self._next_signal(self._kill_at)
            if heard is None:
                if killed:  # not even SIGKILL ends a process that the kernel holds
                    return LEASE_LOST
                self._child.send(signal.SIGKILL)
                killed, self._kill_at = True, time.monotonic() + LEAVE_AFTER
            try:
                self._hear_news()
            except NotStartedError as error:
                say(error)
                return 127 if error.errno == errno.ENOENT else 126
            if self._ended and self._error is not None and self._allocation is None:
                raise self._error
            code = self._child.exit_code()
            if code is not None:
                return code
            if heard is None or heard.si_signo not in PASSED_ON:
                continue
            if self._allocation is not None:
                self._pass_on(heard)
            elif heard.si_signo not in HARMLESS:
                return 128 + heard.si_signo

    def _pass_on(self, heard: signal.struct_siginfo) -> None:
        from_terminal = heard.si_signo in SENT_TO_GROUP and heard.si_code == SI_KERNEL
        if not (from_terminal and self._child.shares_terminal_signals()):
            self._child.send(heard.si_signo)

    def _wait_for_release(self, code: int) -> None:
        impatient = code > 128 and self._allocation is None
        until = time.monotonic() + LEAVE_AFTER if impatient else None
        while not self._ended:
            heard = self._next_signal(until)
            if heard is None:
                if self._allocation is not None:
                    self._say_warning(
                        f"warning: port {self._allocation.number} was not given back, its lease will run out"
                    )
                return
            self._hear_news()
            if until is None and heard.si_signo in PASSED_ON - HARMLESS:
                until = time.monotonic() + LEAVE_AFTER

    def _next_signal(self, until: float | None) -> signal.struct_siginfo | None:
        """None: nothing until then."""
        if until is None:
            return signal.sigwaitinfo(WAITED_FOR)
        return signal.sigtimedwait(WAITED_FOR, max(0.0, until - time.monotonic()))

    def _hear_news(self) -> None:
        with suppress(Empty):
            while True:
                self._news.get_nowait()()
