"""``clusterports status --watch``: the same picture again and again."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from shutil import get_terminal_size
from time import monotonic, sleep
from typing import TYPE_CHECKING, NoReturn

from clusterports._text import printable
from clusterports.errors import BackendUnavailable

from ._common import as_json, end, on_terminal, say
from ._table import BOLD, RED, clip, colored, paint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self

    from clusterports.status import ClusterStatus

    Lines = Callable[[ClusterStatus, int | None], Sequence[str]]

__all__ = ["JsonLines", "Plain", "Screen", "follow", "on_screen"]

# Private modes that terminals have in common with xterm: 1049 the alternate screen, 25 the cursor, 7 wrapping.
ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[2K", "\x1b[J"


def follow(look: Callable[[], ClusterStatus], view: Plain, pause: float) -> NoReturn:
    """Look and show until Ctrl-C, which ends it with 130; a store that is away after the first look may come back."""
    cluster, problem = look(), ""
    try:
        with view:
            while True:
                view.show(cluster, problem)
                view.wait(pause)
                try:
                    cluster, problem = look(), ""
                except BackendUnavailable as error:
                    problem = str(error)
    except KeyboardInterrupt:
        sys.exit(130)


def on_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return on_terminal() and os.environ.get("TERM") != "dumb"


class Plain:
    """Pictures one after the other, with a blank line between, for what is no terminal.

    ``lines``: of the state and a width, None for any. ``title``: to stand above it beside the time.
    """

    def __init__(self, lines: Lines, title: str) -> None:
        self._lines = lines
        self._title = title
        self._shown = False

    def show(self, cluster: ClusterStatus, problem: str) -> None:
        """``problem``: why there is no newer state, or ""."""
        before = [""] if self._shown else []
        print(*before, self.header(cluster, problem), "", *self._lines(cluster, None), sep="\n", flush=True)
        self._shown = True

    def header(self, cluster: ClusterStatus, problem: str) -> str:
        """One printable line."""
        seen = f"{cluster.generated_at.astimezone():%H:%M:%S}"
        if problem:
            return printable(f"{datetime.now(UTC).astimezone():%H:%M:%S}  as of {seen}: {problem}")
        unread = f"; hosts that cannot be read: {len(cluster.unreadable)}" if cluster.unreadable else ""
        return printable(f"{seen}  {self._title}{unread}")

    def wait(self, seconds: float) -> None:
        """Until the next look."""
        sleep(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class JsonLines(Plain):
    """A compact document on each line; problems are told on stderr, each once."""

    def __init__(self, document: Callable[[ClusterStatus], dict[str, Any]]) -> None:
        super().__init__(lambda *_: (), "")
        self._document = document
        self._problem = ""

    def show(self, cluster: ClusterStatus, problem: str) -> None:
        if not problem:
            print(as_json(self._document(cluster), separators=(",", ":")), flush=True)
        elif not self._problem:
            say(problem)
        self._problem = problem


class Screen(Plain):
    """The alternate screen of a terminal, which is as it was afterwards, whatever ends this.

    All is written past the buffer of stdout: of that, a rest could come after the terminal was restored.
    """

    _cluster: ClusterStatus
    _problem: str

    def show(self, cluster: ClusterStatus, problem: str) -> None:
        self._cluster, self._problem = cluster, problem
        width, height = get_terminal_size()
        header = clip(self.header(cluster, problem), width)
        lines = [paint(header, RED if problem else BOLD, colored()), "", *self._lines(cluster, width)]
        if len(lines) > height:
            kept = max(0, height - 1)
            lines[kept:] = [clip(f"… {len(lines) - kept} more lines", width)]
        _write(HOME + "\r\n".join(CLEAR_LINE + line for line in lines) + CLEAR_REST)

    def wait(self, seconds: float) -> None:
        """Also draw again, for the new size, when the terminal was resized or comes to the fore again."""
        until = monotonic() + seconds
        while select.select([self._woken], [], [], max(0.0, until - monotonic()))[0]:
            os.read(self._woken, 4096)
            self.show(self._cluster, self._problem)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._woken, self._wake = os.pipe()
            stack.callback(os.close, self._woken)
            stack.callback(os.close, self._wake)
            for signum, handler in (
                (signal.SIGWINCH, self._redraw),
                (signal.SIGTSTP, self._suspend),
                (signal.SIGTERM, end),
                (signal.SIGHUP, end),
            ):
                if signal.getsignal(signum) == signal.SIG_DFL:
                    stack.callback(signal.signal, signum, signal.signal(signum, handler))
            stack.callback(_leave)
            _write(ENTER)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _redraw(self, *_: object) -> None:
        os.write(self._wake, b"\0")

    def _suspend(self, *_: object) -> None:
        _leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        _write(ENTER)
        self._redraw()


def _leave() -> None:
    with suppress(OSError):  # the terminal is gone
        _write(LEAVE)


def _write(text: str) -> None:
    data = text.encode(sys.stdout.encoding, "backslashreplace")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
