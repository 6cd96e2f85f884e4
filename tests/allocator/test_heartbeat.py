"""The holder's side: what it is told when the store is slow, away, forgetful, or its own process is."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import HOST, PATIENCE, Fault, Told, eventually, result

from clusterports import BackendError, BackendUnavailable, LeaseLost, PortRange
from clusterports._names import host_space
from clusterports.abc import Stale

if TYPE_CHECKING:
    from allocator.kit import Kit

SHORT = 0.6
"""Seconds of a TTL that is meant to run out."""


def fail(flaky: Any, how: str) -> None:
    """Let no heartbeat through: it fails, it hangs, or it is carried out and its reply is lost."""
    if how == "hangs":
        flaky.faults["renew"] = Fault(gate=threading.Event())
    elif how == "breaks":
        flaky.faults["renew"] = Fault(RuntimeError("a bug in a backend"))
    else:
        flaky.faults["renew"] = Fault(BackendUnavailable("away"), after=how == "loses replies")


@pytest.mark.parametrize("how", ["fails", "hangs", "loses replies", "breaks"])
async def test_jeopardy(memory_kit: Kit, how: str) -> None:
    """Without a renewal the holder is told at its deadline, once, and its ports are not valid until one succeeds."""
    flaky, jeopardy, lost = memory_kit.flaky(), Told(), Told()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, on_jeopardy=jeopardy, on_lost=lost)
    held = await result(ports.acquire("backup", count=2))
    fail(flaky, how)
    deadline = time.monotonic() + held[0].expires_in
    assert held[0].valid
    assert [held] == await jeopardy.wait()
    assert [False, False] == [port.valid for port in held]
    assert deadline <= jeopardy.at[0]
    assert ["clusterports-callbacks"] == jeopardy.threads

    flaky.back()
    await eventually([True, True], lambda: [port.valid for port in held])
    assert (1, 0, {10809: "held", 10810: "held"}) == (len(jeopardy.what), len(lost.what), memory_kit.ports())
    await result(held[0].release())

    fail(flaky, how)
    assert [held[1]] == (await jeopardy.wait(2))[1]


async def test_deadline_counts_from_before_sending(memory_kit: Kit) -> None:
    """A heartbeat that was long on its way prolongs from when it was sent, not from when it was answered."""
    flaky = memory_kit.flaky()
    first, second = threading.Event(), threading.Event()
    ports = memory_kit.allocator(backend=flaky, ttl=2)
    held = await result(ports.acquire("backup"))
    flaky.faults["renew"] = Fault(gate=first)
    await eventually("renew", lambda: flaky.begun[-1][0])
    sent_by = flaky.begun[-1][1]
    flaky.faults["renew"] = Fault(gate=second)
    await asyncio.sleep(0.3)
    until = time.monotonic() + held.expires_in
    first.set()
    await eventually(True, lambda: time.monotonic() + held.expires_in > until + 0.1)
    assert time.monotonic() + held.expires_in < sent_by + 1.8 + 0.01


async def test_nothing_held_no_jeopardy(memory_kit: Kit) -> None:
    """Who holds nothing is not told of a deadline."""
    flaky, jeopardy = memory_kit.flaky(), Told()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, on_jeopardy=jeopardy)
    await result((await result(ports.acquire("backup"))).release())
    lease = ports._leases[host_space(HOST)]
    fail(flaky, "fails")
    await eventually("jeopardy", lambda: lease.state)
    flaky.back()
    await eventually("live", lambda: lease.state)
    assert [] == jeopardy.what


@pytest.mark.parametrize("how", ["fails", "hangs", "loses replies"])
async def test_strict(memory_kit: Kit, how: str) -> None:
    """Of a strict allocator the deadline is a loss for good: told once, ports cool, the next acquire begins anew."""
    flaky, jeopardy, lost = memory_kit.flaky(), Told(), Told()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, strict=True, on_jeopardy=jeopardy, on_lost=lost)
    held = await result(ports.acquire("backup"))
    fail(flaky, how)
    (error,) = await lost.wait()
    assert (LeaseLost, "deadline", [held]) == (type(error), error.reason, error.allocations)
    assert ["clusterports-callbacks"] == lost.threads

    flaky.back()
    with pytest.raises(LeaseLost) as refused:
        await result(held.release())
    assert "deadline" == refused.value.reason
    again = await result(ports.acquire("backup"))
    assert (10810, True, False) == (again.number, again.valid, held.valid)
    assert {10809: "cooling", 10810: "held"} == memory_kit.ports()
    assert (1, []) == (len(lost.what), jeopardy.what)


async def test_strict_ports_are_given_back(memory_kit: Kit) -> None:
    """What a strict allocator gave up cools as soon as the store is there again, with nobody asking."""
    flaky, lost = memory_kit.flaky(), Told()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, strict=True, on_lost=lost)
    await result(ports.acquire("backup"))
    flaky.away()
    await lost.wait()
    flaky.back()
    await eventually({10809: "cooling"}, memory_kit.ports)


async def test_blocked_event_loop(memory: Any) -> None:
    """While the event loop is blocked, the deadline is noticed all the same: invalid, and the callback is called."""
    from allocator.kit import Kit

    kit = Kit("async", memory)
    jeopardy = Told()
    called = threading.Event()

    def on_jeopardy(what: Any) -> None:
        jeopardy(what)
        called.set()

    ports = kit.allocator(ttl=SHORT, on_jeopardy=on_jeopardy)
    held = await ports.acquire("backup")
    began = time.monotonic()
    assert called.wait(PATIENCE)  # blocks the loop: no heartbeat can be sent
    assert (False, [[held]]) == (held.valid, jeopardy.what)
    assert jeopardy.at[0] - began < SHORT
    await eventually(True, lambda: held.valid)
    await kit.finish()


async def test_expired_in_the_store(kit: Kit) -> None:
    """When the store says that the lease is gone, the holder is told with the next heartbeat, with all it held."""
    lost = Told()
    ports = kit.allocator(ttl=1, on_lost=lost)
    held = await result(ports.acquire("backup", count=2))
    while kit.leases():  # a heartbeat in between puts it off
        kit.pass_time(10)
    (error,) = await lost.wait()
    assert (held, "revoked") == (error.allocations, error.reason)
    assert "is lost: it was not renewed in time; ports: 10809/tcp, 10810/tcp" in str(error)
    with pytest.raises(LeaseLost):
        await result(held[0].release())
    assert [] == await result(ports.allocations())


async def test_acquire_after_an_expiry(kit: Kit) -> None:
    """An acquire that finds the lease expired begins a new one; what was held under the old one is told as lost."""
    lost = Told()
    ports = kit.allocator(on_lost=lost)
    held = await result(ports.acquire("backup"))
    kit.pass_time(31)
    again = await result(ports.acquire("backup"))
    ((error,),) = [await lost.wait()]
    assert ([held], 10810) == (error.allocations, again.number)
    assert (False, True, True) == (held.valid, again.valid, again.lease > held.lease)
    assert [again] == await result(ports.allocations())


async def test_an_empty_lease_expires_quietly(kit: Kit) -> None:
    """Who holds nothing loses nothing: no callback, and the next acquire works."""
    lost = Told()
    ports = kit.allocator(on_lost=lost)
    await result((await result(ports.acquire("backup"))).release())
    kit.pass_time(31)
    assert 10809 == int(await result(ports.acquire("backup")))
    assert [] == lost.what


async def test_one_heartbeat(memory_kit: Kit) -> None:
    """However many ports, and on however many hosts: one call, with one renewal for each host, four in a TTL."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=1, ranges=[PortRange("r", 1, 5000)])
    await result(ports.acquire("r", count=3000))
    await result(ports.acquire("r", count=1000, host="b"))
    began = time.monotonic()
    await flaky.wait("renew", 4)
    assert 0.7 < time.monotonic() - began
    renewals = [args[0] for name, args in flaky.calls if name == "renew"][-1]
    assert [("host:kvm-07", ()), ("host:b", ())] == [(renewal.space, renewal.abandoned) for renewal in renewals]


async def test_heartbeat_keeps_the_lease(memory_kit: Kit) -> None:
    """With a heartbeat a port outlives its TTL many times over, and stays valid all the while."""
    ports = memory_kit.allocator(ttl=1, virtual=False)
    held = await result(ports.acquire("backup"))
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert held.valid
        await asyncio.sleep(0.01)
    await result(held.release())


async def test_heartbeat_clears_up_behind_others(memory_kit: Kit) -> None:
    """What a dead manager left behind is reclaimed by the heartbeats of the living, however much it is."""
    dead = memory_kit.allocator(ttl=2, virtual=False, ranges=[PortRange("r", 1, 5000, quarantine=0)])
    await result(dead.acquire("r", count=1000))
    await result(dead.detach())
    # long enough for a busy machine: who has lost its own lease clears up behind nobody
    alive = memory_kit.allocator(ttl=6, virtual=False)
    kept = await result(alive.acquire("backup"))

    async def seen() -> list[int]:
        (host,) = (await result(alive.status())).hosts
        return [port.number for port in host.ports]

    assert 1001 == len(await seen())
    await eventually([10809], seen)
    assert kept.valid


# -------------------------------------------------------------------- requests without an answer


async def test_reply_lost(memory_kit: Kit) -> None:
    """Ports that were given without the caller hearing of it are free again after the next heartbeat."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=2)
    kept = await result(ports.acquire("backup"))
    flaky.faults["acquire"] = Fault(BackendUnavailable("no reply", unknown=True), after=True, times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    assert {10809: "held", 10810: "held"} == memory_kit.ports()
    await flaky.wait("renew")
    assert ({10809: "held"}, [kept]) == (memory_kit.ports(), await result(ports.allocations()))
    assert 10810 == int(await result(ports.acquire("backup")))


async def test_failed_for_good_after_a_lost_reply(memory_kit: Kit) -> None:
    """An error that says "perhaps it was done" is heeded, whatever its class."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=2)
    error = BackendError("out of memory, after a try without an answer")
    error.unknown = True
    flaky.faults["acquire"] = Fault(error, after=True, times=1)
    with pytest.raises(BackendError):
        await result(ports.acquire("backup"))
    assert {10809: "held"} == memory_kit.ports()
    await flaky.wait("renew")
    assert {} == memory_kit.ports()


async def test_request_that_arrives_late(memory_kit: Kit) -> None:
    """A request that its caller gave up is refused when it arrives after the heartbeat that said so."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=2)
    await result(ports.acquire("backup"))
    flaky.faults["acquire"] = Fault(BackendUnavailable("no reply", unknown=True), times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    late = [args for name, args in flaky.calls if name == "acquire"][-1]
    await flaky.wait("renew")
    assert Stale(2) == await result(flaky.inner.acquire(*late))
    assert {10809: "held"} == memory_kit.ports()


async def test_open_without_a_reply(memory_kit: Kit) -> None:
    """A lease that was opened without the caller hearing of it is the one that the next call gets."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, instance="manager")
    flaky.faults["open"] = Fault(BackendUnavailable("no reply", unknown=True), after=True, times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    assert 10809 == int(await result(ports.acquire("backup")))
    assert ["manager"] == memory_kit.leases()


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "reply lost"])
async def test_release_is_repeated(memory_kit: Kit, after: bool) -> None:
    """A release that the store did not answer is repeated with the heartbeat, and again until it got through."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=1)
    held = await result(ports.acquire("backup", count=2))
    flaky.faults["release"] = Fault(BackendUnavailable("away", unknown=after), after=after, times=2)
    with pytest.raises(BackendUnavailable):
        await result(held[0].release())
    assert (False, [held[1]]) == (held[0].valid, await result(ports.allocations()))
    await result(held[0].release())
    await flaky.wait("release", 2)
    assert {10810: "held"} == memory_kit.ports()
    await flaky.wait("renew")
    assert 3 == flaky.count("release")


# -------------------------------------------------------------------- callbacks


async def test_callback_may_use_the_allocator(memory_kit: Kit) -> None:
    """Who is told of a loss may close the allocator there and then."""
    flaky = memory_kit.flaky()
    done = threading.Event()
    loop = asyncio.get_running_loop()

    def close(_: Any) -> None:
        closed = ports.close()
        if memory_kit.kind == "async":
            asyncio.run_coroutine_threadsafe(closed, loop).result(PATIENCE)
        done.set()

    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, on_jeopardy=close)
    held = await result(ports.acquire("backup"))
    fail(flaky, "fails")
    assert await asyncio.to_thread(done.wait, PATIENCE)
    assert ({}, False) == (memory_kit.ports(), held.valid)


async def test_callback_that_fails(memory_kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises is logged, and the lease lives on."""
    flaky = memory_kit.flaky()
    called = threading.Event()

    def broken(_: Any) -> None:
        called.set()
        raise ValueError("broken by its author")

    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, on_jeopardy=broken)
    held = await result(ports.acquire("backup"))
    with caplog.at_level(logging.ERROR, "clusterports"):
        fail(flaky, "fails")
        assert await asyncio.to_thread(called.wait, PATIENCE)
        flaky.back()
        await eventually(True, lambda: held.valid)
    assert "broken by its author" in caplog.text


async def test_hosts_are_lost_one_by_one(memory_kit: Kit) -> None:
    """A lease that is gone on one host leaves those on other hosts alone."""
    lost = Told()
    ports = memory_kit.allocator(instance="manager", ttl=1, on_lost=lost)
    on_a = await result(ports.acquire("backup", host="a"))
    on_b = await result(ports.acquire("backup", host="b"))
    with memory_kit.store.connect(virtual=True) as other:
        occupied: Any = other.open("host:a", "manager", token="f", ttl=60_000_000)
        other.open("host:a", "manager", token="f", ttl=60_000_000, supersede=occupied.incarnation)
    (error,) = await lost.wait()
    assert [on_a] == error.allocations
    assert (False, True) == (on_a.valid, on_b.valid)
    assert [on_b] == await result(ports.allocations())
    with pytest.raises(LeaseLost):
        await result(ports.acquire("backup", host="a"))
    assert 10810 == int(await result(ports.acquire("backup", host="b")))


async def test_leftovers_hold_up_no_lease(memory_kit: Kit) -> None:
    """While a release is repeated for one host, and takes its time, the leases of others are prolonged already."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=2.0)
    one = await result(ports.acquire("backup", host="a"))
    other = await result(ports.acquire("backup", host="b"))
    flaky.faults["release"] = Fault(BackendUnavailable("away"), times=1)
    with pytest.raises(BackendUnavailable):
        await result(one.release())
    before = other._lease.until
    flaky.faults["release"] = Fault(gate=threading.Event())
    await eventually(2, lambda: [step for step, _ in flaky.begun].count("release"))
    assert before < other._lease.until
