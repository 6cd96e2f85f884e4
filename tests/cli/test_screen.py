"""What ``clusterports status`` does with a terminal: colours, a pager, and ``--watch``."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from clusterports import PortAllocator
from clusterports.cli import _watch
from clusterports.cli._pager import page
from clusterports.cli._table import colored
from clusterports.cli._watch import CLEAR_LINE, CLEAR_REST, ENTER, HOME, LEAVE
from clusterports.errors import BackendError, BackendUnavailable
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cli.conftest import Command

PATIENCE = 30


class Terminal:
    """The command on a terminal of its own, of so many lines and columns."""

    def __init__(self, command: Command, *arguments: str, lines: int, columns: int, **environment: str) -> None:
        self._main, child = pty.openpty()
        self.resize(lines, columns)
        settings = {"TERM": "xterm", "LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "error"}
        inherited = {k: v for k, v in command.environment.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "PAGER")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clusterports.cli", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=command.directory,
            env=inherited | settings | environment,
        )
        os.close(child)
        self.text = ""

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, text: str) -> str:
        """What came up to this text, which it waits for."""
        deadline = monotonic() + PATIENCE
        while text not in self.text:
            assert self._read(deadline), f"{text!r} is not in {self.text!r}"
        seen, _, self.text = self.text.partition(text)
        return seen + text

    def end(self) -> tuple[int, str]:
        """The exit code, and all that is still to come."""
        deadline = monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE), self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._main], [], [], max(0.0, deadline - monotonic()))
        assert ready, f"nothing more came after {self.text!r}"
        try:
            data = os.read(self._main, 65536)
        except OSError:  # Linux says so that the other end is closed
            return False
        self.text += data.decode()
        return bool(data)


@contextmanager
def terminal(command: Command, *arguments: str, lines: int = 24, columns: int = 80, **env: str) -> Iterator[Terminal]:
    one = Terminal(command, *arguments, lines=lines, columns=columns, **env)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def held(command: Command) -> Iterator[Command]:
    """A store in which one port is held."""
    with PortAllocator(command.environment["CLUSTERPORTS_URL"], host="h", instance="one", probe=False) as ports:
        ports.acquire("backup", owner="vm-1")
        yield command


def test_on_a_terminal(held: Command) -> None:
    """There are colours, unless NO_COLOR speaks against it, and a pager for what is longer than the screen."""
    pager = f"{sys.executable} -c \"import sys; print('paged', *sys.stdin)\""
    with (
        terminal(held, "status", CLUSTERPORTS_PAGER=pager) as fits,
        terminal(held, "status", NO_COLOR="1", CLUSTERPORTS_PAGER=pager, lines=9) as long,
    ):
        code, text = fits.end()
        no_color = long.end()[1]

    assert 0 == code
    assert text.startswith("\x1b[1mRANGE")
    assert "\x1b[1mh: 1 held\x1b[m\r\n" in text
    assert " \x1b[32mheld\x1b[m " in text
    assert no_color.startswith("paged RANGE ")
    assert "\x1b" not in no_color


class Tty(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes stdout a terminal of five lines."""
    for name in ("CLUSTERPORTS_PAGER", "PAGER", "LESS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("TERM", "xterm")

    def replace() -> None:  # not before the test, at the begin of which pytest puts its own there
        file = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
        monkeypatch.setattr(sys, "stdout", Tty(file, "utf-8", "backslashreplace"))

    return replace


LINES = ["one", "two\udc80", "three", "four", "日"]
PRINTED = "one\ntwo\\udc80\nthree\nfour\n日\n"


@pytest.mark.parametrize(
    ("environment", "out"),
    [
        ({"CLUSTERPORTS_PAGER": "sed s/^/1/", "PAGER": "sed s/^/2/"}, "1one\n1two\\udc80\n1three\n1four\n1日\n"),
        ({"PAGER": "sed 's/o.*//;q'"}, "\n"),
        ({"PAGER": "sh -c 'cat; echo $LESS'"}, f"{PRINTED}FRX\n"),
        ({"PAGER": "sh -c 'cat; echo $LESS'", "LESS": "S"}, f"{PRINTED}S\n"),
        ({"PAGER": "true"}, ""),
        ({"PAGER": ""}, PRINTED),
        ({"PAGER": "cat", "PATH": ""}, PRINTED),
        ({"PAGER": "no-such-program --there"}, PRINTED),
        ({"PAGER": "'"}, PRINTED),
        ({"PATH": ""}, PRINTED),
        ({"PAGER": "true", "LINES": "6"}, PRINTED),
        ({"PAGER": "true", "TERM": "dumb"}, PRINTED),
    ],
    ids=str,
)
def test_pager(
    environment: dict[str, str],
    out: str,
    screen: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The user's own is taken where there is need of it; without one that can be started all is printed at once."""
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    screen()
    page(LINES)
    sys.stdout.flush()

    assert (out, "") == capfd.readouterr()


def test_a_pager_that_reads_nothing(
    screen: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no error when the pager is left before all is read."""
    monkeypatch.setenv("PAGER", "true")
    screen()
    page(["x" * 100] * 10_000)

    assert ("", "") == capfd.readouterr()


def test_when_there_are_colours(screen: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours are for a terminal that knows them, and for users who do not refuse them."""
    assert not colored()
    screen()
    assert colored()
    monkeypatch.setenv("NO_COLOR", "")  # as if it were not there, says no-color.org
    assert colored()
    monkeypatch.setenv("NO_COLOR", "0")
    assert not colored()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not colored()


def test_watch(held: Command) -> None:
    """In the alternate screen, cut to its height, drawn again for a new size; afterwards all is as before."""
    with terminal(held, "status", "--watch", "--interval", "3600", lines=6, columns=60) as one:
        before = one.until(HOME)
        first = one.until(CLEAR_REST).removesuffix(CLEAR_REST).split("\r\n")
        one.resize(30, 40)
        one.process.send_signal(signal.SIGWINCH)
        one.until(HOME)
        second = one.until(CLEAR_REST)
        one.process.send_signal(signal.SIGTSTP)
        suspended = one.until(LEAVE)
        _, stopped = os.waitpid(one.process.pid, os.WUNTRACED)
        one.process.send_signal(signal.SIGCONT)
        resumed = one.until(CLEAR_REST)
        one.process.send_signal(signal.SIGINT)
        code, after = one.end()

    assert ENTER + HOME == before
    assert 6 == len(first)
    assert all(line.startswith(CLEAR_LINE) for line in first)
    assert "redis://127.0.0.1:" in first[0]
    assert ", every 3600 s" in first[0]
    assert "\x1b[2K… 6 more lines" == first[-1]
    assert "10809/tcp" in second
    assert [] == [line for line in re.sub(r"\x1b\[\d*[mKJ]", "", second).splitlines() if len(line) > 40]
    assert LEAVE == suspended
    assert os.WIFSTOPPED(stopped)
    assert resumed.startswith(ENTER + HOME)
    assert (130, LEAVE) == (code, after)


def test_watch_is_terminated(held: Command) -> None:
    """Whoever ends it, the terminal is restored."""
    with terminal(held, "status", "--watch", "--interval", "0.2") as one:
        one.until(CLEAR_REST)
        one.until(CLEAR_REST)
        one.process.terminate()
        code, after = one.end()

    assert 128 + signal.SIGTERM == code
    assert after.endswith(LEAVE)


def test_watch_of_nothing(bare: Command) -> None:
    """A store that is away from the start is an error as without --watch, on the screen where one can read it."""
    with terminal(bare, "status", "--watch", "--url", "redis://127.0.0.1:1/0", CLUSTERPORTS_TIMEOUT="0.2") as one:
        code, text = one.end()

    assert 5 == code
    assert "\x1b" not in text
    assert text.startswith("clusterports: ")


class Store:
    """Answers, or is away, as told; then Ctrl-C."""

    def __init__(self, *answers: str | BaseException) -> None:
        self._answers = iter(answers)

    def __call__(self) -> ClusterStatus:
        answer = next(self._answers, KeyboardInterrupt())
        if isinstance(answer, BaseException):
            raise answer
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        ranges = [PortRange("backup", 1, 2)]
        return ClusterStatus.build(
            names=["host:h"], views=[BackendError("torn")], ranges=ranges, backend=answer, generated_at=noon
        )


def lines(cluster: ClusterStatus, width: int | None) -> list[str]:
    return [f"{cluster.backend} {width}"]


def document(cluster: ClusterStatus) -> dict[str, object]:
    return {"backend": cluster.backend, "odd": "\x7f\x1b"}


AWAY = BackendUnavailable("not reached\n")


def test_watch_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """One picture after the other; while the store is away the last one stands, and the header says so."""
    with pytest.raises(SystemExit) as ended:
        _watch.follow(Store("a", AWAY, "b"), _watch.Plain(lines, "the title\x1b"), 0.0)
    out = re.sub(r"\d\d:\d\d:\d\d", "TIME", capsys.readouterr().out)

    assert 130 == ended.value.code
    assert [
        "TIME  the title\\x1b; hosts that cannot be read: 1\n\na None",
        "TIME  as of TIME: not reached\\n\n\na None",
        "TIME  the title\\x1b; hosts that cannot be read: 1\n\nb None\n",
    ] == re.split(r"\n\n(?=TIME)", out)


def test_watch_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A document on each line; that the store is away is said once on stderr, each time that it goes."""
    with pytest.raises(SystemExit):
        _watch.follow(Store("a", AWAY, AWAY, "b", AWAY), _watch.JsonLines(document), 0.0)
    out, err = capsys.readouterr()

    assert [{"schema": 1, "backend": name, "odd": "\x7f\x1b"} for name in "ab"] == [
        json.loads(line) for line in out.splitlines()
    ]
    assert out.replace("\n", "").isprintable()
    assert ["clusterports: not reached\\n"] * 2 == err.splitlines()


@pytest.mark.parametrize("answers", [(AWAY,), ("a", BackendError("denied"))])
def test_watch_ends_with_an_error(answers: tuple[str | BaseException, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """What a second look will not cure ends it, and so does a store that was never there."""
    with pytest.raises(BackendError):
        _watch.follow(Store(*answers), _watch.Plain(lines, ""), 0.0)
