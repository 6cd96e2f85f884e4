"""The threads that watch deadlines and call the user's functions, and that nothing keeps them from it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

from clusterports._lease import HostLease, monotonic
from clusterports._watchdog import Callbacks, Watchdog
from clusterports.abc import Holder

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE: Final = 10.0
"""Seconds until a test gives up waiting; none takes this long when all is well."""


class Watched:
    """A watchdog with its leases. ``told``: those that are overdue, in order, with the thread that said so."""

    def __init__(self) -> None:
        self.leases: list[HostLease] = []
        self.told: list[tuple[HostLease, str]] = []
        self.tell = threading.Condition()
        self.watchdog = Watchdog(self.look, self.overdue)
        self.looks = 0

    def look(self) -> list[HostLease]:
        with self.tell:
            self.looks += 1
            self.tell.notify()
        return list(self.leases)

    def overdue(self, lease: HostLease) -> None:
        if lease.overdue(monotonic()):
            with self.tell:
                self.told.append((lease, threading.current_thread().name))
                self.tell.notify()

    def lease(self, seconds_left: float) -> HostLease:
        lease = HostLease("host:a", "a", Holder("manager", 1, 1), 10.0, monotonic() - 9.0 + seconds_left)
        self.leases.append(lease)
        return lease

    def look_again(self) -> None:
        """Let it look at all leases, and wait until it has."""
        with self.tell:
            seen = self.looks
        self.watchdog.start()
        with self.tell:
            assert self.tell.wait_for(lambda: self.looks > seen, PATIENCE)

    def wait(self, count: int) -> list[HostLease]:
        with self.tell:
            assert self.tell.wait_for(lambda: len(self.told) >= count, PATIENCE)
        return [lease for lease, _ in self.told]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.watchdog.stop()
    for thread in watchdog_threads():
        thread.join(PATIENCE)


def watchdog_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "clusterports-watchdog"]


@pytest.fixture
def callbacks() -> Iterator[Callbacks]:
    callbacks = Callbacks()
    yield callbacks
    callbacks.stop()


def finish(callbacks: Callbacks) -> None:
    """Wait until everything handed over before was done."""
    done = threading.Event()
    callbacks.call(done.set)
    assert done.wait(PATIENCE)


def test_tells_at_the_deadline(watched: Watched) -> None:
    """A deadline is told of when it has passed, not before, by the watchdog's own thread."""
    lease = watched.lease(0.1)
    watched.watchdog.start()
    assert [lease] == watched.wait(1)
    assert monotonic() >= lease.until
    assert "clusterports-watchdog" == watched.told[0][1]


def test_tells_once(watched: Watched) -> None:
    """However often it looks, a deadline is told of once."""
    lease = watched.lease(-1.0)
    for _ in range(5):
        watched.look_again()
    assert [lease] == watched.wait(1)


def test_a_lease_that_comes_later(watched: Watched) -> None:
    """It looks again when a lease has come, also one whose deadline is nearer than all others."""
    watched.lease(1000.0)
    watched.look_again()
    sooner = watched.lease(0.1)
    watched.watchdog.start()
    assert [sooner] == watched.wait(1)


def test_renewed_in_time(watched: Watched) -> None:
    """A lease that was renewed in time is let alone until its new deadline, and then told of."""
    renewed = watched.lease(0.2)
    other = watched.lease(0.4)
    watched.watchdog.start()
    renewed.renewed(renewed.renewal(), monotonic() - 9.0 + 0.6)
    assert [other, renewed] == watched.wait(2)
    assert monotonic() >= renewed.until


def test_a_watchdog_that_died(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed by what it called is started again."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(watched.watchdog, "_leases", lambda: 1 // 0)
    watched.watchdog.start()
    for thread in watchdog_threads():
        thread.join(PATIENCE)
    monkeypatch.undo()
    lease = watched.lease(0.0)
    watched.watchdog.start()
    assert [lease] == watched.wait(1)


def test_several(watched: Watched) -> None:
    """Each lease has its own deadline."""
    late, soon = watched.lease(0.3), watched.lease(0.1)
    watched.watchdog.start()
    assert [soon, late] == watched.wait(2)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_callback_that_fails(
    callbacks: Callbacks, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    """A user's function that raises is logged, and the next is called all the same."""

    def fail(*_: Any) -> None:
        raise error("broken by its author")

    with caplog.at_level(logging.ERROR, "clusterports"):
        callbacks.call(fail, 1)
        finish(callbacks)
    assert ["a callback failed"] == [record.message for record in caplog.records]
    assert "broken by its author" in caplog.text


def test_calls_in_order(callbacks: Callbacks) -> None:
    """Functions are called one after the other, in the order in which they were handed over."""
    calls: list[int] = []
    for number in range(20):
        callbacks.call(calls.append, number)
    finish(callbacks)
    assert list(range(20)) == calls


def test_slow_callback(watched: Watched, callbacks: Callbacks) -> None:
    """A function that takes its time holds up no deadline."""
    go = threading.Event()
    callbacks.call(go.wait, PATIENCE)
    lease = watched.lease(0.1)
    watched.watchdog.start()
    assert [lease] == watched.wait(1)
    go.set()


def test_stop_finishes_what_is_due(callbacks: Callbacks) -> None:
    """What was handed over before the stop is called, then the thread ends; the stop itself waits for nothing."""
    go = threading.Event()
    calls: list[int] = []
    callbacks.call(go.wait, PATIENCE)
    callbacks.call(calls.append, 1)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "clusterports-callbacks"]
    callbacks.stop()
    go.set()
    thread.join(PATIENCE)
    assert ([1], False) == (calls, thread.is_alive())


def test_call_after_stop(callbacks: Callbacks) -> None:
    """A loss that is found while it ends is told of all the same."""
    callbacks.stop()
    finish(callbacks)


def test_stop_without_start() -> None:
    """One that never had anything to watch has no thread to end."""
    Watchdog(list, lambda _: None).stop()
    assert [] == watchdog_threads()
