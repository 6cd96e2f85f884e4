"""The thread that watches deadlines: what it calls, in which thread, and that nothing keeps it from it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from clusterports._lease import HostLease
from clusterports._watchdog import Watchdog
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
        self.watchdog = Watchdog(lambda: list(self.leases), self.overdue)

    def overdue(self, lease: HostLease) -> None:
        if lease.overdue(time.monotonic()):
            with self.tell:
                self.told.append((lease, threading.current_thread().name))
                self.tell.notify()

    def lease(self, seconds_left: float) -> HostLease:
        lease = HostLease("host:a", "a", Holder("manager", 1, 1), 10.0, time.monotonic() - 9.0 + seconds_left)
        self.leases.append(lease)
        return lease

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


def finish(watchdog: Watchdog) -> None:
    """Wait until everything asked for before was done."""
    done = threading.Event()
    watchdog.call(done.set)
    assert done.wait(PATIENCE)


def test_tells_at_the_deadline(watched: Watched) -> None:
    """A deadline is told of when it has passed, not before, by the watchdog's own thread."""
    lease = watched.lease(0.1)
    watched.watchdog.start()
    assert [lease] == watched.wait(1)
    assert time.monotonic() >= lease.until
    assert "clusterports-watchdog" == watched.told[0][1]


def test_tells_once(watched: Watched) -> None:
    """However often it looks, a deadline is told of once."""
    lease = watched.lease(-1.0)
    for _ in range(5):
        watched.watchdog.start()
        finish(watched.watchdog)
    assert [lease] == watched.wait(1)


def test_a_lease_that_comes_later(watched: Watched) -> None:
    """It looks again when a lease has come, also one whose deadline is nearer than all others."""
    watched.lease(1000.0)
    watched.watchdog.start()
    finish(watched.watchdog)
    sooner = watched.lease(0.1)
    watched.watchdog.start()
    assert [sooner] == watched.wait(1)


def test_renewed_in_time(watched: Watched) -> None:
    """A lease that was renewed in time is let alone until its new deadline, and then told of."""
    renewed = watched.lease(0.2)
    other = watched.lease(0.4)
    watched.watchdog.start()
    renewed.renewed(renewed.renewal(), time.monotonic() - 9.0 + 0.6)
    assert [other, renewed] == watched.wait(2)
    assert time.monotonic() >= renewed.until


def test_several(watched: Watched) -> None:
    """Each lease has its own deadline."""
    late, soon = watched.lease(0.3), watched.lease(0.1)
    watched.watchdog.start()
    assert [soon, late] == watched.wait(2)


def test_callback_that_fails(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """A user's function that raises is logged, and the next is called all the same."""

    def fail(*_: Any) -> None:
        raise ValueError("broken by its author")

    with caplog.at_level(logging.ERROR, "clusterports"):
        watched.watchdog.call(fail, 1)
        finish(watched.watchdog)
    assert ["a callback failed"] == [record.message for record in caplog.records]
    assert "broken by its author" in caplog.text


def test_calls_in_order(watched: Watched) -> None:
    """Functions are called one after the other, in the order in which they were handed over."""
    calls: list[int] = []
    for number in range(20):
        watched.watchdog.call(calls.append, number)
    finish(watched.watchdog)
    assert list(range(20)) == calls


def test_stop_finishes_what_is_due(watched: Watched) -> None:
    """What was handed over before the stop is called, then the thread ends; the stop itself waits for nothing."""
    go = threading.Event()
    calls: list[int] = []
    watched.watchdog.call(go.wait, PATIENCE)
    watched.watchdog.call(calls.append, 1)
    (thread,) = watchdog_threads()
    watched.watchdog.stop()
    go.set()
    thread.join(PATIENCE)
    assert ([1], False) == (calls, thread.is_alive())


def test_call_after_stop(watched: Watched) -> None:
    """A loss that is found while it ends is told of all the same."""
    watched.watchdog.stop()
    finish(watched.watchdog)


def test_stop_without_start() -> None:
    """One that never had anything to watch has no thread to end."""
    Watchdog(list, lambda _: None).stop()
    assert [] == watchdog_threads()
